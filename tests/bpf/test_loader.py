"""The loader: what may be asked of it, what rights it has, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vedette.bpf import kernel, loader, privileges
from vedette.bpf.capture import Capture, CaptureError, Loader

GOOD = dict.fromkeys(loader.REQUEST_KEYS, 1)


def status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}:")).partition(":")[2].strip()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_request_is_numbers_and_nothing_else() -> None:
    assert loader.parse_request(json.dumps(GOOD).encode()) == GOOD


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 4000, "no JSON"),
        (b"[]", "without exactly"),
        (json.dumps(GOOD | {"source": "/tmp/mine.c"}).encode(), "without exactly"),
        (json.dumps(dict(list(GOOD.items())[1:])).encode(), "without exactly"),
        (json.dumps(GOOD | {"hook": 3}).encode(), "hook is none of 0 to 2"),
        (json.dumps(GOOD | {"EXCLUDE_PID": "1 -fplugin=mine.so"}).encode(), "EXCLUDE_PID is no"),
        (json.dumps(GOOD | {"ENVIRONMENT": True}).encode(), "ENVIRONMENT is no"),
        (json.dumps(GOOD | {"SCOPE_LEVEL": -1}).encode(), "SCOPE_LEVEL is no"),
        (json.dumps(GOOD | {"SCOPE_LEVEL": 1 << 64}).encode(), "SCOPE_LEVEL is no"),
        (b" " * 5000, "more than"),
    ],
)
def test_any_other_request_is_refused(message: bytes, complaint: str) -> None:
    with pytest.raises(loader.RequestError, match=complaint):
        loader.parse_request(message)


@pytest.mark.bpf
def test_it_keeps_the_rights_to_load_and_no_others() -> None:
    wanted = sum(1 << privileges.CAPABILITIES[name] for name in ("CAP_BPF", "CAP_PERFMON"))
    with Loader("nobody") as made:
        pid = made.pid
        until(lambda: status(pid, "NoNewPrivs") == "1")
        assert int(status(pid, "CapEff"), 16) == int(status(pid, "CapPrm"), 16) == wanted
        assert int(status(pid, "CapBnd"), 16) == wanted
        assert int(status(pid, "CapAmb"), 16) == int(status(pid, "CapInh"), 16) == 0
        assert status(pid, "Uid").split() == ["65534"] * 4
        assert status(pid, "Groups") in ("", "65534")
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.bpf
def test_what_it_may_not_be_asked_is_an_error_of_the_capture() -> None:
    with Loader() as made, pytest.raises(CaptureError, match="without exactly"):
        made.load({"ring_bytes": 4096})
    absent = "there is no user nosuch; make it with `useradd"
    with Loader("nosuch") as made, pytest.raises(CaptureError, match=absent):
        made.load(GOOD)


@pytest.mark.bpf
@pytest.mark.skipif(kernel.needs_rights(), reason="this kernel asks for CAP_BPF")
@pytest.mark.parametrize("hook", ["sys_exit", "auto"])
def test_what_is_attached_follows_without_any_right(hook: str) -> None:
    code = f"""if True:
        from vedette.bpf import privileges
        from vedette.bpf.capture import Capture, CaptureConfig, Loader
        config = CaptureConfig(hook={hook!r}, event_types=frozenset({{"execve"}}),
                               ring_bytes=1 << 16, wakeup_bytes=1 << 15)
        with Loader() as loader, Capture(config, loader) as capture:
            privileges.confine(user="nobody")
            capture.load()
            capture.attach()
            print(capture.hook)
            print(capture.attached)
            capture.want({{"execve", "procexit"}})
            print(capture.attached, capture.counters()["lost_ring_full"] >= 0)
            capture.want({{"procexit"}})
            print(capture.attached)
    """
    done = in_child(code)
    taken, *lines = done.stdout.splitlines() or [done.stderr]
    assert taken in (hook, "fexit", "sys_exit")
    assert lines == [
        f"('{taken}', 'sched_process_exec')",
        f"('{taken}', 'sched_process_exec', 'sched_process_exit') True",
        "('fexit', 'sched_process_exit')" if taken == "fexit" else "('sched_process_exit',)",
    ], done.stderr


@pytest.mark.bpf
def test_its_death_is_told() -> None:
    made = Loader()
    os.kill(made.pid, signal.SIGKILL)
    with pytest.raises(CaptureError, match="the loader of the kernel programs"):
        Capture(loader=made).load()


def test_it_ends_with_whoever_started_it() -> None:
    code = """if True:
        import os
        from vedette.bpf.capture import Loader
        print(Loader().pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{int(done.stdout)}/exe").exists())


def in_child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.bpf
@pytest.mark.parametrize("user", [None, "nobody"])
def test_rights_that_were_given_up_never_come_back(user: str | None) -> None:
    """Neither by exec of what is root's own, nor by a program with the set-user-ID bit."""
    code = f"""if True:
        import subprocess
        from vedette.bpf import privileges
        privileges.confine({{"CAP_SYS_PTRACE"}}, {user!r})
        lines = open("/proc/self/status").read().splitlines()
        print([line for line in lines if line.startswith("CapPrm")])
        words = ["grep", "-E", "CapPrm|CapEff", "/proc/self/status"]
        print(subprocess.run(words, capture_output=True, text=True).stdout.split())
        print(subprocess.run(["su", "-c", "true"], stdin=subprocess.DEVNULL).returncode != 0)
    """
    done = in_child(code)
    held = "0000000000080000"
    # What root executes has what the bounding set leaves, which is not more than was kept.
    after = held if user is None else "0" * 16
    assert done.stdout.splitlines()[:2] == [
        str([f"CapPrm:\t{held}"]),
        str(["CapPrm:", after, "CapEff:", after]),
    ], done.stderr
    if user is not None:
        assert done.stdout.splitlines()[2] == "True"


def test_rights_are_not_given_up_beside_other_threads() -> None:
    code = """if True:
        import threading
        from vedette.bpf import privileges
        done = threading.Event()
        threading.Thread(target=done.wait).start()
        try:
            privileges.confine()
        except privileges.PrivilegeError as error:
            print(error)
        done.set()
    """
    assert "2 threads run already" in in_child(code).stdout


def test_only_root_becomes_another_user() -> None:
    code = """if True:
        import os
        from vedette.bpf import privileges
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            privileges.confine(user="daemon")
        except privileges.PrivilegeError as error:
            print(error)
    """
    assert "only root can become the user daemon" in in_child(code).stdout


def test_a_message_without_an_answer_ends_it_in_peace() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        arguments: list[Any] = [sys.executable, "-m", "vedette.bpf.loader"]
        arguments += [str(theirs.fileno()), "/dev/null"]
        process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.close()
        assert process.wait(30) == 0
