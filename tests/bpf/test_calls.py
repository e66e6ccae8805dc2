"""Every syscall that is a struct vedette_call, in each ABI, with success and with failure.

A small program makes the calls and prints what the kernel answered. Of every record each field
that the event type has is compared with what the program was told to do.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.bpf.conftest import Pool, Watch
from tests.bpf.records import ALL, split
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.calls import CALLS, SHORT_IDS, WIDE
from vedette.core import calls, layout
from vedette.core.expr import FieldRef
from vedette.core.fields import FIELDS, EventView, extract
from vedette.core.records import Record, decode
from vedette.core.twin import Process

pytestmark = pytest.mark.bpf

USERS = {0: b"root", 1: b"daemon", 65534: b"nobody"}
GROUPS = {0: b"root", 2: b"bin"}
ENOENT, ESRCH, EBADF, EINVAL, EPERM, EFAULT = -2, -3, -9, -22, -1, -14
ANY_ERROR = -4096
"""Which error it is depends on the kernel's configuration (modules, lockdown)."""
NO_PROCESS = 4194303
"""A process id that cannot be: below PID_MAX_LIMIT, and beyond this machine's pid_max."""

Expected = dict[str, str | bytes | int | None]


@dataclass
class Done:
    """What the program did: its folder, its process ids, the result of each call."""

    folder: Path
    pid: int
    parent: int
    results: list[int]

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"


@dataclass(frozen=True)
class Case:
    """One call to make.

    name      event type
    words     its arguments, as tests/bpf/calls.c takes them
    expected  what every field of the event has, given what was done
    result    what the kernel answers; None: anything that is no error
    before    calls that are made first, x86-64's numbers and words
    files     made in the folder first; a name with / at its end is a folder
    content   what is in them
    short     words for an ABI whose ids have 16 bits
    wide      words for an ABI that takes the length in two registers
    """

    name: str
    words: str
    expected: Callable[[Done], Expected]
    result: int | None = 0
    before: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    content: bytes = b"text"
    short: str | None = None
    wide: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{'ok' if self.result is None or self.result >= 0 else -self.result}"


@dataclass
class Machine:
    """The program under a capture of every call."""

    scope: Scope
    program: Path
    watch: Watch
    folders: Iterator[Path]
    opened: list[Path] = field(default_factory=list)

    def run(self, case: Case, abi: str, number: int, flags: int = 0) -> tuple[Done, list[Record]]:
        folder = next(self.folders)
        for name in case.files:
            if name.endswith("/"):
                (folder / name).mkdir(parents=True)
            else:
                (folder / name).write_bytes(case.content)
        words = case.words
        if flags & SHORT_IDS:
            words = case.short or words
        if flags & WIDE:
            words = case.wide or words
        groups = [*(f"native {text}" for text in case.before), f"{abi} {number} {words}"]
        self.watch.ring.read(ALL)
        lines = self.scope.run(self.program, folder, *" -- ".join(groups).split(" "))
        pid, parent, *results = [int(line) for line in lines.split()]
        records = [decode(data) for data in split(self.watch.ring.read(ALL))]
        assert not self.watch.lost()
        return Done(folder, pid, parent, results), records


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Iterator[Machine]:
    program = compile_c(Path(__file__).parent / "calls.c")
    folders = iter(lambda: tmp_path_factory.mktemp("calls"), None)
    with Scope(pool.scope.folder) as scope, pool.watch(*CALLS, "creat") as watch:
        yield Machine(scope, program, watch, folders)


def one_path(name: str, path: str, **others: Any) -> Callable[[Done], Expected]:
    """What is expected of a call on one path, relative to the folder."""

    def expected(done: Done) -> Expected:
        return {
            f"evt.arg.{name}": done.path(path),
            "fs.path.name": done.path(path),
            "fs.path.nameraw": path,
        } | given(done, others)

    return expected


def two_paths(
    first: str, one: str, second: str, two: str, source: str, **others: Any
) -> Callable[[Done], Expected]:
    def expected(done: Done) -> Expected:
        paths = {first: one, second: two}
        target = second if source == first else first
        return {
            f"evt.arg.{first}": done.path(one),
            f"evt.arg.{second}": done.path(two),
            "fs.path.source": done.path(paths[source]),
            "fs.path.sourceraw": paths[source],
            "fs.path.target": done.path(paths[target]),
            "fs.path.targetraw": paths[target],
        } | given(done, others)

    return expected


def at(
    made: Callable[[Done], Expected], folder: str, **raw: str | Callable[[Done], str]
) -> Callable[[Done], Expected]:
    """The same, where the raw paths are relative to a descriptor of a folder in the folder."""

    def expected(done: Done) -> Expected:
        found = made(done)
        for name, value in found.items():
            if name.endswith("raw") and isinstance(value, str):
                found[name] = value.removeprefix(folder + "/")
        return found | given(done, {f"fs.path.{k}": v for k, v in raw.items()})

    return expected


