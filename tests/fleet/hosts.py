"""Hosts in namespaces: real sshd, real accounts, real processes, nothing of this machine touched.

A `Fleet` is a bridge in a network namespace of its own and hosts that hang on it. A host has its
own network, mount and UTS namespace and a cgroup v2 directory in which everything that runs *on*
the host lives. Its root file system is this machine's, read-only, with its own /etc/passwd, /run,
/var/log, /home and the like mounted over it.

Nothing is named in the file system but two directories, `vedette-PID` in the cgroup v2 mount and
`vedette-PID` in the temporary directory, PID being the process that made the fleet. Namespaces,
links and mounts belong to processes in that cgroup and go when they do, so removing a fleet is:
kill the cgroup, remove the two directories. That also works for a fleet whose owner was killed
(`remove_leftovers`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

PROJECT = Path(__file__).resolve().parents[2]
NETWORK = "10.77.0"
BRIDGE_ADDRESS = f"{NETWORK}.254"
SSHD = "/usr/sbin/sshd"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WAIT_S = 40.0

_ENDING = (signal.SIGALRM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# Directories that a host has for itself, with their modes.
OWN_DIRECTORIES = {
    "/etc/ssh": 0o755,
    "/home": 0o755,
    "/root": 0o700,
    "/run": 0o755,
    "/tmp": 0o1777,
    "/var/log": 0o755,
    "/var/tmp": 0o1777,
}
OWN_FILES = ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/hostname", "/etc/hosts")

_NAME = re.compile(r"vedette-([0-9]+)\Z")
# Above Debian's ordinary users and below its dynamic ones; those that are taken are skipped.
_UID_FIRST = 61_500
_UID_LAST = 65_000


class FleetError(Exception):
    """The fleet cannot be made here; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of one host. Without a password only keys let it in."""

    name: str
    password: str | None = None
    uid: int = field(default=-1, kw_only=True)


def cgroup2_mount() -> Path:
    """Return where cgroup v2 is mounted. Raises FleetError where it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(target)
    raise FleetError("no writable cgroup v2 mount: mount -t cgroup2 none /sys/fs/cgroup/unified")


def start_ticks(pid: int) -> str | None:
    """Return the start time of a process, in clock ticks since boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[19]


def _crypt(password: str) -> str:
    """Hash a password as crypt(3) does, SHA-512 form."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    hashed = library.crypt(password.encode(), f"$6${secrets.token_hex(8)}$".encode())
    if not isinstance(hashed, bytes):
        raise FleetError("crypt(3) refuses SHA-512 passwords on this machine")
    return hashed.decode()


