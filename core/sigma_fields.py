"""What Sigma's fields mean here: log source and field -> checks of events.

A *target* is what one Sigma field is read as. The tables at the end of this file are the mapping;
docs/sigma.md shows them (``tables`` writes them, and a test holds the page to it).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from sigma.types import (
    CompareOperators,
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaExpansion,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaRegularExpressionFlag,
    SigmaString,
    SigmaTimestampPart,
    SigmaType,
    SpecialChars,
)

from vedette.core import fields as catalogue
from vedette.core import layout
from vedette.core.catalogue import SYSCALLS as KNOWN
from vedette.core.documents import shown
from vedette.core.expr import Expr
from vedette.core.sigma_words import Unlimited, word_regex
from vedette.core.trees import (
    TRUE,
    Pattern,
    Wild,
    all_of,
    any_of,
    check,
    literal_regex,
    negated,
    normal,
    one_of,
    regex,
    text,
)

VALUE_CHARS_MAX: Final = 4096
CUTS_MAX: Final = 128
Note = Callable[[str], None]
"""Takes what the rule's writer should know about a check."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_COMPARISONS: Final = {
    CompareOperators.LT: "<",
    CompareOperators.LTE: "<=",
    CompareOperators.GT: ">",
    CompareOperators.GTE: ">=",
    CompareOperators.NEQ: "!=",
}


class Refused(ValueError):
    """A check that cannot be made; ``str()`` says why, and what to write instead."""


class Unseen(ValueError):
    """A check of what no event carries (yet): it is never true. ``str()`` says what is missing."""


def pattern_of(value: SigmaString) -> list[bytes | Wild]:
    """Return a Sigma string, whose escapes pySigma has resolved. Raises Refused."""
    made: list[bytes | Wild] = []
    for part in value.s:
        if isinstance(part, str):
            made.append(part.encode("utf-8", "surrogateescape"))
        elif isinstance(part, SpecialChars):
            made.append(Wild.ANY if part is SpecialChars.WILDCARD_MULTI else Wild.ONE)
        else:
            raise Refused(f"the placeholder %{shown(part.name)}% has no value here; write it out")
    if sum(len(part) for part in made if isinstance(part, bytes)) > VALUE_CHARS_MAX:
        raise Refused(f"a value of more than {VALUE_CHARS_MAX} bytes")
    return normal(made)


