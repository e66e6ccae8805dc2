"""What is duplicated, and what a process's standard descriptors are, as the kernel has them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from tests.bpf.records import ALL, split
from vedette.agent import procfs
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.capture import Drop
from vedette.core import layout, stdio
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.expr import FieldRef
from vedette.core.fields import EventView, extract, stdio_name, stdio_type
from vedette.core.kernelfilter import Filter, derive
from vedette.core.needs import BASE
from vedette.core.records import TYPE_NUMBERS, Record, decode
from vedette.core.rules import Rule

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
EBADF, EFAULT = -9, -14
F_DUPFD, F_GETFD, F_DUPFD_CLOEXEC = 0, 1, 1030
# Event type -> (x86-64's number, i386's numbers), and what follows the descriptor.
DUPS = {
    "dup": (32, (41,), ""),
    "dup2": (33, (63,), "n70"),
    "dup3": (292, (330,), "n71 n02000000"),
    "fcntl": (72, (55, 221), f"n{F_DUPFD} n72"),
}


@pytest.fixture(scope="module")
def program() -> Path:
    return compile_c(Path(__file__).parent / "calls.c")


def made(scope: Scope, program: Path, folder: Path, *calls: str) -> list[int]:
    """Make calls; returns what each of them returned."""
    lines = scope.run(program, folder, *" -- ".join(calls).split(" ")).split()
    return [int(line) for line in lines[2:]]


def streams(blob: bytes) -> list[tuple[str | None, str | None]]:
    """Type and name of each standard descriptor."""
    found = [(stdio_type(one), stdio_name(one)) for one in stdio.unpack(blob)]
    return [(kind and kind.decode(), name and os.fsdecode(name)) for kind, name in found]


def test_duplicates_of_files_directories_and_pipes(
    watch: Start, scope: Scope, program: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "inner").mkdir()
    os.mkfifo(tmp_path / "fifo")
    seen = watch(*DUPS)
    opens = {
        "file": ("file", str(tmp_path / "file"), str(tmp_path), "file"),
        "inner": ("directory", str(tmp_path / "inner"), str(tmp_path), "inner"),
        "fifo": ("pipe", str(tmp_path / "fifo"), str(tmp_path), "fifo"),
    }
    for name, (native, compat, words) in DUPS.items():
        calls = [f"native 257 n-100 s{path} n2048" for path in opens]
        abis = [("native", native), *(("compat", number) for number in compat)]
        calls += [f"{abi} {number} r{i} {words}".strip() for abi, number in abis for i in range(3)]
        calls += [f"{abi} {number} n99 {words}".strip() for abi, number in abis]
        results = made(scope, program, tmp_path, *calls)
        records = [decode(data) for data in split(seen.ring.read(ALL))]
        # The first are the shell's that came before the program.
        records = records[len(records) - len(results[3:]) :]
        expected = [(abi, i) for abi, _ in abis for i in range(3)]
        assert [record.result for record in records] == results[3:]
        for record, (abi, i) in zip(records, expected, strict=False):
            kind, path, directory, filename = list(opens.values())[i]
            assert record.type_name == name
            assert (record.listen_fd, record.fd) == (results[i], record.result)
            assert bool(record.flags & layout.FLAGS["compat"]) == (abi == "compat")
            assert fields_of(record) == {
                "fd.num": record.result, "fd.type": kind.encode(), "fd.typechar": kind[:1].encode(),
                "fd.name": path.encode(), "fd.directory": directory.encode(),
                "fd.filename": filename.encode(), "evt.res": b"SUCCESS", "fd.sip": None,
                "fd.connected": None, "fd.sockfamily": None, "fd.name_changed": 0,
            }  # fmt: skip
        for record in records[len(expected) :]:
            assert record.result == EBADF
            assert fields_of(record) == {
                "fd.num": 99, "fd.type": None, "fd.typechar": None, "fd.name": None,
                "fd.directory": None, "fd.filename": None, "evt.res": b"EBADF", "fd.sip": None,
                "fd.connected": None, "fd.sockfamily": None, "fd.name_changed": 0,
            }  # fmt: skip


def fields_of(record: Record) -> dict[str, object]:
    view = EventView(record, Process(pid=1), {}, {})
    names = (
        "fd.num", "fd.type", "fd.typechar", "fd.name", "fd.directory", "fd.filename", "evt.res",
        "fd.sip", "fd.connected", "fd.sockfamily", "fd.name_changed",
    )  # fmt: skip
    return {name: extract(FieldRef(name), view) for name in names}


def test_a_pipe_without_a_path_is_called_by_its_inode(watch: Start, scope: Scope) -> None:
    seen = watch("dup")
    code = """if True:
        import os
        left, right = os.pipe()
        print(os.fstat(left).st_ino, left, right)
        for one in left, right, os.memfd_create("me mory"), os.eventfd(0):
            os.close(os.dup(one))
    """
    # os.dup() is fcntl(F_DUPFD_CLOEXEC).
    seen.capture.want(["fcntl"])
    inode, left, right = scope.run(sys.executable, "-IS", "-c", code).split()
    records = seen.records()
    assert [r["path"].decode() for r in records] == [
        f"pipe:[{inode}]", f"pipe:[{inode}]", "memfd:me mory", "[eventfd]",
    ]  # fmt: skip
    assert [r["listen_fd"] for r in records[:2]] == [int(left), int(right)]
    kinds = [r["state"] >> layout.SOCKET_KIND_SHIFT for r in records]
    assert kinds == [layout.KINDS["pipe"]] * 2 + [layout.KINDS["file"], 0]


def test_other_commands_of_fcntl_are_no_event(
    watch: Start, scope: Scope, program: Path, tmp_path: Path
) -> None:
    seen = watch("fcntl")
    calls = [f"native 72 n2 n{command} n0" for command in (F_GETFD, 2, 3, 5)]
    made(scope, program, tmp_path, *calls, "compat 55 n2 n1 n0", "compat 221 n2 n1 n0",
         f"native 72 n2 n{F_DUPFD_CLOEXEC} n9")  # fmt: skip
    assert [record["result"] for record in seen.records()] == [9]


def test_what_is_no_socket_is_filtered_where_no_rule_can_match(
    watch: Start, scope: Scope, program: Path, tmp_path: Path
) -> None:
    seen = watch(*DUPS)
    (tmp_path / "file").write_text("text")
    calls = ("native 257 n-100 sfile n0", "native 33 r0 n50", "native 41 n2 n1 n0",
             "native 33 r2 n51", "native 33 n99 n52")  # fmt: skip
    for text, expected in (
        ("evt.type = dup2 and fd.type in (ipv4, ipv6) and evt.rawres in (0, 51)", [51]),
        ("evt.type = dup2 and fd.sip exists and evt.rawres >= 0", [51]),
        ("evt.type = dup2 and fd.typechar = p", [50, EBADF]),
        ("evt.type = dup2 and not fd.sockfamily exists", [50, 51, EBADF]),
        ("evt.type = dup2 and fd.name endswith file and evt.failed = false", [50, 51]),
    ):
        filters = derive([parse_condition(text)], users={}, groups={}, hostname=None)
        found = filters.get("dup2", Filter())
        seen.capture.want(["dup2"], {"dup2": Drop(~found.outcomes & 0xFFFFFF)})
        seen.ring.read(ALL)
        made(scope, program, tmp_path, *calls)
        results = [r["result"] for r in seen.records() if r["fd"] >= 50]
        assert results == expected, text
    assert derive(
        [parse_condition("evt.type = dup2 and fd.type = ipv4 and evt.rawres = 0")],
        users={}, groups={}, hostname=None,
    )["dup2"].words("dup2") == "failures; what is no socket"  # fmt: skip


def test_a_standard_descriptor_is_told_of_a_socket_that_no_rule_is_about(
    watch: Start, scope: Scope, program: Path, tmp_path: Path
) -> None:
    seen = watch("socket", "stdio")
    condition = parse_condition("evt.type = socket and evt.arg.domain = AF_NETLINK")
    found = derive([condition], users={}, groups={}, hostname=None)["socket"]
    seen.capture.want(("socket", "stdio"), {"socket": Drop(values=found.values)})
    made(scope, program, tmp_path, "native 3 n0", "native 41 n2 n1 n0")
    records = seen.records()[-2:]
    assert [record.type for record in records] == ["stdio"] * 2
    assert [streams(record["stdio"])[0][0] for record in records] == [None, "ipv4"]
    assert seen.counters()["filtered"] == 1


def test_each_change_of_a_standard_descriptor_is_told_once_it_was_made(
    watch: Start, scope: Scope, program: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("text")
    seen = watch("stdio")
    path = str(tmp_path / "file")
    address = "x" + "00" * 16
    pair = "x0000000000000000"
    for abi, close, close_range, openat, opening, creat, dup, dup2, dup3, fcntl, pipe, socketpair, \
            make in (
        ("native", 3, 436, 257, 2, 85, 32, 33, 292, 72, 22, 53, 41),
        ("compat", 6, 436, 295, 5, 8, 41, 63, 330, 55, 42, 360, 359),
    ):  # fmt: skip
        changes = [
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {openat} n-100 sfile n0", ("file", path)),
            (f"{abi} {close_range} n0 n0 n0", (None, None)),
            (f"{abi} {opening} sfile n0", ("file", path)),
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {creat} sfile n0600", ("file", path)),
            (f"{abi} {dup2} n2 n0", ...),
            (f"{abi} {dup3} n1 n0 n0", ...),
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {dup} n2", ...),
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {fcntl} n2 n{F_DUPFD} n0", ...),
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {pipe} {pair}", ("pipe", ...)),
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {socketpair} n1 n1 n0 {pair}", ("unix", ...)),
            (f"{abi} {close} n0", (None, None)),
            (f"{abi} {make} n2 n1 n0", ("ipv4", "0.0.0.0:0")),
            # None of these changes one.
            (f"{abi} {close} n0x7f", None),
            (f"{abi} {openat} n-100 sfile n0", None),
            (f"{abi} {openat} n-100 sabsent n0", None),
            (f"{abi} {dup2} n99 n0", None),
            (f"{abi} {fcntl} n0 n{F_GETFD} n0", None),
            (f"{abi} {dup} n0", None),
            (f"{abi} {make} n2 n1 n0 {address}", None),
        ]
        made(scope, program, tmp_path, *(call for call, _ in changes))
        # The first of them are the shell's and the scope's own.
        records = seen.records()
        told = [expected for _, expected in changes if expected is not None]
        records = records[len(records) - len(told) :]
        assert [r.type for r in records] == ["stdio"] * len(told)
        for record, expected in zip(records, told, strict=True):
            found = streams(record["stdio"])
            if expected is ...:
                other = 2 if found[0] == found[2] else 1
                assert found[0] == found[other]
                assert found[0][1]
            else:
                kind, name = expected  # type: ignore[misc]
                assert found[0][0] == kind
                if name is not ...:
                    assert found[0][1] == name
                else:
                    assert (found[0][1] or "").startswith(
                        {"pipe": "pipe:[", "unix": "socket:["}[str(kind)]
                    )


def test_an_exec_says_what_its_standard_descriptors_are(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("execve", "stdio")
    output = tmp_path / ("long" * 60)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as server6,
        socket.create_connection(server6.getsockname()[:2]) as client6,
        socket.socket(socket.AF_UNIX) as bound,
        socket.socket(socket.AF_UNIX) as unbound,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink,
        output.open("wb") as file,
        fifo.open("r+b", buffering=0) as named,
        Path("/dev/null").open("rb") as null,
    ):
        bound.bind(b"\0vedette-%d" % os.getpid())
        reading, writing = os.pipe()
        folder = os.open(tmp_path, os.O_RDONLY)
        port, own = server.getsockname()[1], client.getsockname()[1]
        port6, own6 = server6.getsockname()[1], client6.getsockname()[1]
        pair = ((f"127.0.0.1:{own}", f"127.0.0.1:{port}"), (f"::1:{own6}", f"::1:{port6}"))
        # The higher port is taken for the client's.
        ports = ((own, port), (own6, port6))
        names = [
            "->".join(ends if mine > theirs else ends[::-1])
            for ends, (mine, theirs) in zip(pair, ports, strict=True)
        ]
        cases = {
            ("pipe", f"pipe:[{os.fstat(reading).st_ino}]"): reading,
            ("file", str(output)[:255]): file.fileno(),
            ("file", "/dev/null"): null.fileno(),
            ("pipe", str(fifo)): named.fileno(),
            ("directory", str(tmp_path)): folder,
            ("ipv4", names[0]): client.fileno(),
            ("ipv6", names[1]): client6.fileno(),
            ("unix", f"@vedette-{os.getpid()}"): bound.fileno(),
            ("unix", f"socket:[{os.fstat(unbound.fileno()).st_ino}]"): unbound.fileno(),
            (None, f"socket:[{os.fstat(netlink.fileno()).st_ino}]"): netlink.fileno(),
        }
        listed = list(cases.items())
        for i in range(len(listed)):
            three = [listed[i], listed[(i + 1) % len(listed)], listed[(i + 2) % len(listed)]]
            stdin, stdout, stderr = (number for _, number in three)
            subprocess.run(
                scope.command(["/bin/true"]), stdin=stdin, stdout=stdout, stderr=stderr, check=True
            )
            record = [r for r in seen.records() if r.type == "execve"][-1]
            assert record["path"].endswith(b"/true")
            assert streams(record["stdio"]) == [expected for expected, _ in three]
            assert not record.flags
        code = "import os; os.close(0); os.close(2); os.execv('/bin/true', ['true'])"
        subprocess.run(
            scope.command([sys.executable, "-IS", "-c", code]), stdout=writing, check=True
        )
        record = [r for r in seen.records() if r.type == "execve"][-1]
        expected = ("pipe", f"pipe:[{os.fstat(writing).st_ino}]")
        assert streams(record["stdio"]) == [(None, None), expected, (None, None)]
        for number in (reading, writing, folder):
            os.close(number)


def test_it_is_left_out_unless_asked_for(watch: Start, scope: Scope) -> None:
    seen = watch("execve", "dup2")
    scope.run("/bin/true")
    assert {r["stdio"] for r in seen.records() if r.type == "execve"} == {b""}


def judged(seen: Watch, text: str) -> tuple[list[str], list[Process]]:
    """The types of the watch's events that match a condition, and their processes."""
    types: list[str] = []
    processes: list[Process] = []

    def match(record: bytes, rules: object, process: Process) -> None:
        types.append(decode(record).type_name)
        processes.append(process)

    Engine([Rule("it", parse_condition(text), "", 4)], on_match=match).feed(seen.ring.read(ALL))
    return types, processes


