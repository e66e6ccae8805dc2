"""What agent and aggregator say to each other: one frame is a kind byte and a msgpack payload.

    agent                                   aggregator
    HELLO      who, which boot, versions ─►
                                         ◄─ WELCOME    what is committed already, how much credit
    SIGNALS    a batch, in columns       ─►
                                         ◄─ ACK        committed up to here, how much credit
    HEARTBEAT  counters, complete until  ─►
                                         ◄─ ACK
                                         ◄─ OFFER      a release of rules, signed
    FETCH      a part of the pack        ─►
                                         ◄─ CHUNK      that part
                                         ◄─ WITHDRAW   a release is taken back, signed
    BYE                                  ─►
                                         ◄─ ERROR      refused, and why; the connection is over

Signals travel in columns: per field name its distinct values, and a number of one of them for each
signal, with a dictionary of rules per batch. Packing one map per signal costs a core several times
as much, and what stays in columns (`Columns`) need not be unpacked to be stored. Everything that
comes in is validated against types and bounds before anyone sees it; whatever bytes arrive, `read`
and `decode` raise nothing but WireError. `encode` holds what it makes to the same checks, so what
leaves here is accepted there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from struct import error as StructError
from struct import unpack
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import msgspec

from vedette.core.columns import chosen, extent, fields_at, pack, shown_chars
from vedette.core.releases import CHUNK_BYTES, PACKED_BYTES_MAX, Number, Signed
from vedette.core.signal import PRIORITIES, Signal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROTOCOL: Final = 3
"""Version of everything in this file; HELLO carries it and another version is refused."""

BATCH_SIGNALS_MAX: Final = 4096
RULES_MAX: Final = 1024
"""Rules in the dictionary of one batch."""
TAGS_MAX: Final = 32
COLUMNS_MAX: Final = 256
"""Distinct field names in one batch."""
NAME_CHARS_MAX: Final = 256
"""Names of rules, tags, fields, hosts, labels, counters; boot ids, versions, digests."""
OUTPUT_CHARS_MAX: Final = 16384
VALUE_CHARS_MAX: Final = 16384
SIGNAL_CHARS_MAX: Final = 131072
"""Output and field values of one signal together, as `fit` leaves it."""
BATCH_CHARS_MAX: Final = 1 << 25
"""Outputs and field values of one batch, each text counted as often as it stands: what is written
once for many signals must not become more than memory holds where it is written out."""
ADDRESSES_MAX: Final = 64
LOST_MAX: Final = 1024
"""Ranges of lost numbers in one message."""
MESSAGE_BYTES_MIN: Final = 1 << 20
"""Every aggregator takes messages of this size, so that any single signal can be sent."""
NUMBER_MAX: Final = (1 << 63) - 1
SEQ_MAX: Final = (1 << 48) - 1
"""Numbers of signals: sums over them stay far from 64 bits."""

_CUT = "…"


class WireError(Exception):
    """A frame that is not in the protocol, or a value that cannot be sent; the text says why."""


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
_Text = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
_NO_NUL = r"\A[^\0]*\Z"
"""Databases keep no NUL in a text."""
_PlainName = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=_NO_NUL)]
_PlainText = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX, pattern=_NO_NUL)]
_Reason = Annotated[str, msgspec.Meta(max_length=1024)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
_Addresses = Annotated[list[_Name], msgspec.Meta(max_length=ADDRESSES_MAX)]
_Value = Annotated[str, msgspec.Meta(max_length=VALUE_CHARS_MAX)] | int | bool | None
LostRange = tuple[
    Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)],
    Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)],
]
"""First and last number of signals that were given up; both belong to the range."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Agent's first message on every connection.

    host_id    what the host is known by, whatever its name
    boot_id    names a numbering: a new one whenever numbers start again at 1
    addresses  the host's own IP addresses, as text
    time_ns    the agent's wall clock when this was sent
    """

    protocol: int
    host_id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]
    hostname: _PlainText
    boot_id: _PlainName
    addresses: _Addresses
    labels: Annotated[dict[_Name, _Text], msgspec.Meta(max_length=64)]
    version: _PlainText
    rules_digest: _PlainText
    time_ns: _Number


class Welcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to HELLO.

    committed_seq      the highest number of this boot that is stored (0: none)
    credit             signals that may be under way without an ACK
    message_bytes_max  longer frames end the connection
    clock              HELLO's time_ns; when it came, when this was sent by the aggregator's clock
    """

    protocol: int
    committed_seq: _Number
    credit: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    message_bytes_max: Annotated[int, msgspec.Meta(ge=MESSAGE_BYTES_MIN, le=1 << 30)]
    clock: tuple[_Number, _Number, _Number] | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """SIGNALS: at least one signal, numbers rising.

    lost               numbers before the batch's last that will never come, in rising ranges; a
                       number that is neither here nor in a batch was lost without being noticed
    complete_until_ns  no signal up to this time, by the host's clock, will follow (0: unknown)
    """

    signals: list[Signal]
    lost: list[LostRange] = []
    complete_until_ns: int = 0


