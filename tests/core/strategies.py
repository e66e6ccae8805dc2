"""Random rules, processes and records for property tests, from few values, so that they meet."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from vedette.core import layout, stdio
from vedette.core.condition import predicate
from vedette.core.expr import And, Expr, FieldRef, Not, Operand, Or, Predicate, Value
from vedette.core.fields import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    FIELDS,
    LOGINUID_UNSET,
    OPEN_FLAGS,
    find,
)
from vedette.core.records import TYPE_NUMBERS, build
from vedette.core.rules import Rule

PIDS = st.integers(0, 6) | st.just(4_000_000)
UIDS = st.sampled_from([0, 1, 1000, 65534, LOGINUID_UNSET])
USERS = {0: b"root", 1000: b"ann"}
GROUPS = {0: b"root", 1: b"daemon"}
HOSTNAME = b"host-1"

COMM_TEXTS = [b"", b"sh", b"bash", b"sshd", b"SSHD", b"cat", b"a" * 15, b"\xff\x01"]
PATH_TEXTS = [
    b"", b"/", b".", b"..", b"/etc", b"/etc/", b"/etc/passwd", b"/etc//./passwd", b"/ETC/Shadow",
    b"../etc/passwd", b"etc/../../etc/passwd", b"passwd", b"./x/./y/..", b"/tmp/\xff\n/a b",
    b"/var/log/btmp", b"/a/b/c/d/../../e", b"/../..", b"//", b"/\0x",
]  # fmt: skip
DIRECTORY_TEXTS = [b"/", b"/etc", b"/etc/", b"/tmp/x", b"", b"rel/dir", b"/a//b/.."]
ARG_TEXTS = [
    b"", b"\0", b"sh\0", b"sh\0-c\0id\0", b"bash", b"cat\0/etc/passwd\0\0", b"a\0b", b"\0\0",
]  # fmt: skip
ENV_TEXTS = [b"", b"A=1\0", b"PATH=/bin\0A=1\0\0", b"LD_PRELOAD=/tmp/x.so", b"\0A\0"]
_V4_ENDS = ((bytes([10, 0, 0, 1]) + bytes(12), 22), (bytes([10, 0, 0, 2]) + bytes(12), 50000))
_V6_END = bytes(15) + b"\x01"
_STREAMS = [
    stdio.CLOSED,
    stdio.Descriptor(1, b"/etc/passwd"),
    stdio.Descriptor(2, b"/"),
    stdio.ip_socket("ipv4", 7, *_V4_ENDS),
    stdio.ip_socket("ipv4", 8, _V4_ENDS[1], _V4_ENDS[0]),
    stdio.ip_socket("ipv6", 9, (_V6_END, 22), (_V6_END, 0)),
    stdio.Descriptor(5, bytes([7]) + bytes(7)),
    stdio.Descriptor(5, bytes(8) + b"\0abstract"),
    stdio.Descriptor(5, bytes(8) + b"/run/x.sock"),
    stdio.Descriptor(6, b"pipe:[7]"),
    stdio.Descriptor(0, b"socket:[7]"),
    stdio.Descriptor(0, b"[eventpoll]"),
    stdio.Descriptor(4, b"short"),
    stdio.Descriptor(5, b"short"),
    stdio.Descriptor(99, b"/x"),
]
STDIO_BLOBS = [
    stdio.pack((_STREAMS[i], _STREAMS[i * 7 % 15], _STREAMS[i * 4 % 15])) for i in range(15)
]
STDIO_BLOBS += [STDIO_BLOBS[3][:70], STDIO_BLOBS[9][:-1], b"\1", b"", b"\3\xff", b"\1\0\1\0\1\0"]
CGROUP_TEXTS = [
    b"/", b"/init.scope", b"/system.slice/ssh.service", b"/docker/" + b"0123456789abcdef" * 4,
    b"/user.slice/user-0.slice/session-1.scope", b"",
]  # fmt: skip
HASHES = [bytes(range(32)), b"\xab" * 32]
_ACCEPTED = b"Accepted publickey for ann from 10.0.0.1 port 5 ssh2: ED25519"
LOG_TEXTS = [
    b"", _ACCEPTED + b" SHA256:" + b"k" * 43,
    _ACCEPTED + b"-CERT SHA256:" + b"+/0" * 14 + b"A ID x",
    _ACCEPTED + b" SHA256:" + b"k" * 42, _ACCEPTED + b" SHA256:" + b"k" * 44 + b"\r\n",
    b"x" + _ACCEPTED, b"Accepted password for ann from 10.0.0.1 port 5 ssh2",
    b"Accepted publickey for  ssh2: SHA256:" + b"k" * 43 + b"\r\n",
]  # fmt: skip
SUN_TEXTS = [b"", b"\0abstract", b"/run/x.sock", b"sock", b"\0", b"a\0b", b"@abstract"]
OTHER_TEXTS = [
    b"open", b"openat", b"execve", b"procexit", b"connect", b"write", b"chdir", b"fork", b"SUCCESS",
    b"EACCES", b"ENOENT", b"-1000", b"file", b"directory", b"ipv4", b"ipv6", b"unix", b"f", b"d",
    b"4", b"6", b"u", b"tcp", b"udp", b"icmp", b"raw", b"root", b"ann", b"daemon", b"host", b"<",
    b"syscall", HOSTNAME, b"O_RDONLY", b"O_RDWR|O_CLOEXEC", b"O_TRUNC|O_CREAT|O_WRONLY",
    b"<UNKNOWN>/passwd", b"<UNKNOWN>/", b"@abstract", b"sh -c id", b"-c id", b"/etc/passwd ",
    b"10.0.0.1:22", b"10.0.0.1:22->10.0.0.2:50000", b"10.0.0.2:50000->10.0.0.1:22", b"::1:22",
    b"pts/0", b"ssh:notty", b"AT_FDCWD", b"-100", b"AT_REMOVEDIR", b"CAP_CHOWN CAP_KILL", b"0",
    b"S_IFREG|S_IROTH", b"S_ISUID", b"PTRACE_SEIZE", b"CLONE_NEWNS", b"SIGKILL", b"AF_INET",
    b"<f>/etc/passwd", b"4294967295", b"-2147483648", b"9223372036854775808", b"BPF_PROG_LOAD",
    b"pts/0", b"ssh:notty", b"CAP_SYS_ADMIN", b"CAP_CHOWN CAP_SYS_ADMIN", b"0123456789ab",
    b"ssh.service", b"system.slice", b"-.slice", b"sh:3", b"PATH=/bin A=1 ", b"A=1", b"1",
    *(known.hex().encode() for known in HASHES),
    b"SHA256:" + b"k" * 43,
    b"pipe", b"p", b"pipe:[7]", b"socket:[7]", b"[eventpoll]", b"[::1]:22",
    b"ip", b"db.example", b"web.example", b"six.example",
]  # fmt: skip
TEXTS = (
    ENV_TEXTS
    + CGROUP_TEXTS
    + COMM_TEXTS
    + PATH_TEXTS
    + DIRECTORY_TEXTS
    + ARG_TEXTS
    + SUN_TEXTS
    + OTHER_TEXTS
)
PATTERNS = [
    b".*",
    b"",
    b"/etc/.*",
    b"[a-c]+",
    b"(sh|bash)",
    b".*\\.\\..*",
    b"[^/]*",
    b".",
    b"\xff.*",
]
GLOBS = [b"*", b"", b"/etc/*", b"*sh", b"?sh*", b"[a-c]*", b"[!/]*", b"*/[pP]asswd", b"\\*", b"["]

ADDRESSES = [
    bytes(16),
    bytes([10, 0, 0, 1]) + bytes(12),
    bytes([10, 0, 0, 2]) + bytes(12),
    bytes([192, 168, 1, 77]) + bytes(12),
    bytes(15) + b"\x01",
    bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 1]),
    bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 2]),
    bytes.fromhex("20010db8000000000000000000000001"),
]


def _escaped(text: bytes) -> bytes:
    """Write text in a regular expression, for RE2."""
    return b"".join(
        byte if byte.isalnum() and byte.isascii() else b"\\x%02x" % byte[0]
        for byte in (text[at : at + 1] for at in range(len(text)))
    )


@st.composite
def _regex_of(draw: st.DrawFn, text: bytes) -> bytes:
    same, other = _escaped(text), _escaped(draw(st.sampled_from([b"", b"zz", b"/.", b"k"])))
    each = [_escaped(text[at : at + 1]) for at in range(len(text))]
    plain = text if text.isalnum() else same
    return draw(
        st.sampled_from(
            [
                plain, plain, plain, re.escape(text) if text.isascii() and 0 not in text else same,
                b"." * len(text), b".*", b".+?", b".{1,}",
                b"[^\\n]*" if b"\n" not in text else b".+",
                b"".join(b"[%s]" % one for one in each), b"".join(b"[%sz]" % one for one in each),
                b"".join(b"[^]%s]" % (b"!" if one != b"\\x21" else b"?") for one in each)
                if b"]" not in text else same,
                b"[]%s]+" % same, b"[[:alpha:]%s]{%d}" % (same, len(text)), b"[\\d\\]%s]*" % same,
                b"(%s|%s)" % (other, same), b"(?:%s|%s)" % (same, other), b"(%s)" % same,
                b"(?:%s)?" % same, b"(%s)+" % same, b"(%s){1,2}" % same, b"(?:%s){1}" % same,
                b"(%s)?%s" % (other, same), b"%s(?:%s)*" % (same, other),
                b"%s(%s){0,3}" % (same, other),
                b"(?:%s){0}%s" % (other, same), b"(?s:%s)" % same,
                b"(|%s)%s(/|)?" % (other, same),
                b"(?:%s|.)+" % same, b"((%s|%s)(|%s))" % (same, other, other),
            ]
        )
    )  # fmt: skip


@st.composite
def regexes_of(draw: st.DrawFn, text: bytes) -> bytes:
    """A regular expression that matches a text as a whole."""
    out = [draw(st.sampled_from([b"", b"", b"", b"(?i)", b"(?is)", b"(?s)", b"^", b"\\A"]))]
    if b"i" in out[0] and draw(st.booleans()):
        text = text.swapcase()
    while text:
        size = draw(st.integers(1, 6))
        out.append(draw(_regex_of(text[:size])))
        text = text[size:]
    return b"".join(out) + draw(st.sampled_from([b"", b"", b"$", b"\\z", b"(|x)"]))


@st.composite
def globs_of(draw: st.DrawFn, text: bytes, *, fold: bool = False) -> bytes:
    """A glob that matches a text; with ``fold`` in either case."""
    out: list[bytes] = []
    if fold and draw(st.booleans()):
        text = text.swapcase()
    while text:
        size = draw(st.integers(1, 6))
        piece, text = text[:size], text[size:]
        each = [piece[at : at + 1] for at in range(len(piece))]
        literal = b"".join(byte if byte.isalnum() else b"\\" + byte for byte in each)
        choices = [literal, literal, literal, b"*", b"?" * len(piece), b"**" + literal]
        if piece.isalnum():
            choices += [b"".join(b"[%sz]" % byte for byte in each), b"[!*]" * len(piece)]
        out.append(draw(st.sampled_from(choices)))
    return b"".join(out)


def dns_answer(name: str, *records: tuple[int, bytes], asked: int = 1) -> bytes:
    """A DNS answer (RFC 1035) about a name, with records of (type, data)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    head = struct.pack(">HHHHHH", 7, 0x8180, 1, len(records), 0, 0)
    body = labels + b"\0" + struct.pack(">HH", asked, 1)
    for kind, data in records:
        body += struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data
    return head + body


