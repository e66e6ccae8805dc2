"""Keys of the wire: CURVE key pairs in files, and the list of hosts that the aggregator lets in.

A key pair's file has two lines, the public and the secret key as Z85 text (ZeroMQ RFC 32), and is
readable by its owner only. The allow-list has one key a line, `PUBLIC-KEY HOST-ID`; for who may
only ask questions `PUBLIC-KEY NAME role=reader`; and, for a key that is being replaced, with
`until=2026-11-24T08:00:00Z` behind it. In both files, empty lines and lines that begin with a `#`
are left out (no key does: 32 bits never reach that digit).

`enroll`, `revoke` and `rotate` change an allow-list: one at a time, all or nothing, and leaving
every other line as it is.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import grp
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

KEY_CHARS = 40
KEY_FILE_BYTES_MAX = 4096
ALLOW_LIST_BYTES_MAX = 16 << 20
HOSTS_MAX = 100_000
KEYS_PER_HOST_MAX = 8
"""One that is valid for good, and those it replaces."""

ROLES = ("agent", "reader")
"""What a key may do: speak for a host, or ask the store questions."""
AGENT, READER = ROLES

_HOST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class KeyFileError(Exception):
    """A key or an allow-list cannot be used; the text names the file, the line and the cure."""


class KeyPair(NamedTuple):
    """A CURVE key pair, as Z85 text."""

    public: str
    secret: str

    def __repr__(self) -> str:
        """Show the public half only, so that no log ever holds the secret."""
        return f"KeyPair(public={self.public!r})"


class CurveKeys(NamedTuple):
    """What an agent needs to speak CURVE: the aggregator's public key and its own pair.

    next_public  the key that the aggregator will have, while its key is being exchanged
    """

    server_public: str
    own: KeyPair
    next_public: str | None = None

    @property
    def server_keys(self) -> tuple[str, ...]:
        """The keys that the aggregator may have."""
        return tuple(key for key in (self.server_public, self.next_public) if key is not None)


def make_pair() -> KeyPair:
    """Make a new key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def write_pair(path: str | Path, pair: KeyPair, group: str | None = None) -> None:
    """Write a key pair into a new file of mode 0600.

    group  who may read it, too (mode 0640): that of a service without root's rights

    Raises KeyFileError where the file exists, or there is no such group.
    """
    content = f"# public, then secret\n{pair.public}\n{pair.secret}\n"
    write_secret(path, content.encode("ascii"), group)


