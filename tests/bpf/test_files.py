"""open, chdir and writes to watched files, as the kernel did them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from vedette.bench.scope import Scope
from vedette.bpf.capture import Drop
from vedette.core import layout

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
AT_FDCWD = -100
NOBODY = 65534


def python(scope: Scope, code: str, *arguments: str | Path) -> str:
    return scope.run(sys.executable, "-IS", "-c", f"if True:\n{code}", *arguments)


def test_every_open_is_seen_once_with_its_result(
    watch: Start, scope: Scope, workload: Path, tmp_path: Path
) -> None:
    count = 1009
    seen = watch("open", "openat", "openat2")
    results = [int(line) for line in scope.run(workload, "opens", tmp_path, str(count)).split()]
    records = seen.records()
    folder = os.fsencode(tmp_path)
    names = [b"%s/absent/%d" if i % 2 else b"%s/%d" for i in range(count)]
    assert [record["path"] for record in records] == [
        name % (folder, i) for i, name in enumerate(names)
    ]
    assert [record["result"] for record in records] == results
    assert {result < 0 for result in results} == {True, False}
    types = ["open", "openat", "openat2"]
    assert [record.type for record in records] == [types[i % 3] for i in range(count)]
    assert {record["open_flags"] for record in records} == {os.O_CREAT | os.O_RDWR}
    assert {record["mode"] for record in records} == {0o640}
    assert {record["dirfd"] for record in records} == {AT_FDCWD}
    assert {record["dir"] for record in records} == {b""}
    assert not any(record.flags for record in records)
    times = [record["time_ns"] for record in records]
    assert times == sorted(times)
    assert seen.counters()["submitted"] == count


def test_mode_is_zero_where_the_kernel_ignores_it(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("openat")
    code = """
        import os, sys
        os.open(sys.argv[1], os.O_RDONLY, 0o777)
        os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o600)
    """
    python(scope, code, tmp_path)
    opened = [r for r in seen.records() if r["path"] == os.fsencode(tmp_path)]
    assert [record["mode"] for record in opened] == [0, 0o600]


def test_a_path_relative_to_a_descriptor_comes_with_its_directory(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("openat")
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/file").touch()
    code = """
        import os, sys
        top = os.open(sys.argv[1], os.O_DIRECTORY)
        os.open("deep/er/file", os.O_RDONLY, dir_fd=top)
        os.open("../file", os.O_RDONLY, dir_fd=os.open("deep/er/../er", os.O_PATH, dir_fd=top))
    """
    (tmp_path / "deep/file").touch()
    python(scope, code, tmp_path)
    below = [record for record in seen.records() if record["dir"]]
    folder = os.fsencode(tmp_path)
    assert [(record["dir"], record["path"]) for record in below] == [
        (folder, b"deep/er/file"),
        (folder, b"deep/er/../er"),
        (folder + b"/deep/er", b"../file"),
    ]
    assert all(record["result"] >= 0 for record in below)


def test_a_descriptor_that_is_none_gives_no_directory(watch: Start, scope: Scope) -> None:
    seen = watch("openat")
    code = """
        import os
        try:
            os.open("file", os.O_RDONLY, dir_fd=999)
        except OSError:
            pass
    """
    python(scope, code)
    record = next(record for record in seen.records() if record["path"] == b"file")
    assert (record["result"], record["dirfd"], record["dir"]) == (-9, 999, b"")
    assert not record.flags


@pytest.mark.parametrize("length", [layout.PATH_MAX, layout.PATH_MAX + 1])
def test_a_path_longer_than_the_bound_is_cut_and_flagged(
    watch: Start, scope: Scope, length: int
) -> None:
    seen = watch("openat")
    path = ("/" + "x" * 99) * 50
    code = """
        import os, sys
        try:
            os.open(sys.argv[1], os.O_RDONLY)
        except OSError as error:
            print(error.errno)
    """
    number = int(python(scope, code, path[:length]))
    record = next(r for r in seen.records() if r["path"].startswith(b"/xxx"))
    assert record["path"] == path[: layout.PATH_MAX].encode()
    assert record["result"] == -number
    assert record.flags == ({"path_cut"} if length > layout.PATH_MAX else set())


def test_chdir_gives_the_kernels_directory(watch: Start, scope: Scope, tmp_path: Path) -> None:
    seen = watch("chdir", "fchdir")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    code = """
        import os, sys
        os.chdir(sys.argv[1] + "/link")
        os.chdir("..")
        os.fchdir(os.open("real", os.O_RDONLY))
        for call in (lambda: os.chdir("absent"), lambda: os.fchdir(999), lambda: os.chdir("/")):
            try:
                call()
            except OSError:
                pass
    """
    python(scope, code, tmp_path)
    folder = os.fsencode(tmp_path)
    records = seen.records()
    assert [(record.type, record["result"], record["path"]) for record in records] == [
        ("chdir", 0, folder + b"/real"),
        ("chdir", 0, folder),
        ("fchdir", 0, folder + b"/real"),
        ("chdir", -2, b"absent"),
        ("fchdir", -9, b""),
        ("chdir", 0, b"/"),
    ]
    assert [record["fd"] >= 0 for record in records] == [r.type == "fchdir" for r in records]
    assert [record.flags for record in records] == [set()] * 4 + [{"path_fault"}, set()]


def test_paths_cross_mounts(watch: Start, scope: Scope, tmp_path: Path) -> None:
    seen = watch("chdir")
    (tmp_path / "mount").mkdir()
    script = """
        mount -t tmpfs none "$1/mount" && mkdir -p "$1/mount/a/inner" &&
        mount -t tmpfs none "$1/mount/a/inner" && mkdir "$1/mount/a/inner/b" &&
        cd "$1/mount/a/inner/b"
    """
    scope.run("unshare", "-m", "sh", "-ec", script, "sh", tmp_path)
    assert seen.records()[-1]["path"] == os.fsencode(tmp_path) + b"/mount/a/inner/b"


def test_a_path_too_deep_loses_its_beginning_and_its_slash(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("chdir")
    code = """
        import os, sys
        name, count = sys.argv[2], int(sys.argv[3])
        os.chdir(sys.argv[1])
        for _ in range(count):
            os.mkdir(name)
            os.chdir(name)
        for _ in range(count):
            os.chdir("..")
            os.rmdir(name)
    """
    # Too many names for the walk's bound, then too many bytes for the path's.
    for name, count in (("d", 191), ("n" * 255, 23)):
        python(scope, code, tmp_path, name, str(count))
        cut = [record for record in seen.records() if record.flags]
        assert cut
        for record in cut:
            assert record.flags == {"path_cut"}
            depth = record["path"].split(b"/").count(name.encode())
            whole = os.fsencode(tmp_path) + count * (b"/" + name.encode())
            assert depth > 8
            assert (b"/" + record["path"]) in whole
            assert not record["path"].startswith(b"/")
    assert all(r["path"].startswith(b"/") for r in seen.records() if not r.flags)


def test_writes_to_a_watched_file_carry_their_data(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    seen = watch("write", watched_paths=(str(watched),))
    data = bytes(range(256)) * 3
    code = """
        import os, sys
        data = bytes(range(256)) * 3
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        print(fd)
        os.write(fd, data[:384])
        os.write(fd, data)
        os.write(os.dup(fd), b"a descriptor that open did not give")
        os.close(fd)
        again = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
        assert again == fd
        os.write(again, b"another file")
        os.close(again)
        os.open(sys.argv[1], os.O_RDONLY)
        try:
            os.write(fd, b"not open for writing")
        except OSError:
            pass
    """
    fd = int(python(scope, code, watched, other))
    records = seen.records()
    assert [record["data"] for record in records] == [data[:384], data[: layout.DATA_MAX]]
    assert [record["result"] for record in records] == [384, 768]
    assert [record.flags for record in records] == [set(), {"data_cut"}]
    assert {(record["fd"], record["path"]) for record in records} == {(fd, os.fsencode(watched))}

    # Also where no rule can match the open by which the file is known.
    seen.capture.want(("openat", "write"), {"openat": Drop(outcomes=0xFFFFFF)})
    code = "    import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'more')"
    python(scope, code, watched)
    assert [(record.type, record["data"]) for record in seen.records()] == [("write", b"more")]


SAYS = """
        import ctypes, os, socket, sys
        name, how = sys.argv[1:3]
        ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
        journal, sshd = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        def say(text):
            sshd.send(text) if how == "syslog" else os.write(2, text)
        for text in sys.argv[4:]:
            say(text.encode())
        fd = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"record")