DNS_ANSWERS = [
    dns_answer("db.example", (1, bytes([10, 0, 0, 1]))),
    dns_answer("web.example", (5, b"\x01x\0"), (1, bytes([10, 0, 0, 2])), (1, bytes(4))),
    dns_answer("six.example", (28, ADDRESSES[-1]), asked=28),
    dns_answer("other.example", (1, bytes([10, 0, 0, 1])))[:-2],
]
PORTS = st.sampled_from([0, 1, 22, 80, 443, 50000, 65535])


def _text_constants() -> st.SearchStrategy[bytes]:
    @st.composite
    def part(draw: st.DrawFn) -> bytes:
        text = draw(st.sampled_from(TEXTS))
        low = draw(st.integers(0, len(text)))
        return text[low : draw(st.integers(low, len(text)))]

    return st.sampled_from(TEXTS) | part() | st.binary(max_size=3)


def _networks() -> st.SearchStrategy[tuple[bytes, int]]:
    @st.composite
    def network(draw: st.DrawFn) -> tuple[bytes, int]:
        address = draw(_addresses())
        bits = 8 * len(address)
        prefix = draw(st.integers(0, bits))
        masked = int.from_bytes(address, "big") >> (bits - prefix) << (bits - prefix)
        return masked.to_bytes(len(address), "big"), prefix

    return network()


