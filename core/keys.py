"""Keys of the wire: CURVE key pairs in files, and the list of hosts that the aggregator lets in.

A key pair's file has two lines, the public and the secret key as Z85 text (ZeroMQ RFC 32), and is
readable by its owner only. The allow-list has one host a line, `PUBLIC-KEY HOST-ID`. In both, empty
lines and lines that begin with a `#` are left out (no key does: 32 bits never reach that digit).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

KEY_CHARS = 40
KEY_FILE_BYTES_MAX = 4096
ALLOW_LIST_BYTES_MAX = 16 << 20
HOSTS_MAX = 100_000

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
    """What an agent needs to speak CURVE: the aggregator's public key and its own pair."""

    server_public: str
    own: KeyPair


def make_pair() -> KeyPair:
    """Make a new key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def write_pair(path: str | Path, pair: KeyPair) -> None:
    """Write a key pair into a new file of mode 0600. Raises KeyFileError where the file exists."""
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(
            f"{path}: exists; keys are not overwritten, move it away first"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be made: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"# public, then secret\n{pair.public}\n{pair.secret}\n")
        file.flush()
        os.fsync(file.fileno())


def read_pair(path: str | Path) -> KeyPair:
    """Read a key pair.

    Raises KeyFileError where the file is missing, is readable by others than its owner, belongs to
    another user than root or oneself, or holds no pair.
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
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets others read the secret key; "
            f"run `chmod 600 {path}`"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(
            f"{path}: belongs to user {status.st_uid}, who could change the key; "
            f"run `chown root {path}`"
        )
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


def check_key(text: str, where: str) -> str:
    """Return a key's text if it is one. Raises KeyFileError, which begins with `where`."""
    try:
        if len(text) == KEY_CHARS and len(z85.decode(text)) == 32:
            return text
    except (KeyError, ValueError, OverflowError, struct.error):
        pass
    raise KeyFileError(f"{where}: not a CURVE key, which is {KEY_CHARS} characters of Z85 text")


def read_allow_list(path: str | Path) -> dict[str, str]:
    """Read which hosts may connect: public key -> host_id.

    A host speaks only as the host_id beside its key. Raises KeyFileError for a file that cannot be
    read, a line that is no key and id, and a key or id that stands twice.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(ALLOW_LIST_BYTES_MAX + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    allowed: dict[str, str] = {}
    line_of_id: dict[str, int] = {}
    for number, text in _lines(path, raw, ALLOW_LIST_BYTES_MAX):
        where = f"{path}:{number}"
        key, _, host_id = text.partition(" ")
        host_id = host_id.strip()
        check_key(key, where)
        if not _HOST_ID.fullmatch(host_id):
            raise KeyFileError(
                f"{where}: {host_id!r} is no host id; a line is `PUBLIC-KEY HOST-ID`, an id has 1 "
                "to 64 of the characters A-Z a-z 0-9 . _ -"
            )
        if key in allowed:
            raise KeyFileError(f"{where}: this key stands for {allowed[key]} already; keep one")
        if host_id in line_of_id:
            raise KeyFileError(
                f"{where}: {host_id} has a key in line {line_of_id[host_id]} already; keep one"
            )
        if len(allowed) == HOSTS_MAX:
            raise KeyFileError(f"{where}: more than {HOSTS_MAX} hosts")
        allowed[key] = host_id
        line_of_id[host_id] = number
    return allowed


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