def of_file(path: str, number: int, **others: Any) -> Callable[[Done], Expected]:
    """What is expected of a call on a descriptor of a file in the folder."""

    def expected(done: Done) -> Expected:
        name = done.path(path)
        return {
            "evt.arg.fd": f"<f>{name}",
            "fd.num": done.results[number],
            "fd.name": name,
            "fd.directory": name.rpartition("/")[0],
            "fd.filename": name.rpartition("/")[2],
            "fs.path.name": name,
        } | given(done, others)

    return expected


def no_file(number: int, **others: Any) -> Callable[[Done], Expected]:
    """The same of a descriptor that is none."""
    missing = dict.fromkeys(("fd.name", "fd.directory", "fd.filename", "fs.path.name"))
    return lambda done: {
        "evt.arg.fd": str(number), "fd.num": number, **missing, **given(done, others),
    }  # fmt: skip


def arguments(**others: Any) -> Callable[[Done], Expected]:
    return lambda done: given(done, others)


def given(done: Done, others: dict[str, Any]) -> Expected:
    found: Expected = {}
    for name, value in others.items():
        key = name if "." in name else "fd.num" if name == "fd_num" else f"evt.arg.{name}"
        found[key] = value(done) if callable(value) else value
    return found


def result_of(number: int) -> Callable[[Done], int | None]:
    return lambda done: done.results[number]


def text_of(number: int) -> Callable[[Done], str]:
    return lambda done: str(done.results[number])


def own_result(done: Done) -> int | None:
    return done.results[-1] if done.results[-1] >= 0 else None


def lowest_free(**others: Any) -> Callable[[Done], Expected]:
    """What is expected of a pipe that is made where the first call's descriptor was."""
    return lambda done: {
        "evt.arg.fd1": str(done.results[0]), "evt.arg.fd2": str(done.results[0] + 1),
    } | given(done, others)  # fmt: skip


CWD = "n-100"
OPEN_DIR = "257 n-100 s{} n0x10000"  # openat(AT_FDCWD, name, O_DIRECTORY)
OPEN_RW = "257 n-100 s{} n2"
DIR = OPEN_DIR.format("dir")
FILE = OPEN_RW.format("file")
UNSHARE = ("272 n0x20000", "165 snone s/ n0 n0x44000 n0")  # mounts of its own, private
TMPFS = "165 snone s{} stmpfs n0 n0"