def _free_uids(count: int) -> list[int]:
    """Return uids that this machine gives to nobody: an account of a host is no account here."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = [uid for uid in range(_UID_FIRST, _UID_LAST) if uid not in taken]
    return free[:count]


def _write(path: Path, text: str, mode: int = 0o644, uid: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.chown(path, uid, uid)


class Place:
    """A set of namespaces, held open by a process that sleeps in them.

    name       what the place is called within its fleet
    address    its IPv4 address
    keeper     pid of the process that holds the namespaces
    """

    def __init__(self, fleet: Fleet, name: str, address: str, namespaces: str, setup: str) -> None:
        self.fleet = fleet
        self.name = name
        self.address = address
        self._enter = [f"--{kind}" for kind in namespaces.split()]
        script = f"{setup}\necho ready\nexec sleep infinity"
        argv = ["unshare", *self._enter]
        if "mount" in namespaces.split():
            argv += ["--propagation", "private"]
        keeper = fleet.spawn(
            [*argv, "sh", "-euc", script],
            cgroup="services",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        with keeper.stdout, keeper.stderr:
            if keeper.stdout.readline() != "ready\n":
                raise FleetError(f"namespaces of {name}: {keeper.stderr.read().strip()}")
        self.keeper = keeper.pid

    def argv(self, argv: Sequence[str | Path], user: Account | None = None) -> list[str]:
        """Return the command that runs argv in this place, as root or as a user of the host."""
        command = ["nsenter", "--target", str(self.keeper), *self._enter, "--"]
        if user is not None:
            number = str(user.uid)
            command += ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", "--"]
        return command + [str(part) for part in argv]

    def spawn(
        self,
        argv: Sequence[str | Path],
        *,
        user: Account | None = None,
        cgroup: str = "services",
        **options: object,
    ) -> subprocess.Popen[str]:
        """Start argv in this place. Options are those of subprocess.Popen."""
        return self.fleet.spawn(self.argv(argv, user), cgroup=cgroup, text=True, **options)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: Account | None = None,
        cgroup: str = "services",
        stdin: str = "",
        timeout_s: float = WAIT_S,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run argv in this place to its end, output captured.

        Raises FleetError where check is set and it fails, and where it takes too long.
        """
        process = self.spawn(
            argv,
            user=user,
            cgroup=cgroup,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise FleetError(
                f"{self.name}: {argv[0]} took more than {timeout_s:g} s: {err}"
            ) from None
        if check and process.returncode != 0:
            raise FleetError(f"{self.name}: {argv[0]} ended with {process.returncode}: {err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Host(Place):
    """A host: its own accounts, sshd, log files and cgroup.

    files    the directory whose subdirectories are mounted over the host's own
    users    the accounts by name, with the uids that they got
    """

    def __init__(self, fleet: Fleet, name: str, address: str, accounts: Sequence[Account]) -> None:
        self.files = fleet.directory / name
        numbers = _free_uids(len(accounts) + 1)
        self.users = {
            account.name: Account(account.name, account.password, uid=uid)
            for account, uid in zip(accounts, numbers, strict=False)
        }
        self._write_files(fleet, name, address, numbers[-1])
        fleet.make_cgroup(name)
        super().__init__(fleet, name, address, "mount uts net", self._setup(fleet, name))

    def _write_files(self, fleet: Fleet, name: str, address: str, sshd_uid: int) -> None:
        for path, mode in OWN_DIRECTORIES.items():
            directory = self.files / path[1:]
            directory.mkdir(parents=True)
            directory.chmod(mode)
        etc = self.files / "etc"
        passwd, shadow, group = [], [], ["utmp:x:43:"]
        for entry in pwd.getpwall():
            if entry.pw_uid < 1000 and entry.pw_name != "sshd":
                shell = "/bin/bash" if entry.pw_uid == 0 else "/usr/sbin/nologin"
                ids = f"{entry.pw_uid}:{entry.pw_gid}"
                passwd.append(f"{entry.pw_name}:x:{ids}::{entry.pw_dir}:{shell}")
                shadow.append(f"{entry.pw_name}:*:19000:0:99999:7:::")
                group.append(f"{entry.pw_name}:x:{entry.pw_gid}:")
        passwd.append(f"sshd:x:{sshd_uid}:{sshd_uid}::/run/sshd:/usr/sbin/nologin")
        shadow.append("sshd:*:19000:0:99999:7:::")
        for user in self.users.values():
            passwd.append(f"{user.name}:x:{user.uid}:{user.uid}::/home/{user.name}:/bin/bash")
            hashed = "*" if user.password is None else _crypt(user.password)
            shadow.append(f"{user.name}:{hashed}:19000:0:99999:7:::")
            group.append(f"{user.name}:x:{user.uid}:")
            home = self.files / "home" / user.name
            home.mkdir()
            home.chmod(0o750)
            os.chown(home, user.uid, user.uid)
        _write(etc / "passwd", "\n".join(passwd) + "\n")
        _write(etc / "shadow", "\n".join(shadow) + "\n", 0o600)
        _write(etc / "group", "\n".join(group) + "\n")
        _write(etc / "hostname", f"{name}\n")
        _write(etc / "hosts", "127.0.0.1 localhost\n" + fleet.hosts_file())
        for path, mode in {
            "var/log/btmp": 0o600,
            "var/log/wtmp": 0o644,
            "var/log/lastlog": 0o644,
            "run/utmp": 0o644,
        }.items():
            _write(self.files / path, "", mode)
        (self.files / "run/sshd").mkdir(mode=0o755)
        # Without PAM, so that the accounts above are all there is and no module of this
        # machine's configuration takes part. sshd then writes btmp and wtmp itself.
        config = [
            f"ListenAddress {address}:22",
            "HostKey /etc/ssh/ssh_host_ed25519_key",
            "PidFile none",
            "UsePAM no",
            "UseDNS no",
            "PasswordAuthentication yes",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin no",
            "AuthorizedKeysFile .ssh/authorized_keys",
            "PrintMotd no",
            "Subsystem sftp internal-sftp",
        ]
        _write(etc / "ssh/sshd_config", "\n".join(config) + "\n")
        self.make_key(etc / "ssh/ssh_host_ed25519_key", name)

    def make_key(self, path: Path, comment: str, uid: int = 0) -> str:
        """Make an SSH key without passphrase at path (of this machine); return its public half."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        for made in (path.parent, path, path.with_name(path.name + ".pub")):
            if uid:
                os.chown(made, uid, uid)
        return path.with_name(path.name + ".pub").read_text()

    def home(self, user: str) -> Path:
        """Return where a user's home directory lies, seen from outside the host."""
        return self.files / "home" / user

    def place_file(self, user: str, name: str, text: str | bytes, mode: int = 0o600) -> None:
        """Write a file into a user's home directory, owned by the user."""
        uid = self.users[user].uid
        path = self.home(user) / name
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700)
            os.chown(path.parent, uid, uid)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        os.chown(path, uid, uid)

    def _setup(self, fleet: Fleet, name: str) -> str:
        """Return the shell commands that turn fresh namespaces into this host."""
        quote = shlex.quote
        lines = [f"hostname {quote(name)}"]
        for path in OWN_DIRECTORIES:
            source = self.files / path[1:]
            # What the services need stays visible where a directory of the host would hide it.
            for needed in (PROJECT, fleet.directory):
                if needed.is_relative_to(path):
                    kept = quote(str(source / needed.relative_to(path)))
                    lines.append(f"mkdir -p {kept}; mount --bind {quote(str(needed))} {kept}")
            lines.append(f"mount --rbind {quote(str(source))} {path}")
        # Elsewhere it would be read-only with the rest.
        directory = quote(str(fleet.directory))
        lines.append(f"mount --bind {directory} {directory}")
        for path in OWN_FILES:
            lines.append(f"mount --bind {quote(str(self.files / path[1:]))} {path}")
        lines += [
            "mount -t tmpfs -o mode=1777,size=64m none /dev/shm",
            "mount -o remount,bind,ro /",
            "ip link set lo up",
        ]
        return "\n".join(lines)

    def start_sshd(self) -> None:
        """Start sshd on the host; `wait_sshd` says when it listens."""
        with (self.files / "sshd.log").open("w") as log:
            self._sshd = self.spawn(
                [SSHD, "-D", "-e", "-f", "/etc/ssh/sshd_config"],
                cgroup=self.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_sshd(self) -> None:
        """Return once sshd listens. Raises FleetError with its log where it does not."""
        deadline = time.monotonic() + WAIT_S
        table = Path(f"/proc/{self.keeper}/net/tcp")
        while not any(
            row.split()[1].endswith(":0016") and row.split()[3] == "0A"
            for row in table.read_text().splitlines()[1:]
        ):
            if self._sshd.poll() is not None or time.monotonic() > deadline:
                log = (self.files / "sshd.log").read_text()
                raise FleetError(f"sshd of {self.name} does not listen: {log.strip()}")
            time.sleep(0.02)


class Fleet:
    """Hosts a, b, c, … on one bridge. Use as a context manager: leaving it removes everything.

    accounts   for each host's name, in order, its accounts
    directory  the fleet's directory; anything put there goes with the fleet
    """

    def __init__(self, accounts: Mapping[str, Sequence[Account]]) -> None:
        self._accounts = dict(accounts)
        self._processes: list[subprocess.Popen[str]] = []
        self.name = f"vedette-{os.getpid()}"
        self.directory = Path(tempfile.gettempdir()).resolve() / self.name
        self.addresses = {
            host: f"{NETWORK}.{number}" for number, host in enumerate(self._accounts, 1)
        }
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        check_needs()
        remove_leftovers()
        self.cgroup = cgroup2_mount() / self.name
        try:
            self.directory.mkdir(mode=0o700)
            (self.directory / "owner").write_text(start_ticks(os.getpid()) or "")
            self.cgroup.mkdir()
            self._start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _start(self) -> None:
        self.make_cgroup("services")
        self.bridge = Place(
            self,
            "bridge",
            BRIDGE_ADDRESS,
            "net",
            "ip link set lo up\n"
            "ip link add br0 type bridge\n"
            f"ip address add {BRIDGE_ADDRESS}/24 dev br0\n"
            "ip link set br0 up",
        )
        for name, accounts in self._accounts.items():
            host = Host(self, name, self.addresses[name], accounts)
            self.hosts[name] = host
            self.bridge.run(
                [
                    "sh",
                    "-euc",
                    f"ip link add veth-{name} type veth peer name eth0 netns {host.keeper}\n"
                    f"ip link set veth-{name} master br0 up",
                ]
            )
            host.run(
                [
                    "sh",
                    "-euc",
                    f"ip address add {host.address}/24 dev eth0\n"
                    "ip link set eth0 up\n"
                    f"ip route add default via {BRIDGE_ADDRESS}",
                ]
            )
            host.start_sshd()
        for host in self.hosts.values():
            host.wait_sshd()

    def hosts_file(self) -> str:
        """Return the lines of /etc/hosts that name the fleet's hosts."""
        return "".join(f"{address} {name}\n" for name, address in self.addresses.items())

    def make_cgroup(self, name: str) -> Path:
        """Make and return a cgroup below the fleet's own."""
        path = self.cgroup / name
        path.mkdir()
        return path

    def spawn(
        self, argv: Sequence[str | Path], *, cgroup: str, **options: object
    ) -> subprocess.Popen[str]:
        """Start argv in one of the fleet's cgroups, in this machine's namespaces."""
        # The shell moves itself, so no instant of the program's life is outside the cgroup.
        enter = 'echo 0 > "$0" && exec "$@"'
        procs = str(self.cgroup / cgroup / "cgroup.procs")
        environment = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
        extra = options.pop("env", None)
        if isinstance(extra, Mapping):
            environment.update(extra)
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            ["sh", "-c", enter, procs, *map(str, argv)],
            env=environment,
            cwd="/",
            start_new_session=True,
            **options,
        )
        self._processes.append(process)
        return process

    def remove(self) -> None:
        """End every process of the fleet and remove what it made. Harmless when repeated.

        Signals wait until it is done: a second Ctrl-C does not leave half a fleet.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._remove()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _remove(self) -> None:
        if hasattr(self, "cgroup"):
            _remove_cgroup(self.cgroup)
        for process in self._processes:
            for stream in (process.stdin, process.stdout, process.stderr):
                _close(stream)
            process.wait()
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=not self.directory.exists())


def _close(stream: IO[str] | None) -> None:
    """Close a pipe; what was still to be written goes with the process that was to read it."""
    if stream is not None and not stream.closed:
        try:
            stream.close()
        except BrokenPipeError:
            return


def _remove_cgroup(cgroup: Path) -> None:
    """Kill what runs in a cgroup and below, then remove it. Raises FleetError if it stays."""
    if not cgroup.is_dir():
        return
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + WAIT_S
    while True:
        # Deepest first; a directory is busy until the last of its processes is gone.
        try:
            for path, _, _ in os.walk(cgroup, topdown=False):
                Path(path).rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise FleetError(f"{cgroup} stays: {error.strerror}") from error
        time.sleep(0.01)


def remove_leftovers() -> list[str]:
    """Remove fleets whose owner is gone; return their names.

    A fleet's name is its owner's pid; the file `owner` in its directory has the owner's start
    time, so a process that got the pid later does not pass for it.
    """
    removed = []
    temporary = Path(tempfile.gettempdir()).resolve()
    places = [cgroup2_mount(), temporary]
    names = {path.name for place in places for path in place.glob("vedette-*") if path.is_dir()}
    for name in sorted(names):
        match = _NAME.match(name)
        directory = temporary / name
        if match is None or (directory.exists() and directory.lstat().st_uid != 0):
            continue
        started = start_ticks(int(match[1]))
        owner = directory / "owner"
        if started is not None and (not owner.exists() or owner.read_text() in ("", started)):
            continue
        _remove_cgroup(places[0] / name)
        if directory.exists():
            shutil.rmtree(directory)
        removed.append(name)
    return removed


def check_needs() -> None:
    """Raise FleetError where this machine cannot carry a fleet, with what helps."""
    if os.geteuid() != 0:
        raise FleetError("a fleet needs root: sudo make demo")
    packages = {
        "ip": "iproute2",
        "nsenter": "util-linux",
        "setpriv": "util-linux",
        "ssh": "openssh-client",
        "ssh-keygen": "openssh-client",
        "unshare": "util-linux",
        SSHD: "openssh-server",
    }
    missing = sorted({package for tool, package in packages.items() if not shutil.which(tool)})
    if missing:
        raise FleetError(f"missing: apt-get install {' '.join(missing)}")
    cgroup2_mount()