def _addresses() -> st.SearchStrategy[bytes]:
    return st.sampled_from([a[:4] for a in ADDRESSES] + [a for a in ADDRESSES if a[10] != 0xFF])


_CONSTANTS: dict[str, st.SearchStrategy[Any]] = {
    "string": _text_constants(),
    "int": st.integers(-3, 8) | st.sampled_from([-13, 1000, 2**63 - 1, -(2**63), 2**31]),
    "uint": UIDS,
    "port": PORTS,
    "bool": st.integers(0, 1),
    "ip": _addresses(),
    "net": _networks(),
}
_ANY_TYPE = ("=", "!=", "in", "exists")
_NUMBERS = (*_ANY_TYPE, "<", "<=", ">", ">=")
OPS: dict[str, tuple[str, ...]] = {
    "string": (
        *_ANY_TYPE, "contains", "icontains", "startswith", "endswith", "pmatch", "glob", "iglob",
        "regex",
    ),
    "int": _NUMBERS,
    "uint": _NUMBERS,
    "port": _NUMBERS,
    "bool": _ANY_TYPE,
    "ip": _ANY_TYPE,
    "net": _ANY_TYPE,
}  # fmt: skip


def _constant(kind: str, op: str) -> st.SearchStrategy[Any]:
    if op == "regex":
        return st.sampled_from(PATTERNS) | st.sampled_from(TEXTS).map(re.escape)
    if op in ("glob", "iglob"):
        return st.sampled_from(GLOBS) | st.sampled_from(TEXTS)
    if op == "icontains":
        return _CONSTANTS[kind].map(bytes.lower)
    if op == "pmatch":
        return _CONSTANTS[kind].map(lambda text: text.rstrip(b"/"))
    return _CONSTANTS[kind]