def write_secret(path: str | Path, content: bytes, group: str | None = None) -> None:
    """Write a secret into a new file of mode 0600; group and errors as of `write_pair`."""
    path = Path(path)
    try:
        gid = None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise KeyFileError(f"{path}: there is no group {group}") from None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(
            f"{path}: exists; keys are not overwritten, move it away first"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be made: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        if gid is not None:
            try:
                os.fchown(descriptor, -1, gid)
            except OSError as error:
                path.unlink()
                raise KeyFileError(
                    f"{path}: cannot be given to the group {group}: {error.strerror}"
                ) from None
            os.fchmod(descriptor, 0o640)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_pair(path: str | Path) -> KeyPair:
    """Read a key pair.

    Raises KeyFileError where the file is missing, is readable by others than its owner (of root's,
    than its owner and group), belongs to another user than root or oneself, or holds no pair.
    """
    path = Path(path)
    raw = read_secret(path)
    lines = _lines(path, raw, KEY_FILE_BYTES_MAX)
    if len(lines) != 2:
        raise KeyFileError(
            f"{path}: has {len(lines)} lines; a key pair has two, the public and the secret key"
        )
    keys = [check_key(text, f"{path}:{number}") for number, text in lines]
    pair = KeyPair(*keys)
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise KeyFileError(
            f"{path}: the public key in line {lines[0][0]} is not that of the secret"
        )
    return pair


def read_secret(path: str | Path) -> bytes:
    """Read a file that holds a secret, at most KEY_FILE_BYTES_MAX and one byte of it.

    Raises KeyFileError where the file is missing, is readable by others than its owner (of root's,
    than its owner and group), or belongs to another user than root or oneself.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path}: not a regular file")
    # Of a file of root's a group may read, a service's: who is in it is root's choice.
    if status.st_mode & (0o037 if status.st_uid == 0 else 0o077):
        raise KeyFileError(
            f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets others read the secret key; "
            f"run `chmod 600 {path}`"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(
            f"{path}: belongs to user {status.st_uid}, who could change the key; "
            f"run `chown root {path}`"
        )
    return raw


def check_key(text: str, where: str) -> str:
    """Return a key's text if it is one. Raises KeyFileError, which begins with `where`."""
    try:
        if len(text) == KEY_CHARS and len(z85.decode(text)) == 32:
            return text
    except (KeyError, ValueError, OverflowError, struct.error):
        pass
    raise KeyFileError(f"{where}: not a CURVE key, which is {KEY_CHARS} characters of Z85 text")


class Allowed(NamedTuple):
    """Whom a key belongs to, and what it may do.

    host_id  the host's id; of a reader, a name
    until_s  when it ends, in seconds since 1970; None: never
    role     one of ROLES
    """

    host_id: str
    until_s: float | None = None
    role: str = AGENT

    def valid(self, now_s: float) -> bool:
        """Tell whether the key may be used at a time."""
        return self.until_s is None or now_s < self.until_s


def read_allow_list(path: str | Path, role: str | None = None) -> dict[str, Allowed]:
    """Read which keys may connect: public key -> host and end; those of one role, or all.

    A host speaks only as the host_id beside its key. Raises KeyFileError for a file that cannot be
    read, a line that is no key, id, role and end, a key that stands twice, and an id with two keys
    that have no end.
    """
    path = Path(path)
    allowed: dict[str, Allowed] = {}
    line_of_id: dict[str, int] = {}
    keys_of_id: dict[str, int] = {}
    for number, text in _lines(path, _read(path), ALLOW_LIST_BYTES_MAX):
        where = f"{path}:{number}"
        key, _, rest = text.partition(" ")
        host_id, options = _options(rest)
        check_key(key, where)
        check_host_id(host_id, where)
        until_s = _until(options["until"], where) if "until" in options else None
        own_role = options.get("role", AGENT)
        if own_role not in ROLES:
            raise KeyFileError(f"{where}: role={own_role}: a role is one of {', '.join(ROLES)}")
        if key in allowed:
            raise KeyFileError(
                f"{where}: this key stands for {allowed[key].host_id} already; keep one"
            )
        if until_s is None:
            if host_id in line_of_id:
                raise KeyFileError(
                    f"{where}: {host_id} has a key in line {line_of_id[host_id]} already; keep "
                    "one, or give the old one an end (`until=`)"
                )
            line_of_id[host_id] = number
        keys_of_id[host_id] = keys_of_id.get(host_id, 0) + 1
        if keys_of_id[host_id] > KEYS_PER_HOST_MAX:
            raise KeyFileError(f"{where}: {host_id} has more than {KEYS_PER_HOST_MAX} keys")
        if len(keys_of_id) > HOSTS_MAX:
            raise KeyFileError(f"{where}: more than {HOSTS_MAX} hosts")
        allowed[key] = Allowed(host_id, until_s, own_role)
    return {key: one for key, one in allowed.items() if role in (None, one.role)}


def _options(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands behind a key: the id, and `until` and `role` where they are given."""
    words = text.split()
    options: dict[str, str] = {}
    while len(words) > 1:
        name, equals, value = words[-1].partition("=")
        if not equals or name not in ("until", "role") or name in options:
            break
        options[name] = value
        words.pop()
    return " ".join(words), options


def check_host_id(text: str, where: str) -> str:
    """Return a host id's text if it is one. Raises KeyFileError, which begins with `where`."""
    if not _HOST_ID.fullmatch(text):
        raise KeyFileError(
            f"{where}: {text!r} is no host id; a line is `PUBLIC-KEY HOST-ID`, an id has 1 "
            "to 64 of the characters A-Z a-z 0-9 . _ -"
        )
    return text


def enroll(path: str | Path, host_id: str, public_key: str, role: str = AGENT) -> None:
    """Add a host's (or a reader's) key to an allow-list, which is made where there is none.

    Raises KeyFileError where the host, or the key, stands there already.
    """
    path = Path(path)
    check_key(public_key, "the host's key")
    check_host_id(host_id, "host id")
    with _changing(path, make=True) as change:
        for key, allowed in change.allowed.items():
            if key == public_key:
                raise KeyFileError(f"{path}: this key stands for {allowed.host_id} already")
            if allowed.host_id == host_id:
                raise KeyFileError(
                    f"{path}: {host_id} is enrolled already; `vedette rotate` gives it a new key, "
                    "`vedette revoke` takes it off"
                )
        change.lines.append(_line(public_key, host_id, role))


def _line(key: str, host_id: str, role: str, until: str = "") -> str:
    return f"{key} {host_id}{'' if role == AGENT else f' role={role}'}{until}"


def revoke(path: str | Path, host_id: str) -> int:
    """Take all keys of a host off an allow-list; return how many there were.

    Raises KeyFileError where there are none.
    """
    path = Path(path)
    with _changing(path) as change:
        count = change.edit(host_id, lambda key: None)
        if not count:
            raise KeyFileError(f"{path}: {host_id} is not enrolled")
    return count


def rotate(path: str | Path, host_id: str, public_key: str, until_s: float, now_s: float) -> None:
    """Give a host a new key; those it has stay valid until a time (seconds since 1970).

    What has ended before now_s is taken out. Raises KeyFileError where the host is not enrolled or
    the key stands in the list already.
    """
    path = Path(path)
    check_key(public_key, "the host's key")
    with _changing(path) as change:
        if public_key in change.allowed:
            raise KeyFileError(
                f"{path}: this key stands for {change.allowed[public_key].host_id} already"
            )
        end = dt.datetime.fromtimestamp(int(until_s), dt.UTC)
        role = next((one.role for one in change.allowed.values() if one.host_id == host_id), AGENT)

        def replaced(key: str) -> str | None:
            was = change.allowed[key]
            if until_s <= now_s or not was.valid(now_s):
                return None
            if was.until_s is not None and was.until_s <= until_s:
                return ""
            return _line(key, host_id, role, f" until={end:%Y-%m-%dT%H:%M:%SZ}")

        if not change.edit(host_id, replaced):
            raise KeyFileError(f"{path}: {host_id} is not enrolled; `vedette enroll` does that")
        change.lines.append(_line(public_key, host_id, role))


class _Change:
    """An allow-list that is being changed: its lines as they are, and what they mean."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.allowed = read_allow_list(path) if raw else {}
        self.lines = raw.decode("ascii").splitlines()

    def edit(self, host_id: str, become: Callable[[str], str | None]) -> int:
        """Let each line of a host become another, or go (None), or stay ("")."""
        lines: list[str] = []
        found = 0
        for line in self.lines:
            key = line.strip().partition(" ")[0]
            allowed = self.allowed.get(key)
            if allowed is None or allowed.host_id != host_id:
                lines.append(line)
                continue
            found += 1
            new = become(key)
            if new is not None:
                lines.append(new or line)
        self.lines = lines
        return found


@contextmanager
def _changing(path: Path, make: bool = False) -> Iterator[_Change]:
    """Change an allow-list under a lock; readers see the old list or the new one."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be changed: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        raw = b"" if make and not path.exists() else _read(path)
        change = _Change(path, raw)
        yield change
        new = path.with_name(f"{path.name}.new")
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
        with new.open("w", encoding="ascii") as file:
            os.fchmod(file.fileno(), mode)
            file.write("".join(f"{line}\n" for line in change.lines))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be changed: {error.strerror}") from None
    finally:
        os.close(lock)


def _until(text: str, where: str) -> float:
    try:
        end = dt.datetime.fromisoformat(text)
    except ValueError:
        raise KeyFileError(
            f"{where}: {text!r} is no time; write it as until=2026-11-24T08:00:00Z"
        ) from None
    if end.tzinfo is None:
        raise KeyFileError(f"{where}: {text!r} says no time zone; end it with a Z for UTC")
    return end.timestamp()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ALLOW_LIST_BYTES_MAX + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(path: Path, raw: bytes, bytes_max: int) -> list[tuple[int, str]]:
    """Lines that say something, with their numbers."""
    if len(raw) > bytes_max:
        raise KeyFileError(f"{path}: longer than {bytes_max} bytes; not a file of keys")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise KeyFileError(f"{path}:{line}: not ASCII text, so no keys") from None
    return [
        (number, line.strip())
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.startswith("#")
    ]
