"""Releases of rules: signed sets of rule files that an aggregator hands to its agents.

A release is made where the operator's signing key is (`make`), and is signed there; the aggregator
only keeps and distributes it. What is signed (Ed25519, RFC 8032) is a `Manifest`, which names the
rule files by the digest of their pack, and a `Withdrawal`, which is kept for the day that the
release is to be taken back: so an aggregator can take back what it was given, and nothing else.
Agents know the signers' public keys from their own configuration.

On the wire and on disk the signed bytes are kept as they are; nothing is encoded a second time to
be verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
import zstandard

from vedette.core.keys import KeyFileError, read_secret, write_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PACKED_BYTES_MAX: Final = 8 << 20
BYTES_MAX: Final = 32 << 20
"""Bound of a release's rule files together; Sigma's whole collection is a third of it."""
FILES_MAX: Final = 8192
CHUNK_BYTES: Final = 128 << 10
"""A pack travels in parts of this size."""
STAGES_MAX: Final = 32
LABELS_MAX: Final = 64
SIGNERS_MAX: Final = 16
SETTLE_S: Final = 60.0
SIGNALS_PER_S_MAX: Final = 100
LOST_EVENTS_MAX: Final = 1000
ERRORS_PERCENT: Final = 5
ERRORS_HOSTS_MIN: Final = 3
"""Where a release is for fewer hosts and allows no number of errors, one host's take it back."""

_FILE_MAGIC: Final = b"vedette-release-1\n"
_KEY_PREFIX: Final = "ed25519:"
_COMPRESSION: Final = 10
# Part of what is signed, so that no signed thing can be taken for another.
_CONTEXTS: Final[dict[type[Any], bytes]] = {}
_NAME_PART: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", re.ASCII)
_NAME_CHARS_MAX: Final = 200
_NAME_DEPTH_MAX: Final = 16

_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=r"\A[^\0]*\Z")]
Labels = Annotated[dict[_Label, _Label], msgspec.Meta(max_length=LABELS_MAX)]
_Share = Annotated[float, msgspec.Meta(gt=0, le=100)]