class Ack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was sent up to committed_seq is stored for good; credit as in Welcome.

    clock  the answer to a heartbeat: its time_ns, and the rest as in Welcome
    """

    committed_seq: _Number
    credit: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    clock: tuple[_Number, _Number, _Number] | None = None


ReleaseStatus = Literal[
    "", "taking", "trial", "confirmed", "failed", "refused", "withdrawn", "missing"
]
"""What became of the release that was tried last; "missing": its file was lost."""


class ReleaseReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a host that takes releases of rules stands.

    number, digest  the one in force; 0 and empty: none
    tried, status   the one that came last, and what became of it
    reason          for people, of a failure or refusal
    """

    number: _Number = 0
    digest: _PlainText = ""
    tried: _Number = 0
    status: ReleaseStatus = ""
    reason: Annotated[str, msgspec.Meta(max_length=1024, pattern=_NO_NUL)] = ""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sent every few seconds, busy or not.

    complete_until_ns  as in Batch
    lost               as in Batch: what was given up since the last message and precedes no signal
    lost_events        kernel events lost since this boot_id began, all causes
    counters           anything countable, by name, for people
    clock              of the last answer: its ``clock``, and when it came by the host's clock
    release            None: this host takes no releases of rules
    """

    time_ns: _Number
    complete_until_ns: _Number
    lost: Annotated[list[LostRange], msgspec.Meta(max_length=LOST_MAX)]
    lost_events: _Number
    counters: Annotated[dict[_Name, _Number], msgspec.Meta(max_length=256)]
    addresses: _Addresses
    rules_digest: _PlainText
    clock: tuple[_Number, _Number, _Number, _Number] | None = None
    release: ReleaseReport | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release of rules that this host is to take: its signed manifest (core/releases.py)."""

    manifest: Signed


class Fetch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for the part of an offered release's pack that begins at offset."""

    number: Number
    offset: Annotated[int, msgspec.Meta(ge=0, lt=PACKED_BYTES_MAX)]


class Chunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part that was asked for; CHUNK_BYTES but for the last."""

    number: Number
    offset: Annotated[int, msgspec.Meta(ge=0, lt=PACKED_BYTES_MAX)]
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CHUNK_BYTES)]


class Withdraw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release is taken back: its signed withdrawal."""

    withdrawal: Signed