CASES = [
    Case("unlink", "sfile", one_path("path", "file"), files=("file",)),
    Case("unlink", "sabsent/file", one_path("path", "absent/file"), ENOENT),
    Case(
        "unlinkat", "r0 sinner n0x200",
        at(one_path("name", "dir/inner", dirfd=text_of(0), flags="AT_REMOVEDIR"), "dir"),
        before=(DIR,), files=("dir/inner/",),
    ),
    Case(
        "unlinkat", f"{CWD} sabsent n0",
        one_path("name", "absent", dirfd="AT_FDCWD", flags="0"), ENOENT,
    ),
    Case("rmdir", "sdir", one_path("path", "dir"), files=("dir/",)),
    Case("rmdir", "sabsent", one_path("path", "absent"), ENOENT),
    Case(
        "rename", "sfile snew", two_paths("oldpath", "file", "newpath", "new", "oldpath"),
        files=("file",),
    ),
    Case(
        "rename", "sabsent snew", two_paths("oldpath", "absent", "newpath", "new", "oldpath"),
        ENOENT,
    ),
    Case(
        "renameat", f"{CWD} sfile r0 snew",
        at(
            two_paths("oldpath", "file", "newpath", "dir/new", "oldpath", olddirfd="AT_FDCWD",
                      newdirfd=text_of(0)),
            "dir",
        ),
        before=(DIR,), files=("file", "dir/"),
    ),
    Case(
        "renameat", f"{CWD} sabsent {CWD} snew",
        two_paths("oldpath", "absent", "newpath", "new", "oldpath", olddirfd="AT_FDCWD",
                  newdirfd="AT_FDCWD"),
        ENOENT,
    ),
    Case(
        "renameat2", "r0 sone r0 stwo n2",
        at(
            two_paths("oldpath", "dir/one", "newpath", "dir/two", "oldpath", olddirfd=text_of(0),
                      newdirfd=text_of(0), flags="RENAME_EXCHANGE"),
            "dir",
        ),
        before=(DIR,), files=("dir/", "dir/one", "dir/two"),
    ),
    Case(
        "renameat2", f"{CWD} sfile {CWD} snew n3",
        two_paths("oldpath", "file", "newpath", "new", "oldpath", olddirfd="AT_FDCWD",
                  newdirfd="AT_FDCWD", flags="RENAME_NOREPLACE|RENAME_EXCHANGE"),
        EINVAL, files=("file",),
    ),
    Case(
        "link", "sfile snew", two_paths("oldpath", "file", "newpath", "new", "newpath"),
        files=("file",),
    ),
    Case(
        "link", "sabsent snew", two_paths("oldpath", "absent", "newpath", "new", "newpath"), ENOENT
    ),
    Case(
        "linkat", f"{CWD} sfile r0 snew n0x400",
        at(
            two_paths("oldpath", "file", "newpath", "dir/new", "newpath", olddir="AT_FDCWD",
                      newdir=text_of(0), flags="AT_SYMLINK_FOLLOW"),
            "dir",
        ),
        before=(DIR,), files=("file", "dir/"),
    ),
    Case(
        "linkat", f"{CWD} sabsent {CWD} snew n0",
        two_paths("oldpath", "absent", "newpath", "new", "newpath", olddir="AT_FDCWD",
                  newdir="AT_FDCWD", flags="0"),
        ENOENT,
    ),
    Case(
        "symlink", "s../there snew",
        lambda done: {
            "evt.arg.target": "../there", "evt.arg.linkpath": done.path("new"),
            "fs.path.source": done.path("new"), "fs.path.sourceraw": "new",
            "fs.path.target": f"{done.folder.parent}/there", "fs.path.targetraw": "../there",
        },
    ),
    Case(
        "symlink", "s/etc/shadow sabsent/new",
        lambda done: {
            "evt.arg.target": "/etc/shadow", "evt.arg.linkpath": done.path("absent/new"),
            "fs.path.source": done.path("absent/new"), "fs.path.sourceraw": "absent/new",
            "fs.path.target": "/etc/shadow", "fs.path.targetraw": "/etc/shadow",
        },
        ENOENT,
    ),
    Case(
        "symlinkat", "sthere r0 snew",
        lambda done: {
            "evt.arg.target": "there", "evt.arg.linkpath": done.path("dir/new"),
            "evt.arg.linkdirfd": str(done.results[0]),
            "fs.path.source": done.path("dir/new"), "fs.path.sourceraw": "new",
            "fs.path.target": done.path("dir/there"), "fs.path.targetraw": "there",
        },
        before=(DIR,), files=("dir/",),
    ),
    Case(
        "symlinkat", "sthere n99 snew",
        lambda done: {
            "evt.arg.target": "there", "evt.arg.linkpath": "<UNKNOWN>/new",
            "evt.arg.linkdirfd": "99",
            "fs.path.source": "<UNKNOWN>/new", "fs.path.sourceraw": "new",
            "fs.path.target": "<UNKNOWN>/there", "fs.path.targetraw": "there",
        },
        EBADF,
    ),
    Case("mkdir", "snew n0700", one_path("path", "new", mode="S_IXUSR|S_IWUSR|S_IRUSR")),
    Case("mkdir", "sabsent/new n0", one_path("path", "absent/new", mode="0"), ENOENT),
    Case(
        "mkdirat", "r0 snew n01700",
        at(
            one_path("path", "dir/new", dirfd=text_of(0), mode="S_IXUSR|S_IWUSR|S_IRUSR|S_ISVTX"),
            "dir",
        ),
        before=(DIR,), files=("dir/",),
    ),
    Case(
        "mkdirat", f"{CWD} sabsent/new n1",
        one_path("path", "absent/new", dirfd="AT_FDCWD", mode="S_IXOTH"), ENOENT,
    ),
    Case(
        "mknod", "snew n0010600 n0",
        one_path("path", "new", mode="S_IFIFO|S_IWUSR|S_IRUSR", dev="0"),
    ),
    Case(
        "mknod", "sabsent/new n0100000 n5",
        one_path("path", "absent/new", mode="S_IFREG", dev="5"), ENOENT,
    ),
    Case(
        "mknodat", "r0 snew n0140600 n0",
        at(
            one_path("path", "dir/new", dirfd=text_of(0), mode="S_IFSOCK|S_IWUSR|S_IRUSR", dev="0"),
            "dir",
        ),
        before=(DIR,), files=("dir/",),
    ),
    Case(
        "mknodat", f"{CWD} sabsent/new n0060000 n1792",
        one_path("path", "absent/new", dirfd="AT_FDCWD", mode="S_IFBLK", dev="1792"), ENOENT,
    ),
    Case(
        "chmod", "sfile n04755",
        one_path(
            "filename", "file",
            mode="S_IXOTH|S_IROTH|S_IXGRP|S_IRGRP|S_IXUSR|S_IWUSR|S_IRUSR|S_ISUID",
        ),
        files=("file",),
    ),
    Case("chmod", "sabsent n02000", one_path("filename", "absent", mode="S_ISGID"), ENOENT),
    Case(
        "fchmod", "r0 n04000", of_file("file", 0, mode="S_ISUID"), before=(FILE,), files=("file",)
    ),
    Case("fchmod", "n99 n0", no_file(99, mode="0"), EBADF),
    Case(
        "fchmodat", "r0 sinner n02000",
        at(one_path("filename", "dir/inner", dirfd=text_of(0), mode="S_ISGID"), "dir"),
        before=(DIR,), files=("dir/", "dir/inner"),
    ),
    Case(
        "fchmodat", f"{CWD} sabsent n0",
        one_path("filename", "absent", dirfd="AT_FDCWD", mode="0"), ENOENT,
    ),
    Case(
        "fchmodat2", "r0 sinner n0400 n0",
        at(one_path("filename", "dir/inner", dirfd=text_of(0), mode="S_IRUSR", flags="0"), "dir"),
        before=(DIR,), files=("dir/", "dir/inner"),
    ),
    Case(
        "fchmodat2", f"{CWD} sabsent n0 n0x100",
        one_path("filename", "absent", dirfd="AT_FDCWD", mode="0", flags="AT_SYMLINK_NOFOLLOW"),
        ENOENT,
    ),
    Case(
        "chown", "sfile n65534 n-1", one_path("path", "file", uid="nobody", gid="-1"),
        files=("file",), short="sfile n65534 n65535",
    ),
    Case("chown", "sabsent n1 n2", one_path("path", "absent", uid="daemon", gid="bin"), ENOENT),
    Case(
        "lchown", "sfile n4242 n2", one_path("path", "file", uid="4242", gid="bin"), files=("file",)
    ),
    Case(
        "lchown", "sabsent n-1 n0", one_path("path", "absent", uid="-1", gid="root"), ENOENT,
        short="sabsent n65535 n0",
    ),
    Case(
        "fchown", "r0 n1 n2", of_file("file", 0, uid="daemon", gid="bin"),
        before=(FILE,), files=("file",),
    ),
    Case(
        "fchown", "n99 n-1 n-1", no_file(99, uid="-1", gid="-1"), EBADF,
        short="n99 n65535 n65535",
    ),
    Case(
        "fchownat", "r0 s n1 n2 n0x1000",
        lambda done: {
            "evt.arg.pathname": done.path("file"), "fs.path.name": done.path("file"),
            "fs.path.nameraw": "", "evt.arg.dirfd": str(done.results[0]),
            "evt.arg.uid": "daemon", "evt.arg.gid": "bin", "evt.arg.flags": "AT_EMPTY_PATH",
        },
        before=(FILE,), files=("file",),
    ),
    Case(
        "fchownat", f"{CWD} sabsent n0 n0 n0x100",
        one_path("pathname", "absent", dirfd="AT_FDCWD", uid="root", gid="root",
                 flags="AT_SYMLINK_NOFOLLOW"),
        ENOENT,
    ),
    Case(
        "truncate", "sfile n3", one_path("path", "file", length="3"), files=("file",),
        wide="sfile n3 n0",
    ),
    Case(
        "truncate", "sabsent n3", one_path("path", "absent", length="3"), ENOENT,
        wide="sabsent n3 n0",
    ),
    Case(
        "ftruncate", "r0 n5", of_file("file", 0, length="5"), before=(FILE,), files=("file",),
        wide="r0 n5 n0",
    ),
    Case("ftruncate", "n99 n1", no_file(99, length="1"), EBADF, wide="n99 n1 n0"),
    Case("chroot", "sdir", one_path("path", "dir"), files=("dir/",)),
    Case("chroot", "sabsent", one_path("path", "absent"), ENOENT),
    Case(
        "pivot_root", "snew snew/old",
        two_paths("new_root", "new", "put_old", "new/old", "new_root"),
        before=(*UNSHARE, TMPFS.format("new"), "83 snew/old n0755"), files=("new/",),
    ),
    Case(
        "pivot_root", "sabsent sabsent/old",
        two_paths("new_root", "absent", "put_old", "absent/old", "new_root"), ENOENT,
    ),
    Case(
        "mount", "sdev sdir stmpfs n6 n0",
        lambda done: two_paths("dev", "dev", "dir", "dir", "dev", type="tmpfs",
                               flags="NOSUID|NODEV")(done) | {"evt.arg.dev": "dev"},
        before=UNSHARE, files=("dir/",),
    ),
    Case(
        "mount", "s/dev/x sabsent sext4 n1 n0",
        lambda done: two_paths("dev", "/dev/x", "dir", "absent", "dev", type="ext4",
                               flags="RDONLY")(done)
        | {"evt.arg.dev": "/dev/x", "fs.path.source": "/dev/x"},
        ENOENT,
    ),
    Case(
        "umount", "sdir", one_path("name", "dir"),
        before=(*UNSHARE, TMPFS.format("dir")), files=("dir/",),
    ),
    Case("umount", "sabsent", one_path("name", "absent"), ENOENT),
    Case(
        "umount2", "sdir n2", one_path("name", "dir", flags="DETACH"),
        before=(*UNSHARE, TMPFS.format("dir")), files=("dir/",),
    ),
    Case("umount2", "sabsent n9", one_path("name", "absent", flags="FORCE|NOFOLLOW"), ENOENT),
    Case(
        "move_mount", f"{CWD} sdir {CWD} sother n0",
        two_paths("oldpath", "dir", "newpath", "other", "oldpath", flags="0"),
        before=(*UNSHARE, TMPFS.format("dir")), files=("dir/", "other/"),
    ),
    Case(
        "move_mount", f"{CWD} sabsent {CWD} sother n0x10",
        two_paths("oldpath", "absent", "newpath", "other", "oldpath",
                  flags="MOVE_MOUNT_T_SYMLINKS"),
        ENOENT,
    ),
    Case("setuid", "n1", arguments(uid="daemon")),
    Case("setuid", "n0", arguments(uid="root"), EPERM, before=("105 n1",)),
    Case("setgid", "n2", arguments(gid="bin")),
    Case("setgid", "n0", arguments(gid="root"), EPERM, before=("106 n2", "105 n1")),
    Case(
        "setreuid", "n-1 n1", arguments(ruid="-1", euid="daemon"), short="n65535 n1"
    ),
    Case("setreuid", "n0 n0", arguments(ruid="root", euid="root"), EPERM, before=("105 n1",)),
    Case(
        "setregid", "n2 n-1", arguments(rgid="bin", egid="-1"), short="n2 n65535"
    ),
    Case(
        "setregid", "n0 n0", arguments(rgid="root", egid="root"), EPERM,
        before=("106 n2", "105 n1"),
    ),
    Case(
        "setresuid", "n-1 n1 n65534", arguments(ruid="-1", euid="daemon", suid="nobody"),
        short="n65535 n1 n65534",
    ),
    Case(
        "setresuid", "n0 n1 n1", arguments(ruid="root", euid="daemon", suid="daemon"), EPERM,
        before=("105 n1",),
    ),
    Case("setresgid", "n2 n4242 n0", arguments(rgid="bin", egid="4242", sgid="root")),
    Case(
        "setresgid", "n0 n0 n0", arguments(rgid="root", egid="root", sgid="root"), EPERM,
        before=("106 n2", "105 n1"),
    ),
    # The old id is returned whatever comes of it: these two cannot fail.
    Case("setfsuid", "n1", arguments(uid="daemon"), None),
    Case("setfsgid", "n2", arguments(gid="bin"), None),
    Case("setgroups", "n2 x0100000002000000", arguments(size="2"), short="n2 x01000200"),
    Case(
        "setgroups", "n1 x01000000", arguments(size="1"), EPERM, before=("105 n1",),
        short="n1 x0100",
    ),
    Case(
        # _LINUX_CAPABILITY_VERSION_3; effective, permitted, inheritable, each in two halves.
        "capset", "x2205082000000000 x" + struct.pack("<6I", 1, 33, 0, 0, 1, 0).hex(),
        arguments(
            cap_effective="CAP_CHOWN", cap_permitted="CAP_CHOWN CAP_KILL CAP_MAC_OVERRIDE",
            cap_inheritable="",
        ),
    ),
    Case(
        "capset", "x2205082000000000 x" + struct.pack("<6I", 0, 2, 1, 0, 0, 0).hex(),
        arguments(
            cap_effective="", cap_permitted="CAP_DAC_OVERRIDE", cap_inheritable="CAP_CHOWN"
        ),
        EPERM, before=("105 n1",),
    ),
    Case("ptrace", "n0 n0 n0 n0", arguments(request="PTRACE_TRACEME", pid="0")),
    Case(
        "ptrace", f"n16 n{NO_PROCESS} n0 n0",
        arguments(request="PTRACE_ATTACH", pid=str(NO_PROCESS)), ESRCH,
    ),
    Case("process_vm_readv", "p n0 n0 n0 n0 n0", arguments(pid=lambda done: str(done.pid))),
    Case(
        "process_vm_readv", f"n{NO_PROCESS} x n1 x n1 n0", arguments(pid=str(NO_PROCESS)), None
    ),
    Case("process_vm_writev", "p n0 n0 n0 n0 n0", arguments(pid=lambda done: str(done.pid))),
    Case(
        "process_vm_writev", f"n{NO_PROCESS} x n1 x n1 n0", arguments(pid=str(NO_PROCESS)), None
    ),
    Case(
        "memfd_create", "sname n3",
        arguments(name="name", flags="MFD_CLOEXEC|MFD_ALLOW_SEALING", fd_num=own_result), None,
    ),
    Case(
        "memfd_create", "sname n0x1000",
        arguments(name="name", flags="4096", fd_num=None), EINVAL,
    ),
    # With success: test_a_kernel_module_that_is_loaded_and_removed.
    Case("init_module", "n0 n0 sa=b", arguments(length="0", uargs="a=b"), ANY_ERROR),
    Case(
        "finit_module", "r0 sa=b n3",
        of_file(
            "file", 0, uargs="a=b",
            flags="MODULE_INIT_IGNORE_MODVERSIONS|MODULE_INIT_IGNORE_VERMAGIC",
        ),
        ANY_ERROR, before=(FILE,), files=("file",),
    ),
    Case("finit_module", "n99 s n4", no_file(99, uargs="", flags="MODULE_INIT_COMPRESSED_FILE"),
         ANY_ERROR),
    Case(
        "delete_module", "svedette_absent n04000",
        arguments(name="vedette_absent", flags="O_NONBLOCK"), ANY_ERROR,
    ),
    # An array map: type 2, keys and values of 4 bytes, one entry.
    Case(
        "bpf", "n0 x02000000040000000400000001000000 n16", arguments(cmd="BPF_MAP_CREATE"), None
    ),
    Case("bpf", "n5 x00 n1", arguments(cmd="BPF_PROG_LOAD"), ANY_ERROR),
    Case(
        # PERF_TYPE_SOFTWARE, size 64, PERF_COUNT_SW_DUMMY
        "perf_event_open", "x01000000400000000900000000000000 n0 n-1 n-1 n8",
        arguments(
            type="PERF_TYPE_SOFTWARE", pid="0", cpu="-1", flags="PERF_FLAG_FD_CLOEXEC",
            fd_num=own_result,
        ),
        None,
    ),
    Case(
        "perf_event_open", "x63000000400000000900000000000000 n-1 n-1 n-1 n0",
        arguments(type="99", pid="-1", cpu="-1", flags="0", fd_num=None), EINVAL,
    ),
    Case(
        "userfaultfd", "n02004001",
        arguments(flags="O_NONBLOCK|O_CLOEXEC|UFFD_USER_MODE_ONLY", fd_num=own_result), None,
    ),
    Case("userfaultfd", "n64", arguments(flags="64", fd_num=None), EINVAL),
    Case("unshare", "n0x04020000", arguments(flags="CLONE_NEWNS|CLONE_NEWUTS")),
    Case("unshare", "n0x1000", arguments(flags="4096"), EINVAL),
    Case(
        "setns", "r0 n0x04000000",
        arguments(fd=text_of(0), fd_num=result_of(0), nstype="CLONE_NEWUTS"),
        before=("257 n-100 s/proc/self/ns/uts n0",),
    ),
    Case("setns", "n99 n0", arguments(fd="99", fd_num=99, nstype="0"), EBADF),
    Case("kill", "q n0", arguments(pid=lambda done: str(done.parent), sig="0")),
    Case("kill", f"n{NO_PROCESS} n9", arguments(pid=str(NO_PROCESS), sig="SIGKILL"), ESRCH),
    Case("tkill", "q n0", arguments(tid=lambda done: str(done.parent), sig="0")),
    Case("tkill", f"n{NO_PROCESS} n15", arguments(tid=str(NO_PROCESS), sig="SIGTERM"), ESRCH),
    Case(
        "tgkill", "q q n0",
        arguments(
            pid=lambda done: str(done.parent), tid=lambda done: str(done.parent), sig="0"
        ),
    ),
    Case(
        "tgkill", f"n{NO_PROCESS} n{NO_PROCESS} n64",
        arguments(pid=str(NO_PROCESS), tid=str(NO_PROCESS), sig="64"), ESRCH,
    ),
    Case("prctl", "n38 n1 n0 n0 n0", arguments(option="PR_SET_NO_NEW_PRIVS", arg2_int="1")),
    Case("prctl", "n4 n7 n0 n0 n0", arguments(option="PR_SET_DUMPABLE", arg2_int="7"), EINVAL),
    Case(
        "socket", "n2 n0x80001 n6",
        arguments(domain="AF_INET", type="524289", proto="6", fd_num=own_result), None,
    ),
    Case(
        "socket", "n17 n99 n0",
        arguments(domain="AF_PACKET", type="99", proto="0", fd_num=None), EINVAL,
    ),
    Case(
        "io_uring_setup", "n4 x" + "00" * 120,
        arguments(
            entries="4", sq_entries="4", cq_entries="8", flags="0", sq_thread_cpu="0",
            sq_thread_idle="0", features=..., fd_num=own_result,
        ),
        None,
    ),
    Case(
        "io_uring_setup", "n4 x" + struct.pack("<3I", 0, 0, 1 << 31).hex() + "00" * 108,
        arguments(
            entries="4", sq_entries="0", cq_entries="0", flags="2147483648", sq_thread_cpu="0",
            sq_thread_idle="0", features="0", fd_num=None,
        ),
        EINVAL,
    ),
    Case("sysinfo", "x" + "00" * 112, arguments()),
    Case("sysinfo", "n8", arguments(), EFAULT),
    Case("personality", "n0x40000", arguments(persona="ADDR_NO_RANDOMIZE"), None),
    Case("pipe", "x0000000000000000", lowest_free(), before=(FILE, "3 r0"), files=("file",)),
    Case("pipe", "n8", arguments(fd1=None, fd2=None), EFAULT),
    Case(
        "pipe2", "x0000000000000000 n02044000", lowest_free(flags="O_DIRECT|O_NONBLOCK|O_CLOEXEC"),
        before=(FILE, "3 r0"), files=("file",),
    ),
    Case("pipe2", "x0000000000000000 n1", arguments(fd1=None, fd2=None, flags="1"), EINVAL),
]  # fmt: skip