class ReleaseError(Exception):
    """A release cannot be made, read or used; `code` is for programs, the text for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bytes, who signed them, and the signature."""

    body: Annotated[bytes, msgspec.Meta(min_length=1, max_length=65536)]
    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a release is, for whom, and how it is brought out. All of it is signed.

    number             rises from release to release; agents take none that is not above theirs
    digest             SHA-256 of the pack
    packed_bytes, bytes, files, rules   of the pack, of the files in it, how many there are
    labels             hosts that have all of these take it; none: every host
    stages             shares of these hosts, in per cent, that take it one after the other
    settle_s           how long a host runs it without an error before it reports success
    errors_max         hosts that may report errors before it is taken back everywhere; None: as
                       many as `errors_allowed` says
    signals_per_s_max  a host that makes more, and ten times as many as before, goes back
    lost_events_max    the same for kernel events lost while it settles
    """

    number: Number
    digest: _Digest
    packed_bytes: Annotated[int, msgspec.Meta(ge=1, le=PACKED_BYTES_MAX)]
    bytes: Annotated[int, msgspec.Meta(ge=0, le=BYTES_MAX)]
    files: Annotated[int, msgspec.Meta(ge=1, le=FILES_MAX)]
    rules: _Count
    labels: Labels
    stages: Annotated[tuple[_Share, ...], msgspec.Meta(min_length=1, max_length=STAGES_MAX)]
    settle_s: Annotated[float, msgspec.Meta(ge=0, le=86400)]
    errors_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None
    signals_per_s_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
    lost_events_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
    signed_ns: _Count
    note: Annotated[str, msgspec.Meta(max_length=1024)] = ""

    def __post_init__(self) -> None:
        if self.stages[-1] != 100 or any(a >= b for a, b in itertools.pairwise(self.stages)):
            raise ValueError("stages must rise and end with 100")

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a host with these labels takes it."""
        return all(labels.get(name) == value for name, value in self.labels.items())

    def errors_allowed(self, selected: int, stage_hosts: int) -> int:
        """Return how many hosts may have errors.

        selected     hosts that it is for
        stage_hosts  hosts that are to have it in the stage that is under way

        Without a number of its own one host alone takes back nothing, unless there are only two:
        it may be broken, or an attacker's.
        """
        if self.errors_max is not None:
            return self.errors_max
        if selected < ERRORS_HOSTS_MIN:
            return 0
        return max(1, stage_hosts * ERRORS_PERCENT // 100)


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release that is taken back: who has it goes back to what they had before it."""

    number: Number
    digest: _Digest
    signed_ns: _Count


_CONTEXTS[Manifest] = b"vedette rules release 1\0"
_CONTEXTS[Withdrawal] = b"vedette rules withdrawal 1\0"


class RuleFile(NamedTuple):
    """A rule file of a release; name is relative, of plain parts joined by `/`."""

    name: str
    data: bytes


class Release(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A release as it is kept: both signed statements, and the pack."""

    manifest: Signed
    withdrawal: Signed
    packed: Annotated[bytes, msgspec.Meta(min_length=1, max_length=PACKED_BYTES_MAX)]


# Keys.


def make_key(path: str | Path, passphrase: bytes | None = None) -> str:
    """Make a signing key in a new file of mode 0600, as PEM (PKCS #8); return its public key.

    Raises KeyFileError where the file exists or cannot be made.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )
    write_secret(path, text)
    return key_text(_public(key))


def read_key(path: str | Path, passphrase: Callable[[], bytes] | None = None) -> Ed25519PrivateKey:
    """Read a signing key; `passphrase` is asked where the file is encrypted.

    Raises KeyFileError: the file is missing, others can read it, it is no Ed25519 key, or the
    passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = read_secret(path)
    word = None
    if b"BEGIN ENCRYPTED PRIVATE KEY" in raw:
        if passphrase is None:
            raise KeyFileError(f"{path}: is encrypted; its passphrase is needed")
        word = passphrase()
    try:
        key = serialization.load_pem_private_key(raw, word)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError(
            f"{path}: the passphrase is wrong"
            if word is not None
            else f"{path}: no signing key; `vedette rules keygen FILE` makes one"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: a key of another kind; `vedette rules keygen` makes Ed25519")
    return key


def key_text(public: bytes) -> str:
    """Return a public key as configurations name it."""
    return _KEY_PREFIX + base64.b64encode(public).decode()


def parse_key(text: str) -> bytes:
    """Return the public key that a text names. Raises ReleaseError."""
    try:
        raw = base64.b64decode(text.removeprefix(_KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or not text.startswith(_KEY_PREFIX):
        raise ReleaseError(
            "key",
            "not a signer's public key, which is `ed25519:` and 44 characters; `vedette rules "
            "keygen` prints it",
        )
    return raw


def public_key(key: Ed25519PrivateKey) -> str:
    """Return a signing key's public key as text."""
    return key_text(_public(key))


def _public(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


_Statement = TypeVar("_Statement", Manifest, Withdrawal)


def sign(statement: Manifest | Withdrawal, key: Ed25519PrivateKey) -> Signed:
    """Sign a statement."""
    body = msgspec.msgpack.encode(statement)
    # The reader's own checks.
    if isinstance(statement, Manifest):
        _read(body, Manifest)
    else:
        _read(body, Withdrawal)
    return Signed(body, _public(key), key.sign(_CONTEXTS[type(statement)] + body))


def verify(signed: Signed, kind: type[_Statement], signers: Sequence[bytes] | None) -> _Statement:
    """Return what was signed, if one of these keys signed it; None: whichever key it names.

    Raises ReleaseError, code `signer` (another key), `signature` or `malformed`.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signers is not None and signed.key not in signers:
        raise ReleaseError(
            "signer", f"signed with {key_text(signed.key)}, which is none of rules.signers"
        )
    try:
        key = Ed25519PublicKey.from_public_bytes(signed.key)
        key.verify(signed.signature, _CONTEXTS[kind] + signed.body)
    except (InvalidSignature, ValueError):
        raise ReleaseError("signature", "the signature is not that of its key") from None
    return _read(signed.body, kind)


def claimed(signed: Signed) -> int:
    """Return the number of the release that a statement says it is about; 0: none. Not verified."""
    try:
        return msgspec.msgpack.decode(signed.body, type=_Claim).number
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


class _Claim(msgspec.Struct):
    number: Number


def _read(body: bytes, kind: type[_Statement]) -> _Statement:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError("malformed", f"not a {kind.__name__.lower()}: {error}"[:1024]) from None


# Packs.


def pack(files: Sequence[RuleFile]) -> bytes:
    """Pack rule files, in their order. Raises ReleaseError, code `size` or `malformed`."""
    _check_files(files)
    plain = msgspec.msgpack.encode(files)
    packed = zstandard.ZstdCompressor(level=_COMPRESSION).compress(plain)
    if len(packed) > PACKED_BYTES_MAX:
        raise ReleaseError(
            "size", f"{len(packed)} bytes when packed, {PACKED_BYTES_MAX} are allowed"
        )
    return packed


def unpack(packed: bytes | bytearray) -> list[RuleFile]:
    """Return the files of a pack, whatever bytes it is. Raises ReleaseError as `pack` does."""
    bound = BYTES_MAX + FILES_MAX * (_NAME_CHARS_MAX + 16)
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            io.BytesIO(packed)
        ) as reader:
            plain = reader.read(bound + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ReleaseError("malformed", f"the pack cannot be unpacked: {error}") from None
    if len(plain) > bound:
        raise ReleaseError("size", f"more than {BYTES_MAX} bytes when unpacked")
    try:
        files = msgspec.msgpack.decode(plain, type=list[RuleFile])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError("malformed", f"the pack holds no rule files: {error}") from None
    _check_files(files)
    return files


def _check_files(files: Sequence[RuleFile]) -> None:
    if not 1 <= len(files) <= FILES_MAX:
        raise ReleaseError("size", f"{len(files)} rule files; a release has 1 to {FILES_MAX}")
    total = sum(len(file.data) for file in files)
    if total > BYTES_MAX:
        raise ReleaseError("size", f"{total} bytes of rule files, {BYTES_MAX} are allowed")
    for name, count in _counted(file.name for file in files).items():
        if not _is_name(name) or count > 1:
            raise ReleaseError("malformed", f"{name[:_NAME_CHARS_MAX]!r} is no name for a file")
    names = {file.name for file in files}
    for name in names:
        at = name.rfind("/")
        while at > 0:
            if name[:at] in names:
                raise ReleaseError("malformed", f"{name[:at]!r} is a file and a folder")
            at = name.rfind("/", 0, at)


def _counted(names: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _is_name(name: str) -> bool:
    """Tell whether a name leads nowhere but below the folder that it is put into."""
    parts = name.split("/")
    return (
        len(name) <= _NAME_CHARS_MAX
        and len(parts) <= _NAME_DEPTH_MAX
        and all(_NAME_PART.fullmatch(part) for part in parts)
    )


def named(paths: Sequence[Path], roots: Sequence[Path]) -> list[str]:
    """Return names for files in a release: their place below the path that was asked for.

    roots  for each path the one, file or folder, that it was found by
    """
    made: list[str] = []
    taken: set[str] = set()
    for path, root in zip(paths, roots, strict=True):
        below = path.relative_to(root).parts if path != root else ()
        parts = [re.sub(r"[^A-Za-z0-9._+-]", "_", part) for part in (root.name, *below)]
        parts = [part.lstrip(".") or "_" for part in parts[-_NAME_DEPTH_MAX:]]
        name = "/".join(parts)[-_NAME_CHARS_MAX + 8 :].lstrip("/.")
        number = 1
        chosen = name
        while chosen in taken:
            number += 1
            chosen = f"{number}/{name}"
        taken.add(chosen)
        made.append(chosen)
    return made


# Releases.


def make(
    files: Sequence[RuleFile], key: Ed25519PrivateKey, *, number: int, rules: int, **rest: Any
) -> Release:
    """Make and sign a release; `rest` is what else a Manifest has. Raises ReleaseError."""
    packed = pack(files)
    now_ns = time.time_ns()
    try:
        manifest = Manifest(
            number=number,
            digest=hashlib.sha256(packed).hexdigest(),
            packed_bytes=len(packed),
            bytes=sum(len(file.data) for file in files),
            files=len(files),
            rules=rules,
            signed_ns=now_ns,
            **rest,
        )
        withdrawal = Withdrawal(number=number, digest=manifest.digest, signed_ns=now_ns)
        return Release(sign(manifest, key), sign(withdrawal, key), packed)
    except ValueError as error:
        raise ReleaseError("malformed", str(error)) from None


def check(
    release: Release, signers: Sequence[bytes] | None = None
) -> tuple[Manifest, list[RuleFile]]:
    """Verify all of a release, by its signers as in `verify`. Raises ReleaseError."""
    manifest = verify(release.manifest, Manifest, signers)
    withdrawal = verify(release.withdrawal, Withdrawal, [release.manifest.key])
    if (withdrawal.number, withdrawal.digest) != (manifest.number, manifest.digest):
        raise ReleaseError("malformed", "its withdrawal is that of another release")
    return manifest, check_pack(manifest, release.packed)


def check_pack(manifest: Manifest, packed: bytes | bytearray) -> list[RuleFile]:
    """Return the files of a manifest's pack. Raises ReleaseError, also code `digest`."""
    if hashlib.sha256(packed).hexdigest() != manifest.digest:
        raise ReleaseError("digest", "the rule files are not those that were signed")
    return unpack(packed)


def to_bytes(release: Release) -> bytes:
    """Return a release as a file holds it."""
    return _FILE_MAGIC + msgspec.msgpack.encode(release)


def is_release(data: bytes) -> bool:
    """Tell whether a file's bytes are meant to be a release."""
    return data.startswith(_FILE_MAGIC)


def from_bytes(data: bytes) -> Release:
    """Read a release from a file's bytes; nothing is verified. Raises ReleaseError."""
    if not is_release(data):
        raise ReleaseError("malformed", "not a release; `vedette rules push --out FILE` makes one")
    try:
        return msgspec.msgpack.decode(memoryview(data)[len(_FILE_MAGIC) :], type=Release)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReleaseError("malformed", f"damaged: {error}") from None