CAPTURED = tuple(name for name, field in FIELDS.items() if field.captured and not field.is_absent)
"""The fields that an event can have a value of."""
COUNTER = "evt.num"
"""What depends on the events that were before: none may be left out."""
ABSENT = tuple(name for name, field in FIELDS.items() if field.is_absent)
"""The fields that are defined and never have a value."""


def _plain(names: tuple[str, ...]) -> st.SearchStrategy[FieldRef]:
    """Fields that can be transformed and stand in val()."""
    return st.sampled_from([n for n in names if not FIELDS[n].is_fixed]).map(FieldRef)


_TEXT_FIELDS = tuple(n for n in (*CAPTURED, *ABSENT[:3]) if FIELDS[n].type == "string")


@st.composite
def references(draw: st.DrawFn, depth: int = 2, *, is_text: bool = False) -> FieldRef:
    """A field as it is, transformed, or a function of several: text, or len()."""

    def operand() -> Operand:
        if draw(st.booleans()):
            return draw(st.sampled_from(TEXTS))
        return draw(references(depth - 1, is_text=True))

    def operands() -> tuple[Operand, ...]:
        return tuple(operand() for _ in range(draw(st.integers(2, 3))))

    match draw(st.integers(0, 4)) if depth else 0:
        case 0:
            ref = draw(_plain(_TEXT_FIELDS))
        case 1:
            ref = FieldRef("proc.args", str(draw(st.integers(0, 3))))
        case 2:
            arguments = draw(st.just(FieldRef("proc.args")) | st.builds(operands))
            ref = FieldRef("getopt", draw(st.sampled_from("xab")), (), (arguments, b"ab:c"))
        case 3:
            ref = FieldRef("concat", operands=operands())
        case _:
            ref = FieldRef("join", operands=(operand(), operands()))
    names = ["tolower", "toupper", "basename", "b64"]
    transformers = draw(st.lists(st.sampled_from(names), max_size=2))
    if not is_text and draw(st.booleans()):
        transformers.append("len")
    return replace(ref, transformers=tuple(transformers))


