"""What is asked of a store, by the commands: over a connection of their own, or from elsewhere.

A question is a struct; `answer` puts it to a store and hands out rows, some at a time, how far it
has come, and how it ended. `Source` is what the commands see; it does not know whether the store is
here (`local`) or behind the query socket (aggregator.query_client). What travels is a kind byte and
msgpack, checked against types and bounds where it is read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

import msgspec
import sqlalchemy as sa

from vedette.aggregator import searching
from vedette.aggregator.searching import Group, QuestionError
from vedette.aggregator.sequences import fleet_of
from vedette.aggregator.store import (
    QUERY_ROWS_MAX,
    AddressSpan,
    Filter,
    Host,
    Incident,
    Store,
    StoredSignal,
    StoreError,
)
from vedette.core.condition import CONDITION_CHARS_MAX
from vedette.core.wire import NUMBER_MAX

ROWS_AT_A_TIME: Final = 200
PROGRESS_S: Final = 0.1
BY_MAX: Final = 4
UNBOUNDED_BYTES: Final = 1 << 62

T = TypeVar("T")

_Time = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] | None
_Name = Annotated[str, msgspec.Meta(max_length=1024)] | None
_Limit = Annotated[int, msgspec.Meta(ge=1, le=QUERY_ROWS_MAX)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Something that can be asked. row: what its answer is made of."""

    row: ClassVar[Any] = None


class AskHosts(Question, frozen=True):
    row: ClassVar[Any] = Host


class AskAddresses(Question, frozen=True):
    row: ClassVar[Any] = AddressSpan


class AskLast(Question, frozen=True):
    """The id of the signal that arrived last."""

    row: ClassVar[Any] = int


class AskMeta(Question, frozen=True):
    """What the aggregator wrote down under a key."""

    row: ClassVar[Any] = str
    key: Annotated[str, msgspec.Meta(max_length=100)]


class AskSignal(Question, frozen=True):
    row: ClassVar[Any] = StoredSignal
    id: _Id


class Which(Question, frozen=True):
    """Which signals are meant.

    host          name or id
    priority_max  the least urgent that is meant
    condition     over their fields; empty: any
    """

    host: _Name = None
    rule: _Name = None
    tag: _Name = None
    priority_max: Annotated[int, msgspec.Meta(ge=0, le=7)] | None = None
    since_ns: _Time = None
    until_ns: _Time = None
    alerts_only: bool = False
    condition: Annotated[str, msgspec.Meta(max_length=CONDITION_CHARS_MAX)] = ""

    def filter(self, store: Store) -> Filter:
        """Return what it means. Raises QuestionError."""
        asked = Filter(
            hosts=None if self.host is None else store.host_ids(self.host),
            rule=self.rule,
            tag=self.tag,
            priority_max=self.priority_max,
            since_ns=self.since_ns,
            until_ns=self.until_ns,
            alerts_only=self.alerts_only,
        )
        if self.condition.strip():
            asked = searching.Condition(self.condition, store, fleet_of(store)).narrowed(asked)
        return asked


class AskSignals(Which, frozen=True):
    """The newest signals; or, after one, those that arrived since, as they arrived."""

    row: ClassVar[Any] = StoredSignal
    after_id: _Id | None = None
    limit: _Limit = 1000


class AskCounts(Which, frozen=True):
    """How many signals there are of each group; the last row has no values: what was not shown."""

    row: ClassVar[Any] = Group
    by: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=256)], ...],
        msgspec.Meta(min_length=1, max_length=BY_MAX),
    ] = ("rule",)
    every_ns: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)] = 3600 * 10**9
    shift_ns: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = 0
    limit: _Limit = 1000


class AskIncidents(Question, frozen=True):
    row: ClassVar[Any] = Incident
    since_ns: _Time = None
    until_ns: _Time = None
    sequence: _Name = None
    limit: _Limit = 1000


class AskIncidentsWritten(Question, frozen=True):
    """Incidents in the order in which they were first written, after one."""

    row: ClassVar[Any] = Incident
    after_ns: _Id
    after_id: Annotated[str, msgspec.Meta(max_length=64)]
    limit: _Limit = 1000


class AskIncident(Question, frozen=True):
    """One incident with its signals."""

    row: ClassVar[Any] = Incident
    id: Annotated[str, msgspec.Meta(max_length=64)]