def test_a_shell_between_pipes_is_seen(watch: Start, scope: Scope, tmp_path: Path) -> None:
    """mkfifo f; cat f | sh -i 2>&1 | nc ... > f, with nc's part played by a program of ours."""
    seen = watch(*BASE & TYPE_NUMBERS.keys() - {"gone", "hash"}, "stdio", "connect")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = (
            "import os, socket, sys; "
            "s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
            "os.write(1, b'exit\\n'); s.close()"
        )
        script = f'mkfifo f; cat f | sh 2>&1 | {sys.executable} -IS -c "$0" {port} > f'
        subprocess.run(scope.command(["sh", "-c", script, client]), cwd=tmp_path, check=True)
    types, _ = judged(
        seen,
        "(evt.type = execve and proc.name = sh and proc.stdin.type = pipe and "
        "proc.stdout.type = pipe and proc.stderr.type = pipe) or "
        "(evt.type = connect and proc.stdin.name startswith pipe:[ and "
        "proc.stdout.name endswith /f and proc.stdout.type = pipe)",
    )
    assert types == ["execve", "connect"]


def test_a_process_that_turns_its_own_descriptors_is_seen_at_once(
    watch: Start, scope: Scope
) -> None:
    """A bind shell in one process: accept, dup2 onto 0 to 2, and no exec at all."""
    seen = watch(*BASE & TYPE_NUMBERS.keys() - {"gone", "hash"}, "stdio", "dup2", "chdir")
    code = """if True:
        import os, socket, sys
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        taken, _ = server.accept()
        print(client.getsockname()[1], server.getsockname()[1], flush=True)
        for number in range(3):
            os.dup2(taken.fileno(), number)
        os.chdir("/")
        if os.fork() == 0:
            os.chdir("/tmp")
            os.execv("/bin/true", ["true"])
        os.wait()
    """
    port, server = scope.run(sys.executable, "-IS", "-c", code).split()
    types, processes = judged(
        seen,
        "(evt.type = dup2 and evt.rawres = 2 and proc.stdin.type = ipv4 "
        "and proc.stderr.type = ipv4) or (evt.type in (chdir, execve) and proc.stdin.type = ipv4)",
    )
    assert types == ["dup2", "chdir", "chdir", "execve"]
    view = Record(layout.TYPES["chdir"])
    names = {
        extract(FieldRef("proc.stdout.name"), EventView(view, process, {}, {}))
        for process in processes
    }
    ends = [f"127.0.0.1:{port}", f"127.0.0.1:{server}"]
    assert names == {"->".join(sorted(ends, key=lambda e: -int(e.split(":")[1]))).encode()}


def test_proc_says_what_the_record_says_but_for_sockets(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("execve", "stdio")
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "file").open("wb") as file:
        with subprocess.Popen(
            scope.command(["/bin/cat"]), stdin=subprocess.PIPE, stdout=file, stderr=server.fileno()
        ) as child:
            assert child.stdin is not None
            record = None
            while record is None or not record["path"].endswith(b"/cat"):
                record = next((r for r in reversed(seen.records()) if r.type == "execve"), record)
            found = procfs.ProcFS().read(child.pid)
            child.stdin.close()
        inode = os.fstat(server.fileno()).st_ino
        assert found is not None
        assert found.stdio is not None
        assert streams(found.stdio)[:2] == streams(record["stdio"])[:2]
        assert streams(found.stdio)[2] == (None, f"socket:[{inode}]")
        assert streams(record["stdio"])[2][0] == "ipv4"
        assert stdio.merged(found.stdio, record["stdio"]) == record["stdio"]