class Bye(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent stops in an orderly way; nothing follows. reason is for people."""

    complete_until_ns: _Number
    reason: _Reason = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ERROR: the connection is over; code is for programs, reason for people."""

    code: _Name
    reason: _Reason


Message = (
    Hello | Welcome | Batch | Ack | Heartbeat | Bye | Refusal | Offer | Fetch | Chunk | Withdraw
)


class RuleEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A rule in the dictionary of a batch; as in Signal."""

    name: _Name
    priority: Annotated[int, msgspec.Meta(ge=0, lt=len(PRIORITIES))]
    tags: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=TAGS_MAX)]
    alert: bool


_Index = Annotated[bytes, msgspec.Meta(min_length=2, max_length=2 * BATCH_SIGNALS_MAX)]


class Column(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One field of n signals.

    values  distinct values; nil where a signal lacks the field
    index   n unsigned 16-bit places in values, little-endian
    """

    values: Annotated[list[_Value], msgspec.Meta(min_length=1, max_length=BATCH_SIGNALS_MAX)]
    index: _Index


class _Packed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SIGNALS on the wire; n signals.

    seq      n unsigned 64-bit numbers, little-endian
    time_ns  the same
    rules    the batch's dictionary
    rule     n unsigned 16-bit places in rules, little-endian
    output   n strings
    fields   field name -> its column
    """

    seq: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8 * BATCH_SIGNALS_MAX)]
    time_ns: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8 * BATCH_SIGNALS_MAX)]
    rules: Annotated[list[RuleEntry], msgspec.Meta(min_length=1, max_length=RULES_MAX)]
    rule: _Index
    output: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=OUTPUT_CHARS_MAX)]],
        msgspec.Meta(min_length=1, max_length=BATCH_SIGNALS_MAX),
    ]
    fields: Annotated[dict[_Name, Column], msgspec.Meta(max_length=COLUMNS_MAX)]
    lost: Annotated[list[LostRange], msgspec.Meta(max_length=LOST_MAX)]
    complete_until_ns: _Number


class _OwnRule(msgspec.Struct, frozen=True, array_like=True):
    """RuleEntry without bounds."""

    name: str
    priority: int
    tags: tuple[str, ...]
    alert: bool


class _OwnColumn(msgspec.Struct, frozen=True, array_like=True):
    """Column without bounds."""

    values: list[Any]
    index: bytes


class _Own(msgspec.Struct, frozen=True, kw_only=True):
    """_Packed without bounds: what was never sent, and may have to be fitted before it is."""

    seq: bytes
    time_ns: bytes
    rules: list[_OwnRule]
    rule: bytes
    output: list[str]
    fields: dict[str, _OwnColumn]
    lost: list[LostRange]
    complete_until_ns: int


class Columns:
    """A batch that was read, and found good, and stays in columns.

    payload  the bytes it was read from; `load` reads them again
    seq, time_ns, rule  n numbers each, int64 (rule: uint16); rule is a place in `rules`
    output   n strings
    fields   field name -> Column
    lost, complete_until_ns  as in Batch
    """

    __slots__ = (
        "complete_until_ns",
        "fields",
        "lost",
        "output",
        "payload",
        "rule",
        "rules",
        "seq",
        "time_ns",
    )

    def __init__(self, payload: bytes | memoryview, packed: _Packed) -> None:
        # Imported here: agents, which make no Columns, do without its 10 MB.
        import numpy as np

        self.payload = payload
        self.seq: NDArray[np.int64] = np.frombuffer(packed.seq, "<i8")
        self.time_ns: NDArray[np.int64] = np.frombuffer(packed.time_ns, "<i8")
        self.rule: NDArray[np.uint16] = np.frombuffer(packed.rule, "<u2")
        self.rules = packed.rules
        self.output = packed.output
        self.fields = packed.fields
        self.lost = packed.lost
        self.complete_until_ns = packed.complete_until_ns

    def __len__(self) -> int:
        return len(self.output)

    def correct(self, offset_ns: int) -> None:
        """Correct the signals' times by what a clock is off; 0, which means unknown, stays."""
        if offset_ns:
            import numpy as np

            # Whatever a host claims, the sum stays within 63 bits.
            most = NUMBER_MAX - max(0, offset_ns)
            moved = np.maximum(np.minimum(self.time_ns, most) + offset_ns, 1)
            self.time_ns = np.where(self.time_ns == 0, 0, moved)

    def signals(self) -> list[Signal]:
        """Return the signals, one by one."""
        return _signals(
            *(self.seq.tolist(), self.time_ns.tolist(), self.rule.tolist()),
            *(self.rules, self.output, self.fields),
        )

    def batch(self) -> Batch:
        """Return all of it, one signal after the other."""
        return Batch(
            signals=self.signals(), lost=self.lost, complete_until_ns=self.complete_until_ns
        )


HELLO: Final = 1
WELCOME: Final = 2
SIGNALS: Final = 3
ACK: Final = 4
HEARTBEAT: Final = 5
BYE: Final = 6
ERROR: Final = 7
OFFER: Final = 8
FETCH: Final = 9
CHUNK: Final = 10
WITHDRAW: Final = 11

_KINDS: dict[type[Any], int] = {
    Hello: HELLO,
    Welcome: WELCOME,
    Ack: ACK,
    Heartbeat: HEARTBEAT,
    Bye: BYE,
    Refusal: ERROR,
    Offer: OFFER,
    Fetch: FETCH,
    Chunk: CHUNK,
    Withdraw: WITHDRAW,
}
KIND_NAMES: Final = {
    HELLO: "HELLO",
    WELCOME: "WELCOME",
    SIGNALS: "SIGNALS",
    ACK: "ACK",
    HEARTBEAT: "HEARTBEAT",
    BYE: "BYE",
    ERROR: "ERROR",
    OFFER: "OFFER",
    FETCH: "FETCH",
    CHUNK: "CHUNK",
    WITHDRAW: "WITHDRAW",
}
_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(cls) for cls, kind in _KINDS.items()
} | {SIGNALS: msgspec.msgpack.Decoder(_Packed)}
_ENCODER = msgspec.msgpack.Encoder()
_OWN: msgspec.msgpack.Decoder[_Own] = msgspec.msgpack.Decoder(_Own)