"""
ACCEPTED = (
    "<38>Nov 27 02:00:00 sshd[12]: Accepted publickey for ana from 10.0.0.1 port 52 ssh2: "
    "ED25519 SHA256:" + "k" * 43
)


@pytest.mark.parametrize("how", ["syslog", "stderr"])
def test_what_a_program_that_is_called_sshd_says_of_a_login_is_with_its_record(
    watch: Start, scope: Scope, tmp_path: Path, how: str
) -> None:
    watched = tmp_path / "watched"
    seen = watch("write", "login_key", watched_paths=(str(watched),))

    def told(name: str, *said: str) -> list[bytes]:
        python(scope, SAYS, name, how, watched, *said)
        return [record["log"] for record in seen.records()]

    assert told("sshd", "Connection from 10.0.0.1", ACCEPTED, "session opened") == [
        ACCEPTED.encode()
    ]
    assert told("sshd-session", ACCEPTED, "Accepted password for ana") == [
        b"Accepted password for ana"
    ]
    assert told("sshd", ACCEPTED + "x" * 200) == [(ACCEPTED + "x" * 200).encode()[:255]]
    assert told("sshd", "Failed password for ana") == [b""]
    assert told("login", ACCEPTED) == [b""]
    seen.capture.want({"write"})
    assert told("sshd", ACCEPTED) == [b""]


def test_a_descriptor_reused_for_another_file_is_not_mislabelled(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    watched = tmp_path / "watched"
    seen = watch("write", watched_paths=(str(watched),))
    code = """
        import os, sys
        for i in range(101):
            fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.close(fd)
            other = os.open(f"{sys.argv[1]}.{i}", os.O_WRONLY | os.O_CREAT)
            assert other == fd
            os.write(other, b"other")
            os.close(other)
            os.unlink(sys.argv[1])  # its inode number may come again
    """
    python(scope, code, watched)
    assert seen.records() == []


def test_an_unreadable_argument_is_flagged_and_counted(
    watch: Start, scope: Scope, workload: Path
) -> None:
    seen = watch("openat", "openat2", "connect", "chdir", "fchdir", "execve")
    answers = [line.split() for line in scope.run(workload, "bad").splitlines()]
    _, *records = seen.records()
    assert [(record.type, record["result"]) for record in records] == [
        (name, int(result)) for name, result in answers
    ]
    assert [record.flags for record in records] == [
        {"path_fault"},
        {"data_fault"},
        {"addr_fault"},
        {"path_fault"},
        {"path_fault"},
        {"path_fault"},
    ]
    counters = seen.counters()
    assert counters["partial_fault"] == len(records) == counters["submitted"] - 1


def test_the_owner_of_what_is_opened_and_executed_is_told(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("openat", "execve")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    owners = {"root": 0, "nobody": NOBODY, "other": 4242}
    for name, uid in owners.items():
        path = tmp_path / name
        path.write_bytes(Path("/bin/true").read_bytes())
        path.chmod(0o755)
        os.chown(path, uid, 0)
    setuid = tmp_path / "setuid"
    setuid.write_bytes(Path("/bin/true").read_bytes())
    setuid.chmod(0o4755)
    code = """
        import os, sys
        os.setgid(65534); os.setuid(65534)
        for name in "root", "nobody", "other", "absent":
            path = sys.argv[1] + "/" + name
            try:
                os.open(path, os.O_RDONLY)
            except OSError:
                continue
            os.spawnv(os.P_WAIT, path, [path])
        os.spawnv(os.P_WAIT, sys.argv[1] + "/setuid", ["setuid"])
    """
    python(scope, code, tmp_path)
    folder = os.fsencode(tmp_path) + b"/"
    told = [
        (record.type, record["path"].removeprefix(folder), record["owner_flags"],
         record["owner_uid"])
        for record in seen.records()
        if record["path"].startswith(folder)
    ]  # fmt: skip
    known, mine = layout.OWNER_KNOWN, layout.OWNER_KNOWN | layout.OWNER_IS_USER
    assert told == [
        ("openat", b"root", known, 0), ("execve", b"root", known, 0),
        ("openat", b"nobody", mine, NOBODY), ("execve", b"nobody", mine, NOBODY),
        ("openat", b"other", known, 4242), ("execve", b"other", known, 4242),
        ("openat", b"absent", 0, 0),
        # Who owns it is the user that the program becomes, and not who ran it.
        ("execve", b"setuid", known, 0),
    ]  # fmt: skip