def check(case: Case, done: Done, records: list[Record], *, is_compat: bool) -> None:
    found = [record for record in records if record.type_name == case.name]
    record = found[-1]
    result = done.results[-1]
    if case.result == ANY_ERROR:
        assert result < 0
    elif case.result is not None:
        assert result == case.result
    assert (record.result, record.pid, record.tid) == (result, done.pid, done.pid)
    assert bool(record.flags & layout.FLAGS["compat"]) == is_compat
    process = Process(pid=done.pid, uid=record.uid, cwd=os.fsencode(done.folder))
    view = EventView(record, process, USERS, GROUPS)
    expected = case.expected(done)
    own = {name for name, one in FIELDS.items() if case.name in one.events and one.scope == "event"}
    about_calls = {name for name in own if name in calls.CALLS[case.name] or name == "fd.num"}
    raw = {name for name in about_calls if name.startswith("audit.a")}
    about_calls -= raw
    for name in raw:
        number = getattr(record, f"arg{name[-1]}")
        assert extract(FieldRef(name), view) == f"{number:x}".encode()
    assert expected.keys() == about_calls, "every field is checked"
    seen = {name: extract(FieldRef(name), view) for name in expected}
    wanted = {
        name: os.fsencode(value) if isinstance(value, str) else value
        for name, value in expected.items()
        if value is not ...
    }
    assert {name: seen[name] for name in wanted} == wanted
    assert extract(FieldRef("evt.rawres"), view) == result


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_call_in_each_abi(machine: Machine, case: Case) -> None:
    call = CALLS[case.name]
    if call.native is not None:
        done, records = machine.run(case, "native", call.native)
        if done.results[-1] == -errno.ENOSYS and case.result != ANY_ERROR:
            pytest.skip(f"this kernel has no {case.name}")
        check(case, done, records, is_compat=False)
    for number, flags in call.compat:
        done, records = machine.run(case, "compat", number, flags)
        check(case, done, records, is_compat=True)