@dataclass(frozen=True)
class Target:
    """What a Sigma field is read as.

    about   in words, for docs/sigma.md
    signal  the field of a signal that has its value, for group-by; None: none has
    """

    about: str
    signal: str | None = field(default=None, kw_only=True)

    def match(self, value: SigmaType, note: Note) -> Expr:
        """Return the check that the field matches one value. Raises Refused and Unseen."""
        match value:
            case SigmaExpansion():
                return any_of(*(self.match(item, note) for item in value.values))
            case SigmaNull():
                return negated(self.exists())
            case SigmaExists():
                return self.exists() if value.exists else negated(self.exists())
            case SigmaString():
                return self.text(pattern_of(value), isinstance(value, SigmaCasedString), note)
            case SigmaBool():
                return self.text([b"true" if value.boolean else b"false"], False, note)
            case SigmaTimestampPart():
                raise Refused("parts of a time are not supported")
            case SigmaNumber():
                return self.text([str(value.number).encode()], False, note)
            case SigmaRegularExpression():
                return self.expression(value, note)
            case SigmaCIDRExpression():
                return self.network(value.network)
            case SigmaCompareExpression():
                return self.compare(_COMPARISONS[value.op], value.number)
        raise Refused(f"values of the kind {type(value).__name__} are not supported")

    def exists(self) -> Expr:
        raise NotImplementedError

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        raise NotImplementedError

    def expression(self, value: SigmaRegularExpression, note: Note) -> Expr:
        return self.regex(_search(value), note)

    def regex(self, pattern: bytes, note: Note) -> Expr:
        raise Refused("a regular expression cannot be compared with this field")

    def network(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Expr:
        raise Refused("cidr goes with fields that hold an address")

    def compare(self, op: str, number: SigmaNumber) -> Expr:
        raise Refused("lt, lte, gt and gte go with fields that hold a number")


def _search(value: SigmaRegularExpression) -> bytes:
    """Return the expression that matches whole values in which Sigma's matches a part."""
    flags = {
        SigmaRegularExpressionFlag.IGNORECASE: "i",
        SigmaRegularExpressionFlag.MULTILINE: "m",
        SigmaRegularExpressionFlag.DOTALL: "s",
    }
    chosen = "".join(letter for flag, letter in flags.items() if flag in value.flags)
    dot = "" if "s" in chosen else "-s"
    source = str(value.regexp)
    if len(source) > VALUE_CHARS_MAX:
        raise Refused(f"a regular expression of more than {VALUE_CHARS_MAX} characters")
    return b".*(?" + (chosen + dot).encode() + b":" + source.encode() + b").*"


@dataclass(frozen=True)
class Text(Target):
    """A field that holds text."""

    name: str

    def exists(self) -> Expr:
        return check(self.name, "exists")

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        return text(self.name, pattern, cased=cased)

    def regex(self, pattern: bytes, note: Note) -> Expr:
        return regex(self.name, pattern)


@dataclass(frozen=True)
class Folder(Text):
    """A directory, which our field ends with a ``/``, and Sigma's rules write without."""

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        parts = normal(pattern)
        as_written = text(self.name, parts, cased=cased)
        last = parts[-1] if parts else b""
        if last is Wild.ANY or (isinstance(last, bytes) and last.endswith(b"/")):
            return as_written
        return any_of(as_written, text(self.name, [*parts, b"/"], cased=cased))

    def regex(self, pattern: bytes, note: Note) -> Expr:
        note("the directory has a / at its end, which a $ does not stand before")
        return regex(self.name, pattern)


@dataclass(frozen=True)
class Number(Target):
    """A field that holds a number; ``renamed`` are numbers that it writes another way."""

    name: str
    low: int = -(2**63)
    high: int = 2**63 - 1
    renamed: tuple[tuple[int, int], ...] = ()

    def exists(self) -> Expr:
        return check(self.name, "exists")

    def number(self, value: str) -> int:
        if not _NUMBER.fullmatch(value):
            raise Refused(f"expected a number, not {shown(value)}")
        number = dict(self.renamed).get(int(value), int(value))
        if not self.low <= number <= self.high:
            raise Refused(f"{number} is not within {self.low} to {self.high}")
        return number

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        match pattern:
            case []:
                return negated(self.exists())
            case [Wild.ANY]:
                return self.exists()
            case [bytes(one)]:
                return check(self.name, "=", self.number(one.decode("utf-8", "replace")))
        raise Refused("a number cannot be compared with wildcards; use lt, lte, gt and gte")

    def compare(self, op: str, number: SigmaNumber) -> Expr:
        return check(self.name, op, self.number(str(number)))


@dataclass(frozen=True)
class Address(Target):
    """A field that holds an address, and its twin that is compared with networks."""

    name: str
    net: str

    def exists(self) -> Expr:
        return check(self.name, "exists")

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        match pattern:
            case []:
                return negated(self.exists())
            case [Wild.ANY]:
                return self.exists()
            case [bytes(one)]:
                source = one.decode("utf-8", "replace")
                try:
                    address = ipaddress.ip_network(source)
                except ValueError:
                    raise Refused(f"expected an address, not {shown(source)}") from None
                packed, prefix = _network(address)
                if prefix < 8 * len(packed):
                    raise Refused("a network is compared with cidr")
                return check(self.name, "=", packed)
            case [bytes(one), Wild.ANY] if re.fullmatch(rb"(?:[0-9]{1,3}\.){1,3}", one):
                parts = one.split(b".")[:-1]
                if all(int(part) < 256 for part in parts):
                    base = bytes(int(part) for part in parts).ljust(4, b"\0")
                    return check(self.net, "=", (base, 8 * len(parts)))
        raise Refused(
            "addresses are compared whole, or by their first bytes (10.1.*), or with cidr"
        )

    def network(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Expr:
        return check(self.net, "=", _network(network))


def _network(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[bytes, int]:
    packed, prefix = network.network_address.packed, network.prefixlen
    if len(packed) == 16 and prefix >= 96 and packed.startswith(bytes(10) + b"\xff\xff"):
        return packed[12:], prefix - 96
    return packed, prefix


@dataclass(frozen=True)
class Line(Target):
    """A command line: argv joined by blanks.

    Our fields have argv[0] apart from the rest, so a pattern is cut wherever its text, or one of
    its wildcards, can be the blank between them. That is exact, and both parts stay in the
    tables' indexes. Of a parent, the rest is known with the process's name before it.

    exe    the field of argv[0]
    rest   the field of the other arguments; ``named`` tells whether a name and a blank precede them
    whole  what a regular expression is given
    """

    exe: str
    rest: str
    named: bool
    whole: str

    def exists(self) -> Expr:
        return check(self.exe, "exists")

    def after(self, pattern: Pattern, cased: bool) -> Expr:
        if not self.named:
            return text(self.rest, pattern, cased=cased)
        return text(self.rest, [Wild.ANY, b" ", *pattern], cased=cased)

    def is_alone(self) -> Expr:
        """Return the check that there is nothing but argv[0]."""
        if not self.named:
            return check(self.rest, "=", b"")
        return all_of(self.exists(), negated(check(self.rest, "contains", b" ")))

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        parts = normal(pattern)
        if parts == [Wild.ANY]:
            return self.exists()
        cuts = list(islice(_cuts(parts), CUTS_MAX + 1))
        if len(cuts) > CUTS_MAX:
            raise Refused(f"more than {CUTS_MAX} blanks and wildcards in one command line")
        found: list[Expr] = []
        if parts[-1:] != [Wild.ANY]:  # else the last cut says as much
            found.append(all_of(text(self.exe, parts, cased=cased), self.is_alone()))
        for left, right, is_wild in cuts:
            before = TRUE if left == [Wild.ANY] else text(self.exe, left, cased=cased)
            if right != [Wild.ANY]:
                behind = self.after(right, cased)
            else:
                behind = TRUE if is_wild else negated(self.is_alone())
            found.append(all_of(before, behind))
        return any_of(*found)

    def regex(self, pattern: bytes, note: Note) -> Expr:
        note(f"the regular expression is given {self.whole}, which has the name for argv[0]")
        return regex(self.whole, pattern)


_Parts = list[bytes | Wild]


def _cuts(parts: _Parts) -> Iterator[tuple[_Parts, _Parts, bool]]:
    """Cut a pattern at each place that can be the one blank, which goes.

    The third value tells whether the place is a ``*``, which can do without a blank, too. Where
    nothing would be left behind a blank there is none: argv[0] alone is not followed by one.
    """
    for index, part in enumerate(parts):
        before, behind = parts[:index], parts[index + 1 :]
        if part is Wild.ANY:
            yield [*before, Wild.ANY], [Wild.ANY, *behind], True
        elif part is Wild.ONE:
            if behind:
                yield before, behind, False
        elif isinstance(part, bytes):
            for at in (i for i, byte in enumerate(part) if byte == 0x20):
                rest = normal([part[at + 1 :], *behind])
                if rest:
                    yield normal([*before, part[:at]]), rest, False


@dataclass(frozen=True)
class Choice(Target):
    """A field of few values, each of which is a check of its own; in lower case."""

    choices: Mapping[str, Expr]

    def exists(self) -> Expr:
        return any_of(*self.choices.values())

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        if list(pattern) == [Wild.ANY]:
            return self.exists()
        one = pattern[0] if len(pattern) == 1 else None
        key = one.decode("utf-8", "replace").lower() if isinstance(one, bytes) else ""
        if key not in self.choices:
            raise Refused(f"expected one of {', '.join(self.choices)}")
        return self.choices[key]


@dataclass(frozen=True)
class Key(Choice):
    """The key of an audit rule: the host's auditd knows it, we know a few that are published."""

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        try:
            return super().text(pattern, cased, note)
        except Refused:
            known = ", ".join(self.choices)
            raise Unseen(
                f"keys name rules of auditd's configuration, which is not read (known: {known});"
                " name the syscall"
            ) from None


@dataclass(frozen=True)
class RecordType(Choice):
    """The type of an audit record; others than those that syscalls make are never true."""

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        try:
            return super().text(pattern, cased, note)
        except Refused:
            raise Unseen("records of this type are not made of captured syscalls") from None


@dataclass(frozen=True)
class Word(Target):
    """One argument, by its number: the words of the arguments, which blanks divide."""

    number: int

    @property
    def before(self) -> bytes:
        return b"(?:[^ ]* ){%d}" % (self.number - 1)

    def exists(self) -> Expr:
        more = b".+" if self.number == 1 else b".*"
        return all_of(EXEC, regex("proc.args", self.before + more))

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        out = [self.before]
        for part in pattern:
            if isinstance(part, bytes):
                out.append(literal_regex(part, cased=cased))
            else:
                out.append(b"[^ ]*" if part is Wild.ANY else b"[^ ]")
        found = all_of(EXEC, regex("proc.args", b"".join(out) + b"(?: .*)?"))
        # What matches the empty word, too, would match where there is none.
        return all_of(self.exists(), found) if set(pattern) <= {Wild.ANY} else found

    def expression(self, value: SigmaRegularExpression, note: Note) -> Expr:
        flags = value.flags
        if SigmaRegularExpressionFlag.MULTILINE in flags:
            raise Refused("m does not go with one argument")
        source = str(value.regexp)
        if len(source) > VALUE_CHARS_MAX:
            raise Refused(f"a regular expression of more than {VALUE_CHARS_MAX} characters")
        try:
            word = word_regex(
                source,
                ignore_case=SigmaRegularExpressionFlag.IGNORECASE in flags,
                dot_is_newline=SigmaRegularExpressionFlag.DOTALL in flags,
            )
        except Unlimited as error:
            raise Refused(
                f"arguments are joined by blanks here, and {error} cannot be kept to one of them"
            ) from None
        return all_of(self.exists(), regex("proc.args", self.before + word + b"(?: .*)?"))


@dataclass(frozen=True)
class First(Text):
    """argv[0] of an exec."""

    def exists(self) -> Expr:
        return all_of(EXEC, super().exists())

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        return all_of(EXEC, super().text(pattern, cased, note))

    def regex(self, pattern: bytes, note: Note) -> Expr:
        return all_of(EXEC, super().regex(pattern, note))


@dataclass(frozen=True)
class Title(Line):
    """The command line of an exec."""

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        return all_of(EXEC, super().text(pattern, cased, note))

    def regex(self, pattern: bytes, note: Note) -> Expr:
        return all_of(EXEC, super().regex(pattern, note))


@dataclass(frozen=True)
class Paths(Target):
    """A path that is in one field or another, by the event.

    places  (events, the field that has it in these)
    """

    places: tuple[tuple[tuple[str, ...], str], ...]

    def each(self, of: Callable[[str], Expr]) -> Expr:
        return any_of(*(all_of(_types(*events), of(name)) for events, name in self.places))

    def exists(self) -> Expr:
        return self.each(lambda name: check(name, "exists"))

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        return self.each(lambda name: text(name, pattern, cased=cased))

    def regex(self, pattern: bytes, note: Note) -> Expr:
        return self.each(lambda name: regex(name, pattern))


@dataclass(frozen=True)
class Syscall(Target):
    """The name of a syscall."""

    def exists(self) -> Expr:
        return one_of("evt.type", [name.encode() for name in SYSCALLS])

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        one = pattern[0] if len(pattern) == 1 else None
        if not isinstance(one, bytes):
            raise Refused("expected a syscall's name, without wildcards")
        name = one.decode("utf-8", "replace").lower()
        if name.isdigit():
            raise Refused("syscalls are named here, their numbers differ between machines")
        if name not in SYSCALLS:
            raise Unseen(f"the syscall {shown(name)} is not captured yet")
        return check("evt.type", "=", name.encode())


@dataclass(frozen=True)
class Terminal(Target):
    """A controlling terminal by its name: proc.tty has its number."""

    def exists(self) -> Expr:
        return check("proc.tty", "!=", 0)

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        if list(pattern) == [Wild.ANY]:
            return TRUE
        one = pattern[0] if len(pattern) == 1 else None
        name = one.decode("utf-8", "replace").lower() if isinstance(one, bytes) else ""
        if name == "(none)":
            return check("proc.tty", "=", 0)
        found = re.fullmatch(r"(pts/?|ttys|tty)([0-9]{1,4})", name)
        if found is None:
            raise Refused("expected pts0, tty1, ttyS0 and their like, or (none)")
        major, first = {"pts": (136, 0), "tty": (4, 0), "ttys": (4, 64)}[found[1].rstrip("/")]
        minor = first + int(found[2])
        # new_encode_dev(), linux/kdev_t.h
        return check("proc.tty", "=", minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


@dataclass(frozen=True)
class Count(Number):
    """The number of arguments, argv[0] included."""

    def number(self, source: str) -> int:
        return super().number(source) - 1


@dataclass(frozen=True)
class Nowhere(Target):
    """A field that Sigma has and no event here; ``about`` says why."""

    def match(self, value: SigmaType, note: Note) -> Expr:
        raise Unseen(self.about)


@dataclass(frozen=True)
class Captured(Text):
    """A field that is asked of the catalogue when a rule names it: it may not be captured yet."""

    @property
    def is_seen(self) -> bool:
        return bool(catalogue.events_of(self.name))

    def match(self, value: SigmaType, note: Note) -> Expr:
        if not self.is_seen:
            raise Unseen(f"{self.name} is not captured yet")
        return super().match(value, note)


@dataclass(frozen=True)
class Hashes(Captured):
    """Hashes as Sysmon writes them, SHA256=…,MD5=…: of these the SHA-256."""

    def text(self, pattern: Pattern, cased: bool, note: Note) -> Expr:
        parts = [part for part in normal(pattern) if part is not Wild.ANY]
        one = parts[0] if len(parts) == 1 else None
        found = (
            re.fullmatch(rb"(?i)(SHA256)=([0-9a-f]{64})", one) if isinstance(one, bytes) else None
        )
        if found is None:
            raise Unseen("of hashes only SHA256=… with 64 digits is known")
        return super().text([found[2]], False, note)

    def regex(self, pattern: bytes, note: Note) -> Expr:
        raise Refused("hashes are compared as text, SHA256=…")


def _types(*names: str) -> Expr:
    return one_of("evt.type", [name.encode() for name in names])


def _places(*wanted: tuple[tuple[str, ...] | str, str]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return where paths are: (events, field), as far as the catalogue has both."""
    found: list[tuple[tuple[str, ...], str]] = []
    for names, field_name in wanted:
        seen = catalogue.events_of(field_name)
        chosen = tuple(names.split()) if isinstance(names, str) else names
        if events := tuple(name for name in chosen if name in seen):
            found.append((events, field_name))
    return tuple(found)


SYSCALLS: Final = tuple(name for name in layout.TYPES if name in KNOWN and name != "write")
"""Names of the syscalls that are captured; write is captured of login records only."""

EXEC: Final = all_of(_types(*catalogue.EXECS), check("evt.rawres", "=", 0))
OPENS: Final = _types(*catalogue.OPENS)
RENAMES: Final = "rename renameat renameat2"
LINKS: Final = "link linkat"
SYMLINKS: Final = "symlink symlinkat"
MAKES: Final = "mkdir mkdirat mknod mknodat"
REMOVES: Final = "unlink unlinkat rmdir"
CHANGES: Final = (
    "chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat truncate ftruncate chroot"
    " mount umount umount2"
)
MADE: Final = _places(
    (RENAMES, "evt.arg.newpath"), (LINKS, "evt.arg.newpath"), (SYMLINKS, "evt.arg.linkpath"),
    ("mknod mknodat", "fs.path.name"),
)  # fmt: skip
"""Where the path of a file is that appears without being opened."""
PATHS: Final = _places(
    (catalogue.OPENS, "fd.name"), (catalogue.EXECS, "evt.arg.filename"), ("chdir", "evt.arg.path"),
    (" ".join((MAKES, REMOVES, CHANGES)), "fs.path.name"),
    (RENAMES, "evt.arg.oldpath"), (RENAMES, "evt.arg.newpath"),
    (LINKS, "evt.arg.oldpath"), (LINKS, "evt.arg.newpath"), (SYMLINKS, "evt.arg.linkpath"),
)  # fmt: skip
"""Where the paths are that auditd writes PATH records of."""
CREATED: Final = tuple(
    name for name in " ".join((RENAMES, LINKS, SYMLINKS, MAKES)).split() if name in layout.TYPES
)
DELETED: Final = tuple(name for name in f"{REMOVES} {RENAMES}".split() if name in layout.TYPES)
_COMPLETED: Final = any_of(check("evt.failed", "=", 0), check("evt.res", "=", b"EINPROGRESS"))


@dataclass(frozen=True)
class LogSource:
    """A log source: which events it means, and its fields.

    base     the check that an event is one of it
    about    the same in words
    output   the template that its rules print, after the rule's title
    targets  field -> what it is read as
    """

    name: str
    base: Expr
    about: str
    output: str
    targets: Mapping[str, Target]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _told(places: tuple[tuple[tuple[str, ...], str], ...]) -> str:
    """Return in words where paths are."""
    return "; ".join(f"{name} of {_listed(events)}" for events, name in places)


def _text(about: str, name: str) -> Text:
    return Text(about, name, signal=name)


def _number(about: str, name: str, low: int = 0, high: int = 2**32 - 1) -> Number:
    return Number(about, name, low, high, signal=name)


_IMAGE: Final = _text("proc.exepath", "proc.exepath")
_USER: Final = _text("user.name", "user.name")
_PID: Final = _number("proc.pid", "proc.pid")
_HOSTNAME: Final = _text("evt.hostname", "evt.hostname")
_COMMAND_LINE: Final = Line(
    "argv joined by blanks (proc.exe and proc.args; a regular expression: proc.cmdline)",
    "proc.exe", "proc.args", False, "proc.cmdline",
)  # fmt: skip
_NO_HASHES: Final = Nowhere("of hashes SHA-256 alone is known")
_WINDOWS: Final = Nowhere("there is no such thing on Linux")

PROCESS_CREATION: Final = LogSource(
    "process_creation",
    EXEC,
    "execve and execveat that succeeded",
    "%user.name ran %proc.cmdline (executable %proc.exepath, parent %proc.pcmdline)",
    {
        "Image": _IMAGE,
        "CommandLine": _COMMAND_LINE,
        "CurrentDirectory": Folder("proc.cwd, with or without / at its end", "proc.cwd"),
        "User": _USER,
        "LogonId": _number("user.uid, as Sysmon for Linux has it", "user.uid"),
        "ProcessId": _PID,
        "ParentImage": _text("proc.pexepath", "proc.pexepath"),
        "ParentCommandLine": Line(
            "proc.pexe, and proc.pcmdline after its first blank (a regular expression: all of it)",
            "proc.pexe", "proc.pcmdline", True, "proc.pcmdline",
        ),
        "ParentProcessId": _number("proc.ppid", "proc.ppid"),
        "Computer": _HOSTNAME,
        "Hostname": _HOSTNAME,
        "Hashes": Hashes(
            "proc.exe_sha256, written SHA256=… (others are never true)", "proc.exe_sha256",
            signal="proc.exe_sha256",
        ),
        "md5": _NO_HASHES,
        "sha1": _NO_HASHES,
        "sha256": Captured("proc.exe_sha256", "proc.exe_sha256", signal="proc.exe_sha256"),
        "Imphash": _WINDOWS,
        "IntegrityLevel": _WINDOWS,
        "OriginalFileName": _WINDOWS,
        "Company": _WINDOWS,
        "Description": _WINDOWS,
        "Product": _WINDOWS,
        "FileVersion": _WINDOWS,
    },
)  # fmt: skip

_CREATING: Final = all_of(OPENS, check("evt.is_open_create", "=", 1))
_MAKING: Final = tuple(dict.fromkeys(event for events, _ in MADE for event in events))

FILE_EVENT: Final = LogSource(
    "file_event",
    all_of(
        any_of(_CREATING, _types(*_MAKING)) if _MAKING else _CREATING,
        check("evt.failed", "=", 0),
    ),
    f"{_listed(catalogue.OPENS)} with O_CREAT or O_TMPFILE"
    + (f", {_listed(_MAKING)}" if _MAKING else "")
    + "; those that succeeded",
    "%user.name wrote %fd.name"
    + "".join(f" {name}=%{name}" for name in dict.fromkeys(name for _, name in MADE))
    + " with %proc.cmdline (executable %proc.exepath)",
    {
        "TargetFilename": Paths(
            _told(_places((catalogue.OPENS, "fd.name")) + MADE),
            _places((catalogue.OPENS, "fd.name")) + MADE,
            signal="fd.name",
        ),
        "Image": _IMAGE,
        "User": _USER,
        "ProcessId": _PID,
        "Computer": _HOSTNAME,
        "Hostname": _HOSTNAME,
        "CreationUtcTime": Nowhere("the time at which a file was made is not captured"),
    },
)

_SEEN: Final = catalogue.events_of("fd.sip")
_BEGUN: Final = tuple(name for name in ("connect", "sendto", "sendmsg") if name in _SEEN)
_TAKEN: Final = tuple(
    name for name in ("accept", "accept4", "recvfrom", "recvmsg") if name in _SEEN
)

NETWORK_CONNECTION: Final = LogSource(
    "network_connection",
    all_of(_types(*_BEGUN, *_TAKEN), one_of("fd.type", [b"ipv4", b"ipv6"]), _COMPLETED),
    f"{_listed((*_BEGUN, *_TAKEN))} that succeeded (connect also where it goes on in the"
    " background: EINPROGRESS), over IPv4 or IPv6; of datagrams the first to or from a peer",
    "%fd.l4proto %fd.name by %proc.cmdline (executable %proc.exepath, user %user.name)",
    {
        "Initiated": Choice(
            f"true: {_listed(_BEGUN)}; false: {_listed(_TAKEN)}",
            {"true": _types(*_BEGUN), "false": _types(*_TAKEN)},
        ),
        "DestinationIp": Address("fd.sip, the server's", "fd.sip", "fd.snet", signal="fd.sip"),
        "DestinationPort": _number("fd.sport, the server's", "fd.sport", 0, 65535),
        "DestinationHostname": Captured("fd.sip.name", "fd.sip.name", signal="fd.sip.name"),
        "DestinationIsIpv6": Choice(
            "fd.type",
            {"true": check("fd.type", "=", b"ipv6"), "false": check("fd.type", "=", b"ipv4")},
        ),
        "SourceIp": Address("fd.cip, the client's", "fd.cip", "fd.cnet", signal="fd.cip"),
        "SourcePort": _number("fd.cport, the client's", "fd.cport", 0, 65535),
        "SourceHostname": Captured("fd.cip.name", "fd.cip.name", signal="fd.cip.name"),
        "Protocol": _text("fd.l4proto", "fd.l4proto"),
        "Image": _IMAGE,
        "User": _USER,
        "ProcessId": _PID,
        "Computer": _HOSTNAME,
        "Hostname": _HOSTNAME,
    },
)

_CONNECTED: Final = all_of(_types("connect"), check("evt.failed", "=", 0))
KEYS: Final = Key(
    "network_connect_4 and network_connect_6 of Neo23x0/auditd: a connect over IPv4, IPv6 that"
    " succeeded",
    {
        "network_connect_4": all_of(_CONNECTED, check("fd.type", "=", b"ipv4")),
        "network_connect_6": all_of(_CONNECTED, check("fd.type", "=", b"ipv6")),
    },
)
_PATH_EVENTS: Final = tuple(dict.fromkeys(event for events, _ in PATHS for event in events))
_NORMAL: Final = tuple(
    name for name in _PATH_EVENTS if name not in (*catalogue.OPENS, *CREATED, *DELETED)
)
ARGUMENTS_MAX: Final = 63
RAW_ARGUMENT: Final = Nowhere(
    "of the raw arguments of a syscall, those of a0 to a3 are known that are numbers, and only of"
    " syscalls that the rule names; `vedette fields audit.` says which"
)
_UNSET: Final = ((0xFFFFFFFF, -1),)

_IN_SYSCALLS: Final = (
    "in a SYSCALL record a0 to a3 are audit.a0 to audit.a3, of those of its syscalls that have them"
)

AUDITD: Final = LogSource(
    "auditd",
    TRUE,
    "see the record types",
    "%evt.type %fd.name by %proc.cmdline (executable %proc.exepath, user %user.name)",
    {
        "a0": First(f"proc.exe, of an exec ({_IN_SYSCALLS})", "proc.exe"),
        **{
            f"a{number}": Word(
                f"that word of proc.args, of an exec ({_IN_SYSCALLS})",
                number,
            )
            for number in range(1, ARGUMENTS_MAX + 1)
        },
        "proctitle": Title(_COMMAND_LINE.about + ", of an exec", "proc.exe", "proc.args", False,
                           "proc.cmdline"),
        "name": Paths(_told(PATHS), PATHS),
        "nametype": Choice(
            "CREATE: an open with O_CREAT or O_TMPFILE"
            + (f", {_listed(CREATED)}; DELETE: {_listed(DELETED)}" if CREATED else "")
            + "; NORMAL: an open without, and any other syscall with a path",
            {
                "create": any_of(_CREATING, *([_types(*CREATED)] if CREATED else [])),
                "normal": any_of(
                    all_of(OPENS, check("evt.is_open_create", "=", 0)), _types(*_NORMAL)
                ),
                **({"delete": _types(*DELETED)} if DELETED else {}),
            },
        ),
        "SYSCALL": Syscall("evt.type"),
        "syscall": Syscall("evt.type"),
        "success": Choice(
            "evt.failed",
            {"yes": check("evt.failed", "=", 0), "no": check("evt.failed", "=", 1)},
        ),
        "exit": _number("evt.rawres", "evt.rawres", -(2**63), 2**63 - 1),
        "key": KEYS,
        "exe": _IMAGE,
        "comm": _text("proc.name", "proc.name"),
        "cwd": Folder("proc.cwd, with or without / at its end", "proc.cwd"),
        "pid": _PID,
        "ppid": _number("proc.ppid", "proc.ppid"),
        "euid": _number("user.uid", "user.uid"),
        "egid": _number("group.gid", "group.gid"),
        "auid": Number(
            "user.loginuid (4294967295: unset)", "user.loginuid", -1, 2**32 - 2, _UNSET,
            signal="user.loginuid",
        ),
        "tty": Terminal("proc.tty: pts0, tty1, ttyS0, (none)"),
        "argc": Count(
            "proc.cmdnargs and one, of an exec", "proc.cmdnargs", 1, 2**31 - 1,
        ),
        "ouid": _number("fs.owner.uid, of opens and execs that succeeded", "fs.owner.uid"),
        **dict.fromkeys(
            ("uid", "gid", "suid", "fsuid", "sgid", "fsgid"),
            Nowhere("of a process's ids the effective ones are captured; write euid or egid"),
        ),
        "ses": Nowhere("the audit session's number is not captured; auid tells who logged in"),
        "saddr": Nowhere("an address that is written in hexadecimal; category network_connection"
                         " has its parts"),
        **dict.fromkeys(("inode", "mode", "ogid", "dev", "rdev"),
                        Nowhere("of a file's inode the owner is captured; name has its path")),
        **dict.fromkeys(("arch", "items", "per", "subj", "obj", "cap_fp", "cap_fi"),
                        Nowhere("no event carries it")),
    },
)  # fmt: skip


def raw_argument(name: str, syscalls: frozenset[str]) -> Target:
    """Return what an argument (a0 to a63) of a SYSCALL record is, of the syscalls named."""
    field_name = f"audit.{name}"
    if syscalls.isdisjoint(catalogue.events_of(field_name)):
        return RAW_ARGUMENT
    return _text(field_name, field_name)


RESTRICTING: Final = frozenset(
    {"name", "nametype", "SYSCALL", "syscall", "key", "proctitle"}
    | {f"a{number}" for number in range(ARGUMENTS_MAX + 1)}
)
"""Fields of auditd whose check says itself which events it is about."""

PATH_RECORDS: Final = _types(*_PATH_EVENTS)
RECORDS: Final[Mapping[str, tuple[Expr, str]]] = {
    "EXECVE": (EXEC, "an exec that succeeded"),
    "PROCTITLE": (EXEC, "an exec that succeeded"),
    "CWD": (EXEC, "an exec that succeeded"),
    "PATH": (PATH_RECORDS, "a syscall that has a name, see there"),
    "SYSCALL": (
        TRUE,
        "the syscall or key that is named beside it, otherwise an exec that succeeded",
    ),
}
RECORD_TYPE: Final = RecordType(
    "the record's type", {name.lower(): expr for name, (expr, _) in RECORDS.items()}
)
LOG_SOURCES: Final = (PROCESS_CREATION, FILE_EVENT, NETWORK_CONNECTION, AUDITD)


def tables() -> str:
    """Return the mapping as docs/sigma.md has it, in Markdown."""
    out: list[str] = []
    for source in LOG_SOURCES:
        out += [f"### {source.name}", "", f"Events: {source.about}.", ""]
        if source is AUDITD:
            out += ["| record type | events |", "|---|---|"]
            out += [f"| {name} | {about} |" for name, (_, about) in RECORDS.items()]
            out += ["", "Any other record type is never true: it is not made of syscalls.", ""]
        out += ["| Sigma | here |", "|---|---|"]
        missing: dict[str, list[str]] = {}
        same: dict[str, list[str]] = {}
        for name, target in source.targets.items():
            if isinstance(target, Nowhere) or (isinstance(target, Captured) and not target.is_seen):
                why = "not captured yet" if isinstance(target, Captured) else target.about
                missing.setdefault(why, []).append(name)
            else:
                same.setdefault(target.about, []).append(name)
        for about, names in same.items():
            listed = ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}"
            out.append(f"| {listed} | {about} |")
        out += [f"| {', '.join(names)} | no: {about} |" for about, names in missing.items()]
        out.append("")
    return "\n".join(out).replace("|---|---|\n\n", "|---|---|\n")