def encode(message: Message) -> bytes:
    """Make a message's frame.

    Raises WireError where the receiver would refuse the message: a bound exceeded, a wrong type,
    text that is not Unicode. For a signal, `fit` is the cure.
    """
    if isinstance(message, Batch):
        payload = _payload(SIGNALS, _packed(message))
        _read_packed(payload)
        return bytes((SIGNALS,)) + payload
    kind = _KINDS[type(message)]
    payload = _payload(kind, message)
    # The receiver's own checks: they cannot drift from what the receiver does.
    content = _unpack(kind, payload)
    if isinstance(content, Heartbeat):
        _check_lost(content.lost)
    return bytes((kind,)) + payload


def columns(batch: Batch) -> Columns:
    """Put a batch's signals into columns. Raises WireError as `encode` does."""
    payload = _payload(SIGNALS, _packed(batch))
    return load(payload)


def pack_signals(signals: list[Signal]) -> bytes:
    """Put signals into columns, as `unpack_signals` reads them, whatever the protocol's bounds.

    Raises WireError for what cannot be in columns at all.
    """
    return _payload(SIGNALS, _packed(Batch(signals=signals)))


def unpack_signals(payload: bytes | memoryview) -> list[Signal]:
    """Read what `pack_signals` made, and nobody has changed since. Raises WireError."""
    try:
        own = _OWN.decode(payload)
        count = len(own.output)
        seq, time_ns = unpack(f"<{count}q", own.seq), unpack(f"<{count}q", own.time_ns)
        rule = unpack(f"<{count}H", own.rule)
        return _signals(seq, time_ns, rule, own.rules, own.output, own.fields)
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError, ValueError, StructError) as error:
        raise WireError(f"signals in columns: {error}"[:1024]) from None


def read(frame: bytes | memoryview) -> Message | Columns:
    """Read a frame; signals stay in columns. Raises WireError, and nothing else."""
    if len(frame) < 1:
        raise WireError("empty frame")
    kind = frame[0]
    if kind == SIGNALS:
        return load(memoryview(frame)[1:])
    content = _unpack(kind, memoryview(frame)[1:])
    if isinstance(content, Heartbeat):
        _check_lost(content.lost)
    return cast(Message, content)


def load(payload: bytes | memoryview) -> Columns:
    """Read a batch from what follows the kind byte, as `Columns.payload` has it."""
    return Columns(payload, _read_packed(payload))


def decode(frame: bytes | memoryview) -> Message:
    """Read a frame. Raises WireError, and nothing else, for whatever is not in the protocol."""
    content = read(frame)
    return content.batch() if isinstance(content, Columns) else content


def fit(signal: Signal) -> Signal:
    """The signal, made sendable: what is too long is cut, ending in "…"; what is no text, escaped.

    Nothing that a host's user does may keep a signal from being sent, so this never refuses: it
    keeps the rule, the time and the number, and as much of the rest as the bounds allow.
    """
    budget = SIGNAL_CHARS_MAX
    output = _cut(signal.output, OUTPUT_CHARS_MAX)
    budget -= len(output)
    fields: dict[str, Any] = {}
    for name, value in signal.fields.items():
        if value is None or len(fields) == COLUMNS_MAX:
            continue
        if isinstance(value, str) or not isinstance(value, int):
            if budget == 0:
                continue
            value = _cut(str(value), min(VALUE_CHARS_MAX, budget))
            budget -= len(value)
        elif not -NUMBER_MAX <= value <= NUMBER_MAX:
            value = str(value)[:64]
        fields[_cut(name, NAME_CHARS_MAX) or _CUT] = value
    return Signal(
        seq=signal.seq,
        time_ns=min(max(signal.time_ns, 0), NUMBER_MAX),
        rule=_cut(signal.rule, NAME_CHARS_MAX) or _CUT,
        priority=min(max(signal.priority, 0), len(PRIORITIES) - 1),
        tags=tuple(_cut(tag, NAME_CHARS_MAX) or _CUT for tag in signal.tags[:TAGS_MAX]),
        alert=bool(signal.alert),
        output=output,
        fields=fields,
    )


def is_local(endpoint: str) -> bool:
    """Tell whether an endpoint can only be reached on this machine."""
    scheme, _, rest = endpoint.partition("://")
    if scheme != "tcp":
        return scheme in ("ipc", "inproc")
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cut(text: str, chars_max: int) -> str:
    # Lone surrogates are how Python carries bytes that are no UTF-8; they show as \udcXX. Escaping
    # lengthens, so the text is cut before (to bound the work) and after.
    head = text[: chars_max + 1].encode("utf-8", "backslashreplace").decode("utf-8")
    return head if len(head) <= chars_max else head[: chars_max - 1] + _CUT