def test_a_length_in_two_registers_is_whole(machine: Machine) -> None:
    expected = one_path("path", "absent", length=str(0x100000003))
    case = Case("truncate", "", expected, ENOENT, wide="sabsent n3 n1")
    number, flags = CALLS["truncate"].compat[1]
    done, records = machine.run(case, "compat", number, flags)
    check(case, done, records, is_compat=True)


OF_MODULES = {"init_module", "finit_module", "delete_module"}
# Modules that need no other, with a parameter by which they make nothing.
MODULES = {"dummy": "numdummies=0", "ifb": "numifbs=0"}
DECOMPRESSED = {
    ".ko": bytes,
    ".xz": lzma.decompress,
    ".gz": gzip.decompress,
    ".zst": zstandard.decompress,
}
COMPRESSED_FILE = 4  # MODULE_INIT_COMPRESSED_FILE, since Linux 5.17


@dataclass(frozen=True)
class Module:
    """A module of the running kernel that nobody has loaded.

    file, image  as it lies there, which may be compressed, and as the kernel has it
    """

    name: str
    parameter: str
    file: bytes
    image: bytes

    def is_loaded(self) -> bool:
        loaded = Path("/proc/modules").read_text(encoding="ascii").splitlines()
        return self.name in {line.split()[0] for line in loaded}

    @property
    def remove(self) -> Case:
        return Case(
            "delete_module", f"s{self.name} n04000",
            arguments(name=self.name, flags="O_NONBLOCK"),
        )  # fmt: skip

    def loads(self) -> Iterator[Case]:
        """Each way to load it; by its compressed file only where the kernel is able to."""
        name, size, parameter = f"{self.name}.ko", len(self.image), self.parameter
        opened = f"257 n-100 s{name} n0"
        # mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_32BIT, file, 0)
        yield Case(
            "init_module", f"r1 n{size} s{parameter}",
            arguments(length=str(size), uargs=parameter),
            before=(opened, f"9 n0 n{size} n1 n0x42 r0 n0"), files=(name,), content=self.image,
        )  # fmt: skip
        yield Case(
            "finit_module", f"r0 s{parameter} n0", of_file(name, 0, uargs=parameter, flags="0"),
            before=(opened,), files=(name,), content=self.image,
        )  # fmt: skip
        if self.file != self.image:
            yield Case(
                "finit_module", f"r0 s n{COMPRESSED_FILE}",
                of_file(name, 0, uargs="", flags="MODULE_INIT_COMPRESSED_FILE"), None,
                before=(opened,), files=(name,), content=self.file,
            )  # fmt: skip