@st.composite
def new_predicates(draw: st.DrawFn) -> Predicate:
    """A check that has a transformer, a function or a field on its right, or an absent field."""
    match draw(st.integers(0, 2)):
        case 0:
            ref = draw(references())
        case 1:
            ref = draw(_plain(CAPTURED))
        case _:
            return draw(predicates(ABSENT))
    field = find(ref)
    if draw(st.booleans()) and ref.name == "getopt" and not ref.transformers:
        ref = replace(ref, arg=None)
        listed = draw(st.lists(st.sampled_from(TEXTS), max_size=4))
        return predicate(ref, field, draw(st.sampled_from(["in", "intersects"])), listed)
    op = draw(st.sampled_from(OPS[field.type]))
    if op == "exists" or (ref.is_plain and op in ("in", "regex")):
        return predicate(ref, field, "exists", ())
    if ref.is_plain or (op not in ("in", "regex") and draw(st.booleans())):
        alike = [
            name
            for name in (*CAPTURED, *ABSENT)
            if FIELDS[name].type == field.type and not FIELDS[name].is_fixed
        ]
        others = st.sampled_from(alike).map(FieldRef)
        if field.type in ("string", "int"):
            others |= references().filter(lambda other: find(other).type == field.type)
        return predicate(ref, field, op, (draw(others),))
    constants = _constant(field.type, op)
    values = draw(st.lists(constants, max_size=4)) if op in ("in", "pmatch") else [draw(constants)]
    return predicate(ref, field, op, values)


@st.composite
def predicates(
    draw: st.DrawFn,
    names: tuple[str, ...] = CAPTURED,
    ops: frozenset[str] | None = None,
    *,
    full: bool = False,
) -> Predicate:
    """A check of any field of ``names``, by any operator of its type that ``ops`` allows.

    full  also checks with transformers, functions, fields on the right and absent fields
    """
    if full and draw(st.booleans()):
        return draw(new_predicates())
    name = draw(st.sampled_from(names))
    field = FIELDS[name]
    has_index = field.argument == "optional"
    arg = draw(st.none() | st.integers(0, 4).map(str)) if has_index else None
    if field.argument == "key":
        arg = draw(st.sampled_from([None, "A", "PATH"]))
    allowed = [op for op in OPS[field.type] if ops is None or op in ops]
    op = draw(st.sampled_from(allowed))
    constants = _constant(field.type, op)
    values: list[Value] = []
    if op in ("in", "pmatch"):
        values = draw(st.lists(constants, max_size=4))
    elif op != "exists":
        values = [draw(constants)]
    return predicate(FieldRef(name, arg), field, op, values)


def conditions(
    checks: st.SearchStrategy[Predicate] | None = None, max_leaves: int = 8
) -> st.SearchStrategy[Expr]:
    """Trees over checks."""
    leaves: st.SearchStrategy[Expr] = predicates() if checks is None else checks

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        several = st.lists(inner, min_size=2, max_size=4).map(tuple)
        return several.map(And) | several.map(Or) | inner.map(Not)

    return st.recursive(leaves, grow, max_leaves=max_leaves)