AnyQuestion = (
    AskHosts
    | AskAddresses
    | AskLast
    | AskMeta
    | AskSignal
    | AskSignals
    | AskCounts
    | AskIncidents
    | AskIncidentsWritten
    | AskIncident
)
META_KEYS: Final = frozenset(("aggregator", "watermark_ns", "sequences.position"))


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a question has come: of all time that it asks about, from 0 to 1."""

    share: float


class End(msgspec.Struct, frozen=True, kw_only=True):
    """All rows are there. cut: there would be more; what kept them back."""

    cut: str = ""


class Rows(Generic[T]):
    """Some of the rows."""

    __slots__ = ("rows",)

    def __init__(self, rows: list[T]) -> None:
        self.rows = rows


Part = Rows[Any] | Progress | End
Tell = Callable[[Part], None]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one question may take."""

    rows: int = QUERY_ROWS_MAX
    bytes: int = UNBOUNDED_BYTES
    seconds: float | None = None


class OutOfTime(Exception):
    """A question took longer than it may."""


def answer(store: Store, question: AnyQuestion, tell: Tell, bounds: Bounds | None = None) -> None:
    """Put a question to a store; `tell` gets rows, progress, and in the end an End.

    Raises QuestionError, StoreError; OutOfTime where the bounds do not give enough of it.
    """
    bounds = bounds or Bounds()
    cut = ""
    limit = getattr(question, "limit", None)
    if limit is not None and limit > bounds.rows:
        question = msgspec.structs.replace(question, limit=bounds.rows)
        cut = f"no more than {bounds.rows} rows are sent"
    deadline_s = None if bounds.seconds is None else time.monotonic() + bounds.seconds
    span = _span(store, question)
    told_s = time.monotonic()

    def watch(time_ns: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if deadline_s is not None and now_s > deadline_s:
            raise OutOfTime
        if span is not None and now_s - told_s >= PROGRESS_S:
            told_s = now_s
            first_ns, last_ns = span
            share = (time_ns - first_ns) / max(1, last_ns - first_ns)
            if isinstance(question, AskSignals):
                share = 1 - share
            tell(Progress(min(1.0, max(0.0, share))))

    store.watch(watch, deadline_s)
    try:
        rows = _answered(store, question)
        _send(rows, tell, bounds, cut if limit is not None and len(rows) >= bounds.rows else "")
    except sa.exc.DBAPIError as error:
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise OutOfTime from None
        raise StoreError(f"{store.name}: {str(error.orig).strip()}") from None
    finally:
        store.watch(None)


def _span(store: Store, question: AnyQuestion) -> tuple[int, int] | None:
    """Return the times between which a question looks; None: it does not look through signals."""
    if not isinstance(question, AskSignals | AskCounts):
        return None
    if isinstance(question, AskSignals) and question.after_id is not None:
        return None
    times = store.times()
    if times is None:
        return None
    now_ns = time.time_ns()
    return (
        times[0] if question.since_ns is None else max(times[0], question.since_ns),
        min(times[1], now_ns if question.until_ns is None else question.until_ns),
    )


def _send(rows: list[Any], tell: Tell, bounds: Bounds, cut: str) -> None:
    left = bounds.bytes
    for at in range(0, len(rows), ROWS_AT_A_TIME):
        some = rows[at : at + ROWS_AT_A_TIME]
        if bounds.bytes < UNBOUNDED_BYTES:
            left -= len(_encoder.encode(some))
            if left < 0:
                cut = f"no more than {bounds.bytes} bytes are sent"
                break
        tell(Rows(some))
    tell(End(cut=cut))


def _answered(store: Store, question: AnyQuestion) -> list[Any]:
    match question:
        case AskHosts():
            return store.hosts()
        case AskAddresses():
            return store.addresses()
        case AskLast():
            return [store.last_signal_id()]
        case AskMeta():
            if question.key not in META_KEYS:
                raise QuestionError(f"{question.key!r}: not to be read from here")
            value = store.meta(question.key)
            return [] if value is None else [value]
        case AskSignal():
            signal = store.signal(question.id)
            return [] if signal is None else [signal]
        case AskSignals():
            return store.chosen(question.filter(store), question.limit, question.after_id)
        case AskCounts():
            for name in question.by:
                searching.check_dimension(name)
            found = searching.count(
                store, question.filter(store), question.by, question.every_ns, question.shift_ns
            )
            shown = found.groups[: question.limit]
            rest = found.others + sum(group.count for group in found.groups[question.limit :])
            return [*shown, Group([found.total], rest)]
        case AskIncidents():
            return store.incidents(
                since_ns=question.since_ns,
                until_ns=question.until_ns,
                sequence=question.sequence,
                limit=question.limit,
            )
        case AskIncidentsWritten():
            return store.incidents_written(question.after_ns, question.after_id, question.limit)
        case AskIncident():
            incident = store.incident(question.id)
            return [] if incident is None else [incident]


class Source:
    """What can be asked, wherever the store is.

    ask       puts a question, and gives what comes to a function
    progress  told how far a question has come, where it takes long
    notes     why there would have been more, since they were looked at last
    """

    def __init__(self, ask: Callable[[AnyQuestion, Tell], None], store: Store | None) -> None:
        self._ask = ask
        self.store = store
        self.progress: Callable[[float], None] | None = None
        self.notes: list[str] = []

    def all(self, question: AnyQuestion) -> list[Any]:
        """Return all rows of an answer."""
        found: list[Any] = []

        def take(part: Part) -> None:
            match part:
                case Rows():
                    found.extend(part.rows)
                case Progress():
                    if self.progress is not None:
                        self.progress(part.share)
                case End():
                    if part.cut:
                        self.notes.append(part.cut)

        self._ask(question, take)
        return found

    def hosts(self) -> list[Host]:
        """All hosts, by name."""
        return self.all(AskHosts())

    def addresses(self) -> list[AddressSpan]:
        """Since when and until when hosts had their addresses."""
        return self.all(AskAddresses())

    def last_signal_id(self) -> int:
        """The id of the signal that arrived last; 0: there is none."""
        return int(self.all(AskLast())[0])

    def signals(self, **wanted: Any) -> list[StoredSignal]:
        """Signals, as AskSignals means them."""
        return self.all(AskSignals(**wanted))

    def signal(self, signal_id: int) -> StoredSignal | None:
        """One signal by its id."""
        return next(iter(self.all(AskSignal(id=signal_id))), None)

    def counts(self, **wanted: Any) -> searching.Counted:
        """How many signals there are by group, as AskCounts means them."""
        *groups, rest = self.all(AskCounts(**wanted))
        return searching.Counted(groups, int(rest.values[0]), rest.count)

    def incidents(self, **wanted: Any) -> list[Incident]:
        """Incidents without their signals, as AskIncidents means them."""
        return self.all(AskIncidents(**wanted))

    def incidents_written(self, after_ns: int, after_id: str, limit: int) -> list[Incident]:
        """Incidents in the order in which they were written."""
        return self.all(AskIncidentsWritten(after_ns=after_ns, after_id=after_id, limit=limit))

    def incident(self, incident_id: str) -> Incident | None:
        """One incident with its signals, by its id or a beginning that fits only one."""
        return next(iter(self.all(AskIncident(id=incident_id))), None)

    def meta(self, key: str) -> str | None:
        """What the aggregator wrote down under a key."""
        return next(iter(self.all(AskMeta(key=key))), None)


@contextlib.contextmanager
def local(store: Store) -> Iterator[Source]:
    """Ask a store that is here."""
    yield Source(lambda question, tell: answer(store, question, tell), store)


# On the wire.

ROWS: Final = b"R"
PROGRESS: Final = b"P"
END: Final = b"E"
FAILED: Final = b"F"
"""The question was refused, or took too long; the text says which."""

_encoder = msgspec.msgpack.Encoder()
_questions = msgspec.msgpack.Decoder(AnyQuestion)
_ends = msgspec.msgpack.Decoder(End)
_shares = msgspec.msgpack.Decoder(Progress)
_texts = msgspec.msgpack.Decoder(str)


def encode_question(question: AnyQuestion) -> bytes:
    return _encoder.encode(question)


def decode_question(raw: bytes) -> AnyQuestion:
    """Read a question. Raises QuestionError."""
    try:
        question: AnyQuestion = _questions.decode(raw)
        return question
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise QuestionError(f"not a question: {error}"[:1000]) from None


def encode_part(part: Part) -> bytes:
    match part:
        case Rows():
            return ROWS + _encoder.encode(part.rows)
        case Progress():
            return PROGRESS + _encoder.encode(part)
        case End():
            return END + _encoder.encode(part)


def encode_failure(text: str) -> bytes:
    return FAILED + _encoder.encode(text[:4000])


def decode_part(question: AnyQuestion, raw: bytes) -> Part:
    """Read a part of an answer. Raises QuestionError for a failure, and for what is no answer."""
    kind, payload = raw[:1], memoryview(raw)[1:]
    try:
        if kind == ROWS:
            return Rows(msgspec.msgpack.decode(payload, type=list[question.row]))  # type: ignore[name-defined]
        if kind == PROGRESS:
            return _shares.decode(payload)
        if kind == END:
            return _ends.decode(payload)
        failure = _texts.decode(payload) if kind == FAILED else "an answer of an unknown kind"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        failure = f"an answer that cannot be read: {error}"
    raise QuestionError(failure[:4000])