@pytest.fixture
def module(machine: Machine) -> Iterator[Module]:
    if not Path("/proc/modules").exists():
        pytest.skip("this kernel takes no modules")
    folder = Path("/lib/modules", os.uname().release, "kernel/drivers/net")
    for name, parameter in MODULES.items():
        for path in folder.glob(f"{name}.ko*"):
            file = path.read_bytes()
            module = Module(name, parameter, file, DECOMPRESSED[path.suffix](file))
            if module.is_loaded():
                continue
            load = next(module.loads())
            done, _ = machine.run(load, "native", CALLS[load.name].native or 0)
            if done.results[-1] < 0:
                pytest.skip(f"no module may be loaded here: {os.strerror(-done.results[-1])}")
            machine.run(module.remove, "native", CALLS["delete_module"].native or 0)
            assert not module.is_loaded()
            yield module
            if module.is_loaded():
                machine.run(module.remove, "native", CALLS["delete_module"].native or 0)
            return
    pytest.skip(f"no module in {folder} that can be loaded: {', '.join(MODULES)}")


@pytest.mark.parametrize("abi", ["native", "compat"])
def test_a_kernel_module_that_is_loaded_and_removed(
    machine: Machine, module: Module, abi: str
) -> None:
    def make(case: Case) -> int:
        call = CALLS[case.name]
        number = call.native if abi == "native" else call.compat[0][0]
        assert number is not None
        done, records = machine.run(case, abi, number)
        check(case, done, records, is_compat=abi == "compat")
        return done.results[-1]

    for load in module.loads():
        result = make(load)
        assert module.is_loaded() == (result == 0)
        if result == 0:
            make(module.remove)
            assert not module.is_loaded()