def _payload(kind: int, content: object) -> bytes:
    try:
        return _ENCODER.encode(content)
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError) as error:
        raise WireError(f"{KIND_NAMES[kind]} cannot be packed: {error}") from None


def _packed(batch: Batch) -> _Packed:
    count = len(batch.signals)
    if not 1 <= count <= BATCH_SIGNALS_MAX:
        raise WireError(f"a batch has 1 to {BATCH_SIGNALS_MAX} signals, not {count}")
    try:
        seq, time_ns, rules, rule, output, fields = pack(batch.signals, COLUMNS_MAX)
    except (OverflowError, TypeError, ValueError) as error:
        raise WireError(f"SIGNALS cannot be packed: {error}") from None
    return _Packed(
        seq=seq,
        time_ns=time_ns,
        rules=[RuleEntry(*entry) for entry in rules],
        rule=rule,
        output=output,
        fields={name: Column(*column) for name, column in fields.items()},
        lost=batch.lost,
        complete_until_ns=batch.complete_until_ns,
    )


def _signals(
    seq: Sequence[int],
    time_ns: Sequence[int],
    rule: Sequence[int],
    rules: Sequence[RuleEntry | _OwnRule],
    output: list[str],
    fields: Mapping[str, Column | _OwnColumn],
) -> list[Signal]:
    """Return the signals that columns have, one by one."""
    return [
        Signal(
            seq=number,
            time_ns=moment_ns,
            rule=entry.name,
            priority=entry.priority,
            tags=entry.tags,
            alert=entry.alert,
            output=text,
            fields=values,
        )
        for number, moment_ns, entry, text, values in zip(
            seq,
            time_ns,
            map(rules.__getitem__, rule),
            output,
            fields_at(fields, list(range(len(output)))),
            strict=True,
        )
    ]


def _read_packed(payload: bytes | memoryview) -> _Packed:
    """Read and check a batch."""
    packed: _Packed = _unpack(SIGNALS, payload)
    _check_columns(packed)
    return packed


def _check_columns(packed: _Packed) -> None:
    """What types cannot say: equal lengths, rising numbers, indices inside the dictionary."""
    for name, data in (("seq", packed.seq), ("time_ns", packed.time_ns)):
        if len(data) % 8:
            raise WireError(f"SIGNALS: {name} has {len(data)} bytes, no multiple of 8")
    count = len(packed.seq) // 8
    for name, length in (("time_ns", len(packed.time_ns) // 8), ("output", len(packed.output))):
        if length != count:
            raise WireError(f"SIGNALS: seq has {count} entries, {name} has {length}")
    _check_index("rule", packed.rule, count, len(packed.rules))
    chars = sum(map(len, packed.output))
    for name, column in packed.fields.items():
        _check_index(f"field {name!r}", column.index, count, len(column.values))
        chars += shown_chars(column.index, column.values)
    if chars > BATCH_CHARS_MAX:
        raise WireError(f"SIGNALS: {chars} characters written out, {BATCH_CHARS_MAX} at most")
    # As signed numbers: what is beyond NUMBER_MAX is below zero.
    least, most, rises = extent(packed.seq)
    if least < 1 or most > SEQ_MAX:
        raise WireError(f"SIGNALS: seq is not within 1 to {SEQ_MAX}")
    if not rises:
        raise WireError("SIGNALS: seq does not rise")
    if extent(packed.time_ns)[0] < 0:
        raise WireError(f"SIGNALS: time_ns beyond {NUMBER_MAX}")
    _check_lost(packed.lost)


def _check_index(name: str, index: bytes, count: int, values: int) -> None:
    most = chosen(index, count)
    if most < 0:
        raise WireError(f"SIGNALS: {name} has {len(index)} bytes, not 2 for each of {count}")
    if most >= values:
        raise WireError(f"SIGNALS: {name}: place {most} of {values}")


def _check_lost(lost: Sequence[LostRange]) -> None:
    before = 0
    for first, last in lost:
        if not before < first <= last:
            raise WireError(f"lost: range {first}-{last} after {before} does not rise")
        before = last


def _unpack(kind: int, payload: bytes | memoryview) -> Any:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise WireError(f"unknown kind {kind}")
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise WireError(f"{KIND_NAMES[kind]}: {error}"[:1024]) from None
