"""Processes as /proc shows them: the table's first content, and answers about unknown pids.

Everything is bytes: a process chooses its own name, arguments and paths. A process may vanish
between two reads; then it is None and never half of one process and half of its successor
(`procfiles.LocalFiles.read`). The agent is expected in the initial pid namespace (proc(5),
pid_namespaces(7)).
"""

from __future__ import annotations

import os
import stat as stat_module
from pathlib import Path
from typing import NamedTuple

from vedette.agent.procfiles import Files, HelperFiles, Inode, LocalFiles
from vedette.core.engine import Process
from vedette.core.layout import ARGS_MAX, EXE_FLAGS, PATH_MAX
from vedette.core.stdio import from_links

UNSET_ID = 0xFFFFFFFF
"""A login uid that was never set (audit's AUDIT_UID_UNSET)."""

_DELETED = b" (deleted)"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def in_initial_pid_namespace() -> bool:
    """Whether the process ids that /proc shows us are those that the kernel's records have."""
    return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE


def cgroup_mount() -> bytes | None:
    """Return where cgroup v2 is mounted, or None where it is not (proc_pid_mountinfo(5))."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        if right.split(b" ", 1)[0] == b"cgroup2":
            return _unescape(left.split(b" ")[4])
    return None


def _unescape(path: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(code, char)
    return path


class _Exe(NamedTuple):
    device: int
    flags: int
    inode: int
    ctime_ns: int
    mtime_ns: int


class _Status:
    """The content of /proc/PID/status (proc_pid_status(5))."""

    def __init__(self, content: bytes) -> None:
        self._lines: dict[str, list[bytes]] = {}
        for line in content.splitlines():
            name, _, values = line.partition(b":")
            self._lines[name.decode("latin-1")] = values.split()
        # A name may hold a newline, but not before these lines: it comes escaped.
        self.ruid, self.uid = (int(value) for value in self._lines["Uid"][:2])
        self.rgid, self.gid = (int(value) for value in self._lines["Gid"][:2])

    def capabilities(self, name: str) -> int:
        return int(self._lines[name][0], 16)

    def innermost(self, name: str) -> int:
        """Return an id as the process's own pid namespace has it; 0: it is not in it."""
        depth = len(self._lines.get("NSpid", ()))
        values = self._lines.get(name, [])
        return int(values[-1]) if values and len(values) >= depth else 0

    def may_write(self, found: Inode) -> bool:
        """Whether the real user could write a file: is_writable() of the kernel programs."""
        if self.ruid == self.uid and self.capabilities("CapEff") >> 1 & 1:  # CAP_DAC_OVERRIDE
            return True
        if self.ruid == found.uid:
            return bool(found.mode & stat_module.S_IWUSR)
        groups = {self.rgid, *(int(group) for group in self._lines.get("Groups", ()))}
        mask = stat_module.S_IWGRP if found.gid in groups else stat_module.S_IWOTH
        return bool(found.mode & mask)


def _anonymous_device() -> int:
    """Return the device of the kernel's own tmpfs, where memory files are."""
    memory = os.memfd_create("vedette", os.MFD_CLOEXEC)
    try:
        return os.fstat(memory).st_dev
    finally:
        os.close(memory)