def test_each_type_has_its_cases() -> None:
    succeeds = {case.name for case in CASES if case.result is None or case.result >= 0}
    fails = {case.name for case in CASES if case.result is not None and case.result < 0}
    assert succeeds | fails == CALLS.keys() == set(layout.CALLS) - {"capable"}
    assert CALLS.keys() - succeeds == OF_MODULES
    assert CALLS.keys() - fails <= {
        "setfsuid", "setfsgid", "process_vm_readv", "process_vm_writev", "personality",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"), [("kill", "p n0"), ("tkill", "p n0"), ("tgkill", "p p n0")]
)
def test_a_signal_to_oneself_is_no_event(machine: Machine, name: str, words: str) -> None:
    native = CALLS[name].native
    assert native is not None
    done, records = machine.run(Case(name, words, arguments()), "native", native)
    assert done.results == [0]
    assert name not in {record.type_name for record in records}


def test_creat_is_an_open_that_makes(machine: Machine) -> None:
    for abi, number in (("native", 85), ("compat", 8)):
        for words, result in (("snew n0640", None), ("sabsent/new n0640", ENOENT)):
            done, records = machine.run(Case("creat", words, arguments()), abi, number)
            (record,) = [one for one in records if one.type_name == "creat"]
            assert record.result == done.results[0]
            assert result is None or record.result == result
            assert record.open_flags == os.O_CREAT | os.O_WRONLY | os.O_TRUNC
            assert record.mode == 0o640
            process = Process(pid=done.pid, cwd=os.fsencode(done.folder))
            view = EventView(record, process, USERS, GROUPS)
            path = os.fsencode(done.path(words.split()[0][1:]))
            for name in ("fd.name", "fs.path.name", "evt.arg.name"):
                assert extract(FieldRef(name), view) == path
            assert extract(FieldRef("evt.is_open_write"), view) == 1
            assert extract(FieldRef("evt.is_open_create"), view) == 1
            if result is None:
                assert Path(os.fsdecode(path)).is_file()
                assert extract(FieldRef("fd.num"), view) == record.result


def test_socketcall_makes_sockets_too(machine: Machine) -> None:
    words = "n1 x" + struct.pack("<3I", 2, 1, 0).hex()
    case = Case("socket", words, arguments(domain="AF_INET", type="1", proto="0",
                                           fd_num=own_result), None)  # fmt: skip
    done, records = machine.run(case, "compat", 102)
    check(case, done, records, is_compat=True)