def rule_lists(
    conditions_: st.SearchStrategy[Expr] | None = None, max_size: int = 8
) -> st.SearchStrategy[list[Rule]]:
    """Rules with names of their own; some are not enabled."""
    one = st.tuples(conditions() if conditions_ is None else conditions_, st.integers(0, 9))
    return st.lists(one, max_size=max_size).map(
        lambda drawn: [
            Rule(f"rule {i}", condition, "", 4, enabled=luck > 0)
            for i, (condition, luck) in enumerate(drawn)
        ]
    )


_FACTS: dict[str, st.SearchStrategy[Any]] = {
    "exe_dev": st.integers(0, 1),
    "exe_flags": st.just(0) | st.integers(0, 255),
    "exe_ino": st.integers(0, 7),
    "exe_ctime_ns": st.integers(0, 3),
    "exe_mtime_ns": st.integers(0, 3),
}
_CAPABILITIES = st.just(0) | st.sampled_from([1 << 21, 1 << 21 | 1, (1 << 41) - 1, 1 << 62])
_IDS: dict[str, st.SearchStrategy[Any]] = {
    "cap_inheritable": _CAPABILITIES,
    "cap_permitted": _CAPABILITIES,
    "cap_effective": _CAPABILITIES,
    "pgid": PIDS,
    "tty": st.integers(0, 2),
    "vpid": st.integers(0, 3),
    "vpgid": st.integers(0, 3),
    "vsid": st.integers(0, 3),
}


_OWNER: dict[str, st.SearchStrategy[Any]] = {
    "owner_flags": st.integers(0, 3),
    "owner_uid": UIDS,
}


def process_values() -> st.SearchStrategy[dict[str, Any]]:
    """The arguments of Process, without a parent."""
    return st.fixed_dictionaries(
        {
            "pid": PIDS,
            "ppid": PIDS,
            "uid": UIDS,
            "gid": UIDS,
            "loginuid": UIDS,
            "session": PIDS,
            "start_time_ns": st.integers(0, 3),
            "cgroup_id": st.integers(0, 2),
            "comm": st.none() | st.sampled_from(COMM_TEXTS),
            "exe_path": st.none() | st.sampled_from(PATH_TEXTS),
            "args": st.none() | st.sampled_from(ARG_TEXTS),
            "cwd": st.none() | st.sampled_from(DIRECTORY_TEXTS),
            "env": st.none() | st.sampled_from(ENV_TEXTS),
            "stdio": st.none() | st.sampled_from(STDIO_BLOBS),
            "cgroup": st.none() | st.sampled_from(CGROUP_TEXTS),
            "exe_sha256": st.none() | st.sampled_from(HASHES),
            **_FACTS,
            **_IDS,
        }
    )


def utmp(
    *,
    kind: int = 7,
    pid: int = 0,
    line: bytes = b"",
    user: bytes = b"",
    host: bytes = b"",
    address: bytes = bytes(16),
) -> bytes:
    """Return a struct utmp as x86-64 writes it, 384 bytes; address has 16."""
    head = struct.pack("=hxxi32s4s32s256s", kind, pid, line, b"ts/0", user, host)
    return head + bytes(16) + address + bytes(20)


_UTMP = st.builds(
    utmp,
    kind=st.sampled_from([-1, 0, 6, 7, 8]),
    pid=PIDS | st.just(-1),
    line=st.sampled_from([b"", b"pts/0", b"ssh:notty", b"x" * 32]),
    user=st.sampled_from([b"", b"root", b"ann", b"u" * 32]),
    host=st.sampled_from([b"", b"10.0.0.1", b"h" * 256]),
    address=st.sampled_from(ADDRESSES),
)
_FLAGS = st.just(0) | st.sets(st.sampled_from(sorted(layout.FLAGS.values())), max_size=2).map(sum)
_RESULTS = st.just(0) | st.sampled_from([-1, -2, -13, -512, -1000, 3, 7])
_FDS = st.sampled_from([-1, 0, 3, 7])
_OPEN_FLAGS = st.tuples(
    st.integers(0, 3), st.sets(st.sampled_from([bits for _, bits in OPEN_FLAGS] + [1 << 30]))
).map(lambda drawn: sum(drawn[1]) & 0xFFFFFFFC | drawn[0])

