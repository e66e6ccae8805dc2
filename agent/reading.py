"""The helper that reads what takes rights: /proc, and executables for their SHA-256.

It runs `main` with its starter's rights, and gives up all but CAP_SYS_PTRACE, with the environment
or executables CAP_DAC_READ_SEARCH. It interprets nothing, and can do nothing else than answer on
its sockets until they are closed. A thread reads executables, so that a large one holds up no
answer about a process; the other one has CAP_DAC_READ_SEARCH only for the environment.

Arguments: FILES EXECUTABLES ARGS_MAX ENV_MAX BYTES_MAX [USER]

FILES        socket, SOCK_STREAM. Request: `U32`, a process id, or 0 for all process ids.
             Answer: `U32`, a length, then nothing where there is no such process, the parts of
             `process`, or the ids, `U32` each
EXECUTABLES  socket, SOCK_SEQPACKET. Request: `REQUEST`, then a path. Answer: `ANSWER`
ARGS_MAX     of a command line so many bytes are read
ENV_MAX      of an environment; 0: none is read
BYTES_MAX    larger executables are not read; 0: none is read
USER         whom it becomes

It imports next to nothing: each host has one, all the time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import threading
import time

from vedette.bpf import privileges

FILE_BYTES_MAX = 1 << 20
"""More than /proc/PID/status has where a process is in 65,536 groups (NGROUPS_MAX)."""
PIDS_MAX = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
ASKERS_MAX = 8
"""Processes by which one executable is looked for."""
PATH_BYTES_MAX = 4096
U32 = struct.Struct("<I")
SIZE = struct.Struct("<i")
INODE = struct.Struct("<6Qqq")
"""dev, ino, mode, nlink, uid, gid, ctime_ns, mtime_ns, of stat(2)."""
REQUEST = struct.Struct(f"=IIQQ{ASKERS_MAX}I")
"""number, device, inode, ctime_ns, who executed it (0: nobody)."""
ANSWER = struct.Struct("=IiQ32s")
"""number, errno, size, SHA-256."""
WHAT = "the helper that reads /proc and executables"

_AT_STATX_DONT_SYNC, _STATX_BASIC_STATS = 0x4000, 0x7FF  # include/uapi/linux
_STATX = struct.Struct("=16xIIIH2xQ56xqI4xqI12xII")
"""nlink, uid, gid, mode, ino; ctime and mtime, each in s and ns; dev, major and minor: statx(2)."""
_STATX_BYTES = 256
_libc = ctypes.CDLL(None, use_errno=True)
_CHUNK_BYTES = 1 << 20
_DELETED = b" (deleted)"


def pids() -> list[int]:
    """Return the processes that there are."""
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdecimal()][:PIDS_MAX]


def process(pid: int, args_bytes_max: int, env_bytes_max: int) -> list[bytes | None] | None:
    """Return a process's files in the order of `procfiles.Files`, or None where there is none.

    A part is None where there is none, or it is not shown. All are opened below one handle of the
    process's folder, which dies with the process, and `stat` is read last: a process that is alive
    then was so during all reads before.
    """
    try:
        folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return [
            _slurp(folder, "status"),
            _slurp(folder, "cmdline", args_bytes_max),
            _loginuid(folder),
            _link(folder, b"exe"),
            _link(folder, b"cwd"),
            _inode(folder),
            _environment(folder, env_bytes_max) if env_bytes_max else None,
            _slurp(folder, "cgroup"),
            _target(folder, b"fd/0"),
            _target(folder, b"fd/1"),
            _target(folder, b"fd/2"),
            _slurp(folder, "stat"),
        ]
    except OSError:
        # ESRCH and ENOENT: gone.
        return None
    finally:
        os.close(folder)


def _slurp(folder: int, name: str, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        parts: list[bytes] = []
        left = bytes_max
        while left > 0 and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _loginuid(folder: int) -> bytes | None:
    try:
        return _slurp(folder, "loginuid")
    except FileNotFoundError:  # a kernel without audit
        return None


def _environment(folder: int, bytes_max: int) -> bytes | None:
    try:
        found = _slurp(folder, "environ", bytes_max)
    except PermissionError:
        return None
    return found or None


def _statx(folder: int, name: bytes) -> tuple[int, ...]:
    """Return what the kernel knows of a file, as `_STATX`, without asking its file system again.

    That of a server that is away, or of somebody who means ill, would not answer. Raises OSError.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(folder, name, _AT_STATX_DONT_SYNC, _STATX_BASIC_STATS, buffer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return _STATX.unpack_from(buffer)


def _inode(folder: int) -> bytes | None:
    try:
        nlink, uid, gid, mode, ino, *times, major, minor = _statx(folder, b"exe")
    except OSError:
        return None
    ctime_s, ctime_ns, mtime_s, mtime_ns = times
    return INODE.pack(
        os.makedev(major, minor),
        *(ino, mode, nlink, uid, gid),
        ctime_s * 1_000_000_000 + ctime_ns,
        mtime_s * 1_000_000_000 + mtime_ns,
    )


def _target(folder: int, name: bytes) -> bytes | None:
    """Return what a link of /proc/PID/fd shows; None for what is closed or cannot be told.

    The file behind it is not asked: its file system may answer late, or never.
    """
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _link(folder: int, name: bytes) -> bytes | None:
    """Return where exe or cwd points; None for kernel threads and where it cannot be told.

    The kernel marks a file that was deleted since by a suffix, which a file's name may also
    end with; only a file without links is really gone.
    """
    try:
        target = os.readlink(name, dir_fd=folder)
        if target.endswith(_DELETED) and _statx(folder, name)[0] == 0:
            target = target.removesuffix(_DELETED)
    except OSError:
        return None
    # "(unreachable)/..." is a directory outside the root that we see.
    return target if target.startswith(b"/") else None


def packed(parts: list[bytes | None]) -> bytes:
    """Return parts as they are sent: each its size, -1 for None, and its bytes."""
    made: list[bytes] = []
    for part in parts:
        made += (SIZE.pack(-1),) if part is None else (SIZE.pack(len(part)), part)
    return b"".join(made)


def _serve_files(fd: int, args_bytes_max: int, env_bytes_max: int) -> None:
    """Answer requests until the other end closes."""
    asked = b""
    while part := os.read(fd, U32.size - len(asked)):
        asked += part
        if len(asked) < U32.size:
            continue
        (number,) = U32.unpack(asked)
        asked = b""
        if number:
            answer = packed(process(number, args_bytes_max, env_bytes_max) or [])
        else:
            answer = b"".join(map(U32.pack, pids()))
        left = memoryview(U32.pack(len(answer)) + answer)
        while left:
            left = left[os.write(fd, left) :]


def _is(found: os.stat_result, device: int, inode: int, ctime_ns: int) -> bool:
    """Whether an open file is the one that was executed.

    btrfs and overlayfs show another device than the kernel's inode has, which is none of a disk's
    (major number 0) in both cases: then inode and change time, to the nanosecond, decide.
    """
    shown = os.major(found.st_dev) << 20 | os.minor(found.st_dev)
    anonymous = os.major(found.st_dev) == 0 and device >> 20 == 0
    return (
        found.st_mode >> 12 == 0o10  # S_ISREG
        and (found.st_ino, found.st_ctime_ns) == (inode, ctime_ns)
        and (shown == device or anonymous)
    )


def _open(file: tuple[int, int, int], askers: list[int], path: bytes) -> int:
    """Open a file for reading. Raises OSError: ESTALE where none of its names leads to it now."""
    names = [b"/proc/%d/exe" % pid for pid in askers if pid]
    if path.startswith(b"/"):
        names.append(path)
    for name in names:
        try:
            # Only looked at first: opening a pipe or a device that took the path can do harm.
            handle = os.open(name, os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        try:
            if _is(os.fstat(handle), *file):
                return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
    raise OSError(errno.ESTALE, "not there any more")


def _sha256(
    file: tuple[int, int, int], askers: list[int], path: bytes, bytes_max: int
) -> tuple[int, bytes]:
    """Return a file's size in bytes and its SHA-256.

    Raises OSError: ESTALE where it is gone or has changed meanwhile, EFBIG where it is too large.
    """
    # It brings libcrypto's 4 MB along, which a host whose rules ask for no hash does without.
    from hashlib import sha256

    fd = _open(file, askers, path)
    try:
        digest = sha256()
        size = os.fstat(fd).st_size
        if size <= bytes_max:
            size = 0
            while size <= bytes_max and (part := os.read(fd, _CHUNK_BYTES)):
                size += len(part)
                digest.update(part)
        if size > bytes_max:
            raise OSError(errno.EFBIG, "too large")
        if not _is(os.fstat(fd), *file):
            raise OSError(errno.ESTALE, "changed while it was read")
        return size, digest.digest()
    finally:
        os.close(fd)


def _serve_executables(fd: int, bytes_max: int) -> None:
    """Answer requests until the other end closes."""
    privileges.set_name("vedette-hash")
    before_s = time.thread_time()
    while message := os.read(fd, REQUEST.size + PATH_BYTES_MAX):
        number, device, inode, ctime_ns, *askers = REQUEST.unpack_from(message)
        try:
            file = (device, inode, ctime_ns)
            size, found = _sha256(file, askers, message[REQUEST.size :], bytes_max)
            answer = ANSWER.pack(number, 0, size, found)
        except OSError as error:
            answer = ANSWER.pack(number, error.errno or errno.EIO, 0, bytes(32))
        os.write(fd, answer)
        # Half of a processor at the most. Not a lower priority: on a busy host a thread that has
        # one keeps the other from Python's lock, for a second and more.
        spent_s, before_s = time.thread_time() - before_s, time.thread_time()
        time.sleep(spent_s)


def _whole(fd: int, bytes_max: int) -> None:
    """Be the thread that reads executables; if it fails, so does the whole."""
    try:
        _serve_executables(fd, bytes_max)
    except BrokenPipeError:
        return
    except BaseException as error:
        os.write(2, f"{WHAT}: {error!r}\n".encode())
        os._exit(1)


def main() -> None:
    """Be the helper."""
    files, executables, args_bytes_max, env_bytes_max, bytes_max = map(int, sys.argv[1:6])
    user = sys.argv[6] if len(sys.argv) > 6 else None
    keep = {"CAP_SYS_PTRACE"} | ({"CAP_DAC_READ_SEARCH"} if env_bytes_max else set())
    all_ = keep | ({"CAP_DAC_READ_SEARCH"} if bytes_max else set())
    privileges.become_helper(WHAT, "vedette-read", all_, user)
    if bytes_max:
        threading.Thread(target=_whole, args=(executables, bytes_max), daemon=True).start()
        privileges.keep_in_thread(keep)
    _serve_files(files, args_bytes_max, env_bytes_max)
