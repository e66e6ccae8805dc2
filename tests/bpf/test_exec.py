"""What an exec's record says of the file, the process's ids, its directory and its environment."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bpf.conftest import Pool, Watch
from tests.bpf.records import Record
from vedette.agent import procfs
from vedette.agent.procfiles import LocalFiles
from vedette.bench.scope import Scope
from vedette.core import layout

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
NOBODY = 65534
# As root would be: everything may be written, by CAP_DAC_OVERRIDE.
AS_NOBODY = f"import os; os.setgroups([7777]); os.setgid({NOBODY}); os.setuid({NOBODY}); "


def facts(record: Record) -> set[str]:
    return {name for name, bit in layout.EXE_FLAGS.items() if record["exe_flags"] & bit}


def program(folder: Path, mode: int = 0o755, source: str = "/bin/true") -> Path:
    path = folder / "program"
    path.write_bytes(Path(source).read_bytes())
    path.chmod(mode)
    return path


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path("/tmp") / f"vedette-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def test_the_inode_is_what_stat_says(watch: Start, scope: Scope, open_folder: Path) -> None:
    path = program(open_folder)
    seen = watch("execve")
    scope.run(path)
    (record,) = seen.records()
    found = path.stat()
    assert record["exe_ino"] == found.st_ino
    assert record["exe_dev"] == os.major(found.st_dev) << 20 | os.minor(found.st_dev)
    assert record["exe_ctime_ns"] == found.st_ctime_ns
    assert record["exe_mtime_ns"] == found.st_mtime_ns


def test_who_may_write_the_file_and_whose_rights_it_gives(
    watch: Start, scope: Scope, open_folder: Path
) -> None:
    seen = watch("execve")
    for mode, owner, group, expected in (
        (0o755, 0, 0, set()),
        (0o757, 0, 0, {"writable"}),
        (0o755, NOBODY, 0, {"writable"}),
        (0o555, NOBODY, 0, set()),
        (0o775, 0, NOBODY, {"writable"}),
        (0o775, 0, 7777, {"writable"}),
        (0o757, 0, 7777, set()),
        (0o4755, 0, 0, {"setuid"}),
        (0o2755, 0, 0, {"setgid"}),
        (0o6777, 0, 0, {"setuid", "setgid", "writable"}),
        (0o2745, 0, 0, set()),  # mandatory locking, not setgid
    ):
        path = program(open_folder)
        os.chown(path, owner, group)
        path.chmod(mode)
        code = AS_NOBODY + f"os.execv({str(path)!r}, ['x'])"
        scope.run(sys.executable, "-IS", "-c", code)
        *_, record = seen.records()
        assert record["path"] == os.fsencode(path)
        assert facts(record) == {"known", *expected}, oct(mode)


def test_root_may_write_unless_the_mount_forbids(
    watch: Start, scope: Scope, open_folder: Path
) -> None:
    path = program(open_folder, 0o555)
    seen = watch("execve")
    scope.run(path)
    subprocess.run(["mount", "--bind", open_folder, open_folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", open_folder], check=True)
        scope.run(path)
    finally:
        subprocess.run(["umount", open_folder], check=True)
    assert [facts(record) for record in seen.records()] == [{"known", "writable"}, {"known"}]


def test_layers_of_an_overlay(watch: Start, scope: Scope, open_folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", open_folder], check=True)
    try:
        parts = {name: open_folder / name for name in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            part.mkdir()
        program(parts["lower"])
        options = ",".join(f"{k}dir={parts[k]}" for k in ("lower", "upper", "work"))
        subprocess.run(
            ["mount", "-t", "overlay", "none", "-o", options, parts["merged"]],
            check=True,
        )
        try:
            seen = watch("execve")
            scope.run(parts["merged"] / "program")
            (parts["merged"] / "program").chmod(0o751)  # copied up
            scope.run(parts["merged"] / "program")
        finally:
            subprocess.run(["umount", parts["merged"]], check=True)
    finally:
        subprocess.run(["umount", open_folder], check=True)
    lower, upper = seen.records()
    assert facts(lower) == {"known", "writable", "lower_layer"}
    assert facts(upper) == {"known", "writable", "upper_layer"}
    assert lower["path"] == upper["path"] == os.fsencode(parts["merged"] / "program")


def test_memory_is_executed_under_its_own_name(watch: Start, scope: Scope) -> None:
    seen = watch("execve", "execveat")
    for by in ("execve", "execveat"):
        code = f"""if True:
            import os
            memory = os.memfd_create("pay/load", 0)
            os.write(memory, open("/bin/cat", "rb").read())
            where = memory if {by!r} == "execveat" else f"/proc/self/fd/{{memory}}"
            os.execve(where, ["x", "/proc/self/stat"], {{}})
        """
        scope.run(sys.executable, "-IS", "-c", code)
        *_, record = seen.records()
        assert record.type == by
        assert record["path"] == b"memfd:pay/load"
        assert facts(record) >= {"memfd", "deleted"}
        assert not record.flags


def test_a_deleted_file_keeps_its_path_and_is_told(
    watch: Start, scope: Scope, open_folder: Path
) -> None:
    path = program(open_folder)
    seen = watch("execve", "execveat")
    code = f"""if True:
        import os
        file = os.open({str(path)!r}, os.O_RDONLY)
        os.unlink({str(path)!r})
        os.execve(file, ["x"], {{}})
    """
    scope.run(sys.executable, "-IS", "-c", code)
    *_, record = seen.records()
    assert record["path"] == os.fsencode(path)
    assert facts(record) == {"known", "writable", "deleted"}


def test_ids_directory_and_environment(watch: Start, scope: Scope, open_folder: Path) -> None:
    seen = watch("execve", environment=True)
    code = f"""if True:
        import os
        os.setsid()
        os.chdir({str(open_folder)!r})
        os.execve("/bin/cat", ["cat", "/proc/self/status"], {{b"A": b"1", b"B": b"\\xff 2"}})
    """
    output = scope.run(sys.executable, "-IS", "-c", code)
    *_, record = seen.records()
    status = {line.split(":")[0]: line.split()[1:] for line in output.splitlines() if line}
    assert record["cwd"] == os.fsencode(open_folder)
    assert record["env"] == b"A=1\0B=\xff 2\0"
    pid = record["pid"]
    assert [record[name] for name in ("session", "pgid", "vpid", "vpgid", "vsid")] == [pid] * 5
    assert record["tty"] == 0
    for name, line in (
        ("cap_inheritable", "CapInh"), ("cap_permitted", "CapPrm"), ("cap_effective", "CapEff"),
    ):  # fmt: skip
        assert record[name] == int(status[line][0], 16)


def test_the_environment_is_left_out_unless_asked_for(watch: Start, scope: Scope) -> None:
    seen = watch("execve")
    scope.run("/bin/true")
    (record,) = seen.records()
    assert (record["env"], record.flags) == (b"", frozenset())


def test_an_environment_longer_than_the_bound_is_cut_and_flagged(
    watch: Start, scope: Scope
) -> None:
    seen = watch("execve", environment=True)
    for extra in (0, 1):
        value = "x" * (layout.ENV_MAX - 3 + extra)
        code = f"import os; os.execve('/bin/true', ['true'], {{'A': {value!r}}})"
        scope.run(sys.executable, "-IS", "-c", code)
        *_, record = seen.records()
        assert record["env"] == f"A={value}\0".encode()[: layout.ENV_MAX]
        assert record.flags == ({"env_cut"} if extra else set())


def test_long_parts_all_at_once_lose_nothing_but_the_environment(
    watch: Start, scope: Scope, open_folder: Path
) -> None:
    seen = watch("execve", environment=True)
    deep = open_folder
    while len(str(deep)) < 3800:
        deep = deep / ("d" * 200)
    code = f"""if True:
        import os, shutil
        here = os.open({str(open_folder)!r}, os.O_RDONLY)
        os.fchdir(here)
        for part in {str(deep.relative_to(open_folder))!r}.split("/"):
            os.mkdir(part)
            os.chdir(part)
        shutil.copy("/bin/true", "program")
        os.execve({str(deep / "program")!r}, ["x" * 4000], {{"A": "y" * 4000}})
    """
    scope.run(sys.executable, "-IS", "-c", code)
    *_, record = seen.records()
    assert len(record["path"]) == len(record["filename"]) == len(str(deep / "program"))
    assert len(record["args"]) == 4001
    assert record["cwd"] == os.fsencode(deep)
    assert record["env"] == b"A=" + b"y" * 4000 + b"\0"
    assert not record.flags


def test_the_terminal_is_that_of_proc(watch: Start, scope: Scope) -> None:
    seen = watch("execve")
    code = """if True:
        import os, pty, sys
        pid, master = pty.fork()
        if pid == 0:
            os.execv("/bin/cat", ["cat", "/proc/self/stat"])
        text = b""
        try:
            while part := os.read(master, 4096):
                text += part
        except OSError:
            pass
        os.waitpid(pid, 0)
        sys.stdout.write(text.decode())
    """
    stat = scope.run(sys.executable, "-IS", "-c", code)
    *_, record = seen.records()
    fields = stat.rpartition(") ")[2].split()
    assert record["tty"] == int(fields[4]) != 0
    assert record["pgid"] == int(fields[2])
    assert record["session"] == int(fields[3]) == record["pid"]


def test_ids_in_a_pid_namespace(watch: Start, scope: Scope) -> None:
    seen = watch("execve", "fork", "clone", "clone3", "vfork")
    # In a session of its own: the tests may have been started by init, which is in session 0.
    script = "/bin/true; exec setsid /bin/cat /dev/null"
    scope.run("setsid", "--wait", "unshare", "--pid", "--fork", "sh", "-c", script)
    records = [record for record in seen.records() if record["result"] >= 0]
    outer = next(r for r in records if r.type == "execve" and r["path"].endswith(b"/unshare"))
    inner = [r for r in records if r.type == "execve" and r["vpid"] != r["pid"]]
    names = [record["comm"].rstrip(b"\0") for record in inner]
    assert names == [b"sh", b"true", b"setsid", b"cat"]
    assert [record["vpid"] for record in inner[:2]] == [1, 2]
    # The group and session that the first process came with are not in its namespace.
    assert (inner[0]["vpgid"], inner[0]["vsid"]) == (0, 0)
    assert inner[0]["pgid"] == outer["pgid"] != 0
    assert inner[0]["session"] == outer["session"] == outer["pgid"]
    assert inner[-1]["vsid"] == inner[-1]["vpgid"] == inner[-1]["vpid"]
    forks = [r for r in records if r.type != "execve" and r["vpid"] != r["child_pid"]]
    assert [fork["vpid"] for fork in forks][:2] == [1, 2]


def test_an_exec_from_a_thread_is_its_process(watch: Start, scope: Scope) -> None:
    seen = watch("execve", "procexit")
    code = """if True:
        import os, threading
        print(os.getpid(), flush=True)
        threading.Thread(target=lambda: os.execv("/bin/cat", ["cat", "/proc/self/stat"])).start()
        threading.Event().wait()
    """
    pid, stat = scope.run(sys.executable, "-IS", "-c", code).splitlines()
    first, second, ended = seen.records()
    assert [r["pid"] for r in (first, second, ended)] == [int(pid)] * 3
    assert second["tid"] == second["vpid"] == int(pid) == int(stat.split()[0])
    assert second["start_time_ns"] == first["start_time_ns"] == ended["start_time_ns"]
    assert second["comm"].rstrip(b"\0") == b"cat"


def test_what_changes_ids_is_told_once_it_did(watch: Start, scope: Scope) -> None:
    seen = watch("ids")
    code = """if True:
        import os
        os.setsid()
        try:
            os.setsid()
        except PermissionError:
            pass
        print(open("/proc/self/status").read())
        os.setgroups([])
        os.setresgid(4343, 4343, 4343)
        os.setresuid(4242, 4242, 4242)
    """
    output = scope.run(sys.executable, "-IS", "-c", code)
    status = {line.split(":")[0]: line.split()[1:] for line in output.splitlines() if line}
    session, group, user = seen.records()
    assert session["session"] == session["pgid"] == session["pid"] == int(status["Pid"][0])
    assert session["cap_effective"] == group["cap_effective"] == int(status["CapEff"][0], 16)
    assert (group["gid"], user["uid"], user["gid"]) == (4343, 4242, 4343)
    assert (user["cap_effective"], user["cap_permitted"]) == (0, 0)


def test_cgroups_below_the_scope_are_told(watch: Start, scope: Scope, pool: Pool) -> None:
    seen = watch("cgroup")
    inner = scope.folder / "in"
    inner.mkdir()
    number = inner.stat().st_ino
    beside = pool.scope.folder.with_name(pool.scope.folder.name + "-beside")
    beside.mkdir()
    beside.rmdir()
    inner.rmdir()
    made, removed = seen.records()
    mount = procfs.cgroup_mount()
    assert mount is not None
    path = os.fsencode(inner)[len(mount) :]
    assert [(r["id"], r["path"]) for r in (made, removed)] == [(number, path)] * 2
    assert (made["result"], removed["result"]) == (0, -1)


def test_proc_says_the_same_as_the_record(watch: Start, scope: Scope, open_folder: Path) -> None:
    path = program(open_folder, source="/bin/cat")
    seen = watch("execve", environment=True)
    command = scope.command(
        [sys.executable, "-IS", "-c", AS_NOBODY + f"os.execv({str(path)!r}, ['x'])"]
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        found = procfs.ProcFS(files=LocalFiles(environment=True)).read(child.pid)
        child.stdin.close()
        child.wait()
    *_, record = seen.records()
    assert found is not None
    assert record["pid"] == found.pid
    for name in (
        "ppid", "loginuid", "session", "exe_dev", "exe_flags", "exe_ino", "exe_ctime_ns",
        "exe_mtime_ns", "cap_inheritable", "cap_permitted", "cap_effective", "pgid", "tty", "vpid",
        "vpgid", "vsid", "env", "cwd", "args",
    ):  # fmt: skip
        assert record[name] == getattr(found, name), name
    assert found.exe_path == record["path"]
    assert found.cgroup is not None and found.cgroup.endswith(os.fsencode(scope.folder.name))


def test_proc_knows_memory_that_is_executed() -> None:
    memory = os.memfd_create("known", 0)
    os.write(memory, Path("/bin/cat").read_bytes())
    with subprocess.Popen(
        [f"/proc/self/fd/{memory}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        pass_fds=[memory],
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.read(1)
        found = procfs.ProcFS().read(child.pid)
        child.stdin.close()
    os.close(memory)
    assert found is not None
    assert found.exe_path == b"memfd:known"
    assert found.exe_flags & layout.EXE_FLAGS["memfd"]