_ARGUMENTS = st.sampled_from(
    [0, 1, 2, 3, 5, 9, 16, 0o4755, 0o100644, 0x200, 0x20000, 0x4206, 2**31, 2**32 - 1, 2**32 - 100,
     2**63, 2**64 - 1, 1000]
)  # fmt: skip
_WORDS = st.lists(_ARGUMENTS, min_size=6, max_size=6).map(
    lambda words: struct.pack("=6I", *(word & 0xFFFFFFFF for word in words))
)

_BODIES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "exec": {
        "start_time_ns": st.integers(0, 3),
        "ppid": PIDS,
        "loginuid": UIDS,
        "session": PIDS,
        "comm": st.sampled_from(COMM_TEXTS),
        "path": st.sampled_from(PATH_TEXTS),
        "filename": st.sampled_from(PATH_TEXTS),
        "args": st.sampled_from(ARG_TEXTS),
        "cwd": st.sampled_from([b"", *DIRECTORY_TEXTS]),
        "env": st.sampled_from([b"", *ENV_TEXTS]),
        "stdio": st.sampled_from([b"", *STDIO_BLOBS]),
        **_FACTS,
        **_IDS,
        **_OWNER,
    },
    "ids": {"session": PIDS, **_IDS},
    "stdio": {"stdio": st.sampled_from(STDIO_BLOBS) | st.binary(max_size=60)},
    "raced": {
        "of_type": st.sampled_from([0, 8, 9, 11, 255]),
        "path": st.sampled_from(PATH_TEXTS),
        "was": st.sampled_from(PATH_TEXTS),
    },
    "hash": {
        **{name: _FACTS[name] for name in ("exe_dev", "exe_ino", "exe_ctime_ns")},
        "exe_sha256": st.sampled_from(HASHES),
    },
    "suppressed": {"count": st.integers(0, 3), "of_cgroup": st.integers(0, 2)},
    "dns": {
        "remote_addr": st.sampled_from(ADDRESSES),
        "family": st.sampled_from([AF_INET, AF_INET6]),
        "answer": st.sampled_from(DNS_ANSWERS) | st.binary(max_size=40),
    },
    "cgroup": {"id": st.integers(0, 2), "path": st.sampled_from(CGROUP_TEXTS)},
    "fork": {
        "start_time_ns": st.integers(0, 3),
        "child_pid": PIDS,
        "ppid": PIDS,
        "child_uid": UIDS,
        "child_gid": UIDS,
        "vpid": st.integers(0, 3),
        "comm": st.sampled_from(COMM_TEXTS),
    },
    "exit": {
        "start_time_ns": st.integers(0, 3),
        "exit_code": st.integers(-1, 256),
        "reaper_pid": PIDS,
    },
    "open": {
        "open_flags": _OPEN_FLAGS,
        **_OWNER,
        "mode": st.integers(0, 0o777),
        "dirfd": st.sampled_from([-100, -100, 3]),
        "path": st.sampled_from(PATH_TEXTS),
        "dir": st.sampled_from([b"", *DIRECTORY_TEXTS]),
    },
    "sock": {
        "fd": _FDS,
        "backlog": st.integers(-1, 128),
        "family": st.sampled_from([0, AF_UNIX, AF_INET, AF_INET, AF_INET6, AF_INET6, 16]),
        "local_port": PORTS,
        "remote_port": PORTS,
        "l4proto": st.sampled_from([0, 1, 6, 17, 58, 132]),
        "socktype": st.sampled_from([0, 1, 2, 3, 5]),
        "local_addr": st.sampled_from(ADDRESSES),
        "remote_addr": st.sampled_from(ADDRESSES),
        "path": st.sampled_from(SUN_TEXTS),
        "listen_fd": st.integers(0, 3),
        "state": st.integers(0, 3) | st.integers(0, 7).map(lambda kind: kind << 8),
        "data": st.sampled_from(PATH_TEXTS) | st.binary(max_size=32)
        | st.binary(max_size=2).map(lambda data: (data * 256)[: layout.DATA_MAX]),
    },
    "write": {
        "fd": _FDS,
        "path": st.sampled_from(
            [b"/var/log/btmp", b"/var/log/wtmp", b"btmp", b"/wtmp/x", b"", b"/var/log/wtmp.1"]
        ),
        "data": _UTMP | _UTMP | _UTMP.map(lambda data: data[:383]) | st.binary(max_size=8)
        | _UTMP.map(lambda data: (data * 2)[: layout.DATA_MAX]),
        "log": st.sampled_from(LOG_TEXTS),
    },
    "call": {
        **{f"arg{i}": _ARGUMENTS for i in range(6)},
        "at_cwd": st.integers(0, 3),
        "path": st.sampled_from(PATH_TEXTS),
        "dir": st.sampled_from([b"", *DIRECTORY_TEXTS]),
        "target": st.sampled_from(PATH_TEXTS),
        "target_dir": st.sampled_from([b"", *DIRECTORY_TEXTS]),
        "data": st.sampled_from(PATH_TEXTS) | st.binary(max_size=32) | _WORDS,
    },
    "chdir": {"fd": _FDS, "path": st.sampled_from(DIRECTORY_TEXTS + PATH_TEXTS)},
}  # fmt: skip


