"""Event streams and rule sets for benchmarks: from a seed, the same bytes on every machine.

Streams
    mixed        70 % open, 15 % connect, 10 % exec and exit, 5 % other, from a tree of 2,000
                 processes, over 200,000 paths drawn by Zipf's law
    open         opens alone, as in mixed
    exec         programs that start and end: fork, exec, three opens, exit
    unique       adversary: every path and every argument is new
    combinations adversary: paths and programs built from the rules' own constants, so that as
                 many classes and combinations of classes come up as the rules allow
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from vedette.core.condition import parse_condition
from vedette.core.engine import Process
from vedette.core.records import build
from vedette.core.rules import Rule


def _words(text: str) -> list[str]:
    return text.split()


PROGRAMS = _words(
    "bash sh dash zsh sshd sudo su cron systemd python3 perl ruby node java nginx apache2 mysqld "
    "postgres redis-server curl wget nc ncat socat tar gzip cp mv rm cat grep sed awk find xargs "
    "ls ps top make gcc cc1 ld as git rsync scp ssh vim nano less dpkg apt apt-get pip npm docker "
    "containerd runc kubelet dockerd haproxy varnishd php-fpm httpd memcached chronyd rsyslogd"
)
DIRECTORIES = _words(
    "/etc /etc/ssh /etc/pam.d /usr/bin /usr/sbin /usr/lib /usr/lib/x86_64-linux-gnu /usr/share "
    "/var/log /var/lib /var/lib/dpkg /var/cache /var/www/html /home/ann /home/ben/.ssh /root "
    "/root/.ssh /tmp /dev /dev/shm /proc /sys/fs/cgroup /run /run/systemd /opt/app /opt/app/lib "
    "/srv/data /boot /usr/lib/python3/dist-packages /usr/local/bin"
)
EXTENSIONS = (".so.6", ".py", ".conf", ".log", ".txt", ".json", "", "", ".pyc", ".db", ".h", ".c")
SENSITIVE = _words(
    "/etc/shadow /etc/sudoers /etc/passwd /root/.ssh/id_rsa /root/.bash_history /etc/crontab "
    "/var/log/wtmp /var/log/auth.log /proc/kcore /dev/mem /etc/ld.so.preload /etc/pam.conf"
)


@dataclass(frozen=True)
class Workload:
    """Records in memory, and the processes that the table knows before them."""

    name: str
    records: bytes
    count: int
    processes: tuple[Process, ...] = field(repr=False)


class _Machine:
    """A tree of processes and a set of paths to draw from."""

    def __init__(self, seed: int, processes: int = 2000, paths: int = 200_000) -> None:
        self.random = random.Random(seed)
        draw = self.random
        self.paths = [
            f"{draw.choice(DIRECTORIES)}/{draw.choice(PROGRAMS)}-{i:x}{draw.choice(EXTENSIONS)}"
            for i in range(paths)
        ]
        # Zipf with exponent 1: the n-th most common path is drawn with weight 1/n.
        self.weights = list(accumulate(1 / rank for rank in range(1, paths + 1)))
        self.table: dict[int, Process] = {1: self.process(1, 0, "systemd")}
        for pid in range(2, processes + 1):
            parent = draw.randrange(max(1, pid // 4), pid) if pid > 20 else 1
            self.table[pid] = self.process(pid, parent, draw.choice(PROGRAMS))
        self.pids = list(self.table)
        self.next_pid = processes + 1
        self.now_ns = 10**12

    def process(self, pid: int, ppid: int, program: str) -> Process:
        arguments = [program, *(self.random.choice(("-v", "-c", "run", "--all", "x")),)]
        return Process(
            pid=pid,
            ppid=ppid,
            uid=self.random.choice((0, 0, 33, 1000)),
            comm=program[:15].encode(),
            exe_path=f"/usr/bin/{program}".encode(),
            args=b"".join(a.encode() + b"\0" for a in arguments),
            cwd=b"/",
        )

    def header(self, pid: int) -> dict[str, int]:
        self.now_ns += 1000
        return {"pid": pid, "tid": pid, "uid": self.table[pid].uid, "time_ns": self.now_ns,
                "cgroup_id": 1}  # fmt: skip

    def path(self) -> bytes:
        if self.random.random() < 0.001:
            return self.random.choice(SENSITIVE).encode()
        (path,) = self.random.choices(self.paths, cum_weights=self.weights)
        return path.encode()

    def open(self, pid: int, path: bytes | None = None) -> bytes:
        flags = self.random.choice((0, 0, 0, 0x80000, 0x80000, 0x241, 2))
        return build(
            "openat",
            **self.header(pid),
            result=self.random.choice((3, 4, 5, 6, 7, 8, -2)),
            open_flags=flags,
            path=self.path() if path is None else path,
        )

    def connect(self, pid: int) -> bytes:
        address = bytes((10, 0, self.random.randrange(4), self.random.randrange(256)))
        return build(
            "connect",
            **self.header(pid),
            result=0,
            fd=self.random.randrange(3, 64),
            family=2,
            l4proto=6,
            socktype=1,
            local_port=self.random.randrange(32768, 61000),
            remote_port=self.random.choice((22, 53, 80, 443, 5432, 6379, 8080)),
            local_addr=bytes((10, 0, 0, 9)) + bytes(12),
            remote_addr=address + bytes(12),
        )

    def other(self, pid: int) -> bytes:
        kind = self.random.choice(("listen", "bind", "accept4", "chdir"))
        if kind == "chdir":
            path = self.random.choice(DIRECTORIES).encode()
            return build("chdir", **self.header(pid), path=path)
        return build(
            kind,
            **self.header(pid),
            result=5 if kind == "accept4" else 0,
            fd=5,
            family=2,
            l4proto=6,
            socktype=1,
            local_port=self.random.choice((80, 443, 8080)),
            remote_port=self.random.randrange(32768, 61000) if kind == "accept4" else 0,
            local_addr=bytes((10, 0, 0, 9)) + bytes(12),
            remote_addr=bytes((10, 0, 1, self.random.randrange(256))) + bytes(12),
        )

    def start(self, parent: int, program: str, arguments: tuple[bytes, ...]) -> tuple[int, bytes]:
        pid = self.next_pid
        self.next_pid = pid + 1 if pid < 4_000_000 else 3000
        made = self.process(pid, parent, program)
        self.table[pid] = made
        fork = build(
            "clone", **self.header(parent), result=pid, child_pid=pid, ppid=parent,
            child_uid=made.uid, comm=self.table[parent].comm, start_time_ns=self.now_ns,
        )  # fmt: skip
        run = build(
            "execve", **self.header(pid), ppid=parent, comm=made.comm, path=made.exe_path,
            filename=made.exe_path, start_time_ns=self.now_ns,
            args=(made.args or b"") + b"".join(a + b"\0" for a in arguments),
        )  # fmt: skip
        return pid, fork + run

    def end(self, pid: int) -> bytes:
        ended = build("procexit", **self.header(pid), reaper_pid=1)
        del self.table[pid]
        return ended


def _mixed(machine: _Machine, count: int) -> bytes:
    out: list[bytes] = []
    running: list[int] = []
    made = 0
    while made < count:
        luck = machine.random.random()
        pid = machine.random.choice(machine.pids)
        if luck < 0.70:
            out.append(machine.open(pid))
            made += 1
        elif luck < 0.85:
            out.append(machine.connect(pid))
            made += 1
        elif luck < 0.90:
            pid, records = machine.start(pid, machine.random.choice(PROGRAMS), ())
            running.append(pid)
            out.append(records)
            made += 2
        elif luck < 0.95 and running:
            out.append(machine.end(running.pop(machine.random.randrange(len(running)))))
            made += 1
        else:
            out.append(machine.other(pid))
            made += 1
    return b"".join(out)


def _opens(machine: _Machine, count: int) -> bytes:
    return b"".join(machine.open(machine.random.choice(machine.pids)) for _ in range(count))


def _execs(machine: _Machine, count: int) -> bytes:
    out = []
    for i in range(count // 6):
        parent = machine.random.choice(machine.pids)
        pid, records = machine.start(
            parent, machine.random.choice(PROGRAMS), (b"--job", str(i % 500).encode())
        )
        out += [records, machine.open(pid), machine.open(pid), machine.open(pid), machine.end(pid)]
    return b"".join(out)


def _unique(machine: _Machine, count: int) -> bytes:
    out = []
    for i in range(count):
        pid = machine.random.choice(machine.pids)
        if i % 16 == 0:
            child, records = machine.start(
                pid, machine.random.choice(PROGRAMS), (f"--unique={i:08x}".encode(),)
            )
            out += [records, machine.end(child)]
        path = f"{machine.random.choice(DIRECTORIES)}/{machine.random.getrandbits(64):016x}"
        out.append(machine.open(pid, path.encode()))
    return b"".join(out)


def _combinations(machine: _Machine, count: int) -> bytes:
    out = []
    for i in range(count):
        pid = machine.random.choice(machine.pids)
        if i % 16 == 0:
            words = machine.random.sample(_WORDS, 3)
            child, records = machine.start(
                pid, machine.random.choice(PROGRAMS), tuple(word.encode() for word in words)
            )
            out += [records, machine.end(child)]
        first, second = machine.random.sample(_WORDS, 2)
        path = (
            f"{machine.random.choice(DIRECTORIES)}/{first}/{second}"
            f"{machine.random.choice(EXTENSIONS)}"
        )
        out.append(machine.open(pid, path.encode()))
    return b"".join(out)


_MAKERS: dict[str, Callable[[_Machine, int], bytes]] = {
    "mixed": _mixed,
    "open": _opens,
    "exec": _execs,
    "unique": _unique,
    "combinations": _combinations,
}


def workload(name: str, count: int, seed: int = 1) -> Workload:
    """Make about ``count`` records of a stream; raises KeyError for an unknown name."""
    machine = _Machine(seed, paths=min(200_000, max(1000, count)))
    processes = tuple(machine.table.values())
    records = _MAKERS[name](machine, count)
    return Workload(name, records, _count(records), processes)


def _count(records: bytes) -> int:
    at = count = 0
    while at < len(records):
        at += int.from_bytes(records[at + 8 : at + 12], "little")
        count += 1
    return count


# Rules in the shape of published ones: per thousand, 440 on exec, 200 on open, 200 on the network,
# the rest on several; two thirds have a negated list of programs, a third ask about ancestors.

_BEGINNINGS = ("net", "pay", "root", "key", "scan", "mine", "dump", "back", "cry")
_ENDINGS = ("load", "door", "kit", "er", "pass", "tool", "cat", "map", "bot", "shell")
_WORDS = [f"{first}{second}" for first in _BEGINNINGS for second in _ENDINGS]
_LISTS = [PROGRAMS[i : i + 6] for i in range(0, len(PROGRAMS) - 6, 3)]


def _rule_text(draw: random.Random, number: int) -> str:
    luck = draw.random()
    programs = ", ".join(draw.choice(_LISTS))
    others = ", ".join(draw.choice(_LISTS))
    word, second = draw.sample(_WORDS, 2)
    unique = f"{word}{number:x}"
    if luck < 0.44:
        parts = ["evt.type in (execve, execveat)"]
        parts.append(
            draw.choice(
                (
                    f"proc.name in ({word}, {second}, {unique})",
                    f"proc.cmdline contains {unique}",
                    f'proc.args contains "--{word}"',
                    f"(proc.exepath startswith /tmp/{word} or proc.exepath startswith /dev/shm)",
                    f"(proc.name = {unique} or proc.args endswith {second})",
                    f"proc.name in ({programs}) and proc.args contains {unique}",
                )
            )
        )
    elif luck < 0.64:
        parts = ["evt.type in (open, openat, openat2)"]
        parts.append(
            draw.choice(
                (
                    f"evt.is_open_write=true and fd.name startswith /etc/{word}",
                    f"evt.is_open_read=true and fd.name in (/etc/shadow, /etc/{unique})",
                    f"fd.name contains {unique}",
                    f"fd.directory in (/root/.{second}, /etc/{word}, /home/{unique})",
                    f"fd.name endswith .{unique}",
                    f"evt.is_open_write=true and fd.filename = {unique}.conf",
                    f"fd.name startswith /var/{word} and fd.name endswith .{second}",
                )
            )
        )
    elif luck < 0.84:
        parts = [draw.choice(("evt.type = connect", "evt.type in (connect, accept, accept4)"))]
        parts.append(
            draw.choice(
                (
                    f"fd.sport in ({number % 60000 + 1}, 4444, 31337)",
                    f'fd.sip = "10.9.{number % 256}.{draw.randrange(256)}"',
                    f"fd.sport = {number % 60000 + 1} and proc.name in ({programs})",
                    f"fd.l4proto = tcp and fd.rport > {60000 + number % 5000}",
                )
            )
        )
    else:
        parts = [
            draw.choice(
                (
                    f"fd.name startswith /opt/{unique}",
                    f"proc.cmdline contains {unique} and evt.type in (execve, connect)",
                    f"evt.type = listen and fd.sport = {number % 60000 + 1}",
                    f"proc.name = {unique}",
                )
            )
        ]
    if draw.random() < 0.66:
        parts.append(f"not proc.name in ({others})")
    if draw.random() < 0.33:
        parts.append(
            draw.choice(
                (
                    f"not proc.pname in ({programs})",
                    f"proc.aname[2] in ({programs})",
                    f"not proc.aname[3] in ({others})",
                    f"not proc.aname in ({word}, sshd)",
                )
            )
        )
    return " and ".join(parts)


def rule_texts(count: int, seed: int = 2) -> list[str]:
    """Make the conditions of ``count`` rules, as text."""
    draw = random.Random(seed)
    return [_rule_text(draw, number) for number in range(count)]


def rules(count: int, seed: int = 2) -> list[Rule]:
    """Make ``count`` rules."""
    return [
        Rule(f"rule {number}", parse_condition(text), "", 4)
        for number, text in enumerate(rule_texts(count, seed))
    ]