class ProcFS:
    """Reads processes of this host.

    scope   folder of a cgroup v2 subtree; None: the whole host. It narrows `snapshot` only.
    files   who reads the files: this process by default, or a helper
    Raises OSError where the scope is no folder below the cgroup v2 mount.
    """

    def __init__(
        self, scope: bytes | None = None, files: LocalFiles | HelperFiles | None = None
    ) -> None:
        self._files = files or LocalFiles()
        self._anonymous = _anonymous_device()
        self._mount = cgroup_mount()
        self._scope: bytes | None = None
        if scope is not None:
            real = os.path.realpath(scope)
            if self._mount is None or not (real + b"/").startswith(self._mount + b"/"):
                raise OSError(f"{os.fsdecode(scope)} is not below the cgroup v2 mount")
            self._scope = real[len(self._mount) :]

    def read(self, pid: int) -> Process | None:
        """Return the process, or None where there is none (any more) or it is a zombie."""
        files = self._files.read(pid)
        return None if files is None else self._process(pid, files)

    def read_in_scope(self, pid: int) -> Process | None:
        """Return as `read` a process of the scope; None for others."""
        files = self._files.read(pid)
        return None if files is None or not self._in_scope(files) else self._process(pid, files)

    def pids(self) -> list[int]:
        """Return the host's processes."""
        return self._files.pids()

    def is_running(self, pid: int, start_time_ns: int) -> bool:
        """Whether the process of that start is there, and no zombie.

        start_time_ns  as /proc or a record has it; they differ within a tick (proc(5), starttime)
        """
        try:
            # Shown to everybody, unless /proc is mounted with hidepid.
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            files = self._files.read(pid)
            if files is None:
                return False
            stat = files.stat
        try:
            fields = stat.rpartition(b") ")[2].split()
            state, threads, start_ticks = fields[0], int(fields[17]), int(fields[19])
        except (ValueError, IndexError):
            return False
        return start_ticks == start_time_ns // _TICK_NS and (state not in b"ZX" or threads > 1)

    def snapshot(self) -> list[Process]:
        """Return the scope's processes, and their ancestors, by pid."""
        found: dict[int, Process] = {}
        for pid in self._files.pids():
            files = self._files.read(pid)
            if files is not None and self._in_scope(files):
                process = self._process(pid, files)
                if process is not None:
                    found[pid] = process
        for process in list(found.values()):
            ppid = process.ppid
            while ppid and ppid not in found:
                parent = self.read(ppid)
                if parent is None:
                    break
                found[ppid] = parent
                ppid = parent.ppid
        return [found[pid] for pid in sorted(found)]

    def _in_scope(self, files: Files) -> bool:
        if self._scope is None:
            return True
        path = _cgroup_path(files.cgroup)
        return path is not None and (path.rstrip(b"/") + b"/").startswith(self._scope + b"/")

    def _process(self, pid: int, files: Files) -> Process | None:
        try:
            return self._parse(pid, files)
        except (ValueError, IndexError, KeyError):
            # Short content: gone between open and read.
            return None

    def _parse(self, pid: int, files: Files) -> Process | None:
        status = _Status(files.status)
        args = files.cmdline
        if args and not args.endswith(b"\0"):
            args = args[: ARGS_MAX - 1] + b"\0"
        # None on a kernel without audit.
        loginuid = UNSET_ID if files.loginuid is None else int(files.loginuid)
        exe_path = None if files.exe is None else files.exe[:PATH_MAX]
        cwd = None if files.cwd is None else files.cwd[:PATH_MAX]
        exe = None if files.inode is None else self._exe(files.inode, status)
        if exe is not None and exe.flags & EXE_FLAGS["memfd"] and exe_path is not None:
            # As the kernel's own name of it, and as a record has it.
            exe_path = exe_path.removeprefix(b"/")
        cgroup = _cgroup_path(files.cgroup)
        cgroup_id = self._cgroup_id(cgroup)
        # The name stands in parentheses and may itself hold any byte, so the last one counts.
        head, _, tail = files.stat.rpartition(b") ")
        stat = tail.split()
        state, ppid, session = stat[0], int(stat[1]), int(stat[3])
        threads, start_ticks = int(stat[17]), int(stat[19])
        # A leader that left its threads behind looks like a zombie, but the process lives.
        if state in b"ZX" and threads <= 1:
            return None
        return Process(
            pid=pid,
            ppid=ppid,
            uid=status.uid,
            gid=status.gid,
            loginuid=loginuid,
            session=session,
            start_time_ns=start_ticks * _TICK_NS,
            cgroup_id=cgroup_id,
            comm=head.partition(b" (")[2],
            exe_path=exe_path,
            args=args,
            cwd=cwd,
            env=files.environ,
            stdio=from_links(files.stdio),
            cgroup=None if cgroup is None or not cgroup_id else cgroup[:PATH_MAX],
            exe_dev=0 if exe is None else exe.device,
            exe_flags=0 if exe is None else exe.flags,
            exe_ino=0 if exe is None else exe.inode,
            exe_ctime_ns=0 if exe is None else exe.ctime_ns,
            exe_mtime_ns=0 if exe is None else exe.mtime_ns,
            cap_inheritable=status.capabilities("CapInh"),
            cap_permitted=status.capabilities("CapPrm"),
            cap_effective=status.capabilities("CapEff"),
            pgid=int(stat[2]),
            # The minor number's upper bits make it negative beyond 2^31.
            tty=int(stat[4]) & 0xFFFFFFFF,
            vpid=status.innermost("NSpid"),
            vpgid=status.innermost("NSpgid"),
            vsid=status.innermost("NSsid"),
        )

    def _exe(self, found: Inode, status: _Status) -> _Exe:
        """Return what the executable's inode says, in the terms of struct vedette_exec.

        Layers of an overlay are not told apart here. Who may write it is judged by its mode alone,
        and by CAP_DAC_OVERRIDE; the mount's flags are not looked at.
        """
        flags = EXE_FLAGS["known"]
        if found.mode & stat_module.S_ISUID:
            flags |= EXE_FLAGS["setuid"]
        if found.mode & stat_module.S_ISGID and found.mode & stat_module.S_IXGRP:
            flags |= EXE_FLAGS["setgid"]
        if found.nlink == 0:
            flags |= EXE_FLAGS["deleted"]
        if found.dev == self._anonymous:
            flags |= EXE_FLAGS["memfd"]
        if status.may_write(found):
            flags |= EXE_FLAGS["writable"]
        device = os.major(found.dev) << 20 | os.minor(found.dev)
        return _Exe(device, flags, found.ino, found.ctime_ns, found.mtime_ns)

    def _cgroup_id(self, path: bytes | None) -> int:
        """Return the inode number of the process's cgroup folder; 0 where it is not known."""
        if path is None or self._mount is None:
            return 0
        try:
            return Path(os.fsdecode(self._mount + path)).stat().st_ino
        except OSError:
            return 0


def _cgroup_path(content: bytes) -> bytes | None:
    """Return the cgroup v2 path of /proc/PID/cgroup (cgroups(7)): its line begins with `0::`."""
    for line in content.splitlines():
        if line.startswith(b"0::"):
            return line[3:].removesuffix(_DELETED)
    return None