@st.composite
def records(draw: st.DrawFn, types: tuple[str, ...] = tuple(layout.TYPES)) -> bytes:
    """The bytes of one record that is well made, of any of the types."""
    name = draw(st.sampled_from(types))
    struct_name = layout.STRUCT_OF_TYPE[TYPE_NUMBERS[name]]
    values = {field: draw(strategy) for field, strategy in _BODIES[struct_name].items()}
    values["result"] = draw(_RESULTS)
    if struct_name == "fork" and draw(st.integers(0, 9)):
        values["result"] = values["child_pid"]
    return build(
        name,
        time_ns=draw(st.integers(0, 2**40)),
        flags=draw(_FLAGS),
        pid=draw(PIDS),
        tid=draw(PIDS),
        uid=draw(UIDS),
        gid=draw(UIDS),
        cgroup_id=draw(st.integers(0, 2)),
        **values,
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes that are no record: cut, with a size, a type or a length that is wrong, or any."""
    record = bytearray(draw(records()))
    match draw(st.integers(0, 4)):
        case 0:
            return bytes(record[: draw(st.integers(1, len(record) - 1))])
        case 1:
            at, value = layout.STRUCTS["header"]["size"][1], draw(st.integers(0, 200))
            record[at : at + 4] = value.to_bytes(4, "little")
        case 2:
            at, value = (
                layout.STRUCTS["header"]["type"][1],
                draw(st.sampled_from([0, 60000, 65535])),
            )
            record[at : at + 2] = value.to_bytes(2, "little")
        case 3:
            name = layout.STRUCT_OF_TYPE[int.from_bytes(record[12:14], "little")]
            lengths = [v[1] for f, v in layout.STRUCTS[name].items() if f.endswith("_len")]
            if lengths:
                at = draw(st.sampled_from(lengths))
                record[at : at + 2] = draw(st.sampled_from([b"\xff\xff", b"\x00\x10"]))
                record += bytes(draw(st.sampled_from([0, 4096, 8192])))
                record[8:12] = len(record).to_bytes(4, "little")
        case _:
            return draw(st.binary(min_size=1, max_size=120))
    return bytes(record)


@st.composite
def streams(draw: st.DrawFn, max_size: int = 12, damage: bool = True) -> bytes:
    """Records one after the other; with ``damage`` every tenth or so is none."""
    kinds = [records(tuple(TYPE_NUMBERS))] * 9 + ([damaged()] if damage else [])
    return b"".join(draw(st.lists(st.one_of(kinds), max_size=max_size)))
