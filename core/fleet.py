"""A signal as the fleet sees it: whose it is, when it was, and who was at the other end."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from vedette.core import fields
from vedette.core.condition import ConditionError, parse_condition
from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, predicates
from vedette.core.signal import PRIORITIES, FieldValue, Signal
from vedette.core.twin import holds as operator_holds

Order = tuple[int, str, int, str]
"""Event time, host id, sequence number, boot: the order of the fleet, never that of arrival."""


class SignalId(NamedTuple):
    """What names one signal of the fleet for good."""

    host_id: str
    boot: str
    seq: int


class FleetSignal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One signal of one host, in the fleet's time.

    host_id, host_name  the host, as its key and its configuration name it
    boot                the boot that ``signal.seq`` counts in
    time_ns             event time, corrected by the host's measured offset
    labels              that the host's configuration gives it
    peer_host           name of the fleet's host behind the remote address, None: not one of ours
    signal              what the host sent; its time_ns is by the host's own clock
    """

    host_id: str
    host_name: str
    boot: str
    time_ns: int
    signal: Signal
    peer_host: str | None = None
    labels: dict[str, str] = {}

    @property
    def order(self) -> Order:
        return (self.time_ns, self.host_id, self.signal.seq, self.boot)

    @property
    def id(self) -> SignalId:
        return SignalId(self.host_id, self.boot, self.signal.seq)

    @property
    def is_made(self) -> bool:
        """Tell whether no host sent it: it stands for an incident."""
        return False


PSEUDO_FIELDS: dict[str, fields.Field] = {
    name: fields.Field(name, "string", "constant", ("host",), description)
    for name, description in (
        ("host.name", "Name of the host that the signal comes from"),
        ("host.id", "Identity of the host that the signal comes from"),
        ("host.label.NAME", "Label NAME of that host, from its agent's configuration"),
        ("peer.host", "Name of the fleet's host behind fd.rip, or else behind login.ip"),
        ("signal.rule", "Name of the rule that matched"),
        ("signal.priority", "Priority of the rule that matched, in capitals"),
    )
}
"""Fields that sequences have beside those of the signal."""

_PSEUDO: dict[str, Callable[[FleetSignal], FieldValue]] = {
    "host.name": lambda s: s.host_name,
    "host.id": lambda s: s.host_id,
    "peer.host": lambda s: s.peer_host,
    "signal.rule": lambda s: s.signal.rule,
    "signal.priority": lambda s: PRIORITIES[s.signal.priority],
}


CARRIED_FIELDS: dict[str, fields.Field] = {
    name: fields.Field(name, "string", "constant", ("host",), description)
    for name, description in (
        ("proc.exe_sha256", "SHA-256 of the program that runs, hex"),
        ("login.key", "Fingerprint of the key that let a user in, SHA256:…"),
        (
            "proc.lineage",
            "The ancestors of the process of an alert, JSON: [pid, program, command line] each",
        ),
    )
}
"""Fields that signals of some sources carry, and conditions of rules do not know (yet)."""

STANDS_FOR: dict[str, tuple[str, ...]] = {
    "fd.cnet": ("fd.cip",),
    "fd.snet": ("fd.sip",),
    "fd.lnet": ("fd.lip",),
    "fd.rnet": ("fd.rip",),
    "fd.net": ("fd.lip", "fd.rip", "fd.cip", "fd.sip"),
    "fd.ip": ("fd.lip", "fd.rip", "fd.cip", "fd.sip"),
    "fd.port": ("fd.lport", "fd.rport", "fd.cport", "fd.sport"),
}
"""Fields that a condition may ask about where signals carry others: any of these is meant."""

LABEL = "host.label."
"""Begins the fields that are labels of the host, whose names follow."""


@lru_cache(maxsize=4096)
def pseudo_reader(name: str) -> Callable[[FleetSignal], FieldValue] | None:
    """Return what reads a field that is not the signal's own; None: it is, or there is none."""
    if name.startswith(LABEL) and len(name) > len(LABEL):
        label = name.removeprefix(LABEL)
        return lambda signal: signal.labels.get(label)
    return _PSEUDO.get(name)


@lru_cache(maxsize=65_536)
def canonical_address(text: str) -> str | None:
    """Return an address in its one spelling; None where text is no address.

    An IPv4 address that an IPv6 socket shows (``::ffff:10.0.0.1``) is the IPv4 address: the two
    ends of one connection may show the same peer either way.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def remote_address(fields: dict[str, Any]) -> str | None:
    """Return the address that ``peer.host`` stands for: ``fd.rip``, else ``login.ip``.

    None without one, and for loopback, unspecified and link-local addresses, which every host
    has and which so say nothing about which host is meant.
    """
    for name in ("fd.rip", "login.ip"):
        value = fields.get(name)
        if not isinstance(value, str):
            continue
        text = canonical_address(value)
        if text is not None and names_a_host(text):
            return text
    return None


@lru_cache(maxsize=65_536)
def names_a_host(text: str) -> bool:
    """Tell whether an address in canonical form can name one host of a fleet."""
    address = ipaddress.ip_address(text)
    return not (
        address.is_loopback
        or address.is_unspecified
        or address.is_link_local
        or address.is_multicast
    )


_FIELD = re.compile(r"([a-z0-9_.]+|host\.label\.[A-Za-z0-9_.-]+)(?:\[([0-9]{1,9})\])?")


def lookup(ref: FieldRef) -> fields.Field:
    """Return the field of signals that a reference means: the catalogue's, or a pseudo field.

    Raises core.fields.UnknownField where there is none of this name.
    """
    pseudo = PSEUDO_FIELDS.get(ref.name) if ref.name in _PSEUDO else None
    if pseudo is None and pseudo_reader(ref.name) is not None:
        description = f"Label {ref.name.removeprefix(LABEL)} of the host's configuration"
        pseudo = fields.Field(ref.name, "string", "constant", ("host",), description)
    if pseudo is None:
        if ref.name in CARRIED_FIELDS and ref.name not in fields.FIELDS and ref.arg is None:
            return CARRIED_FIELDS[ref.name]
        return fields.lookup(ref)
    if ref.arg is not None:
        raise fields.UnknownField(f"{ref.name} takes no argument in brackets")
    return pseudo


def find(name: str) -> fields.Field:
    """Return the field that a name such as ``proc.aname[2]`` means. Raises as :func:`lookup`."""
    match = _FIELD.fullmatch(name)
    if match is None:
        raise fields.UnknownField(f"{name!r} is no name of a field")
    return lookup(FieldRef(match[1], match[2]))


def has_one_value(name: str) -> bool:
    """Tell whether a field has at most one value (``fd.ip`` means either end). Raises as find."""
    return "[" in name or not find(name).multiple


def value_of(field: str) -> Callable[[FleetSignal], FieldValue]:
    """Return the function that reads a field of a signal; it gives None where it is missing.

    Addresses are brought to one spelling. Raises core.fields.UnknownField.
    """
    pseudo = pseudo_reader(field)
    if pseudo is not None:
        return pseudo

    if find(field).type in ("ip", "net"):

        def address(signal: FleetSignal) -> FieldValue:
            value = signal.signal.fields.get(field)
            return canonical_address(value) if isinstance(value, str) else None

        return address

    def plain(signal: FleetSignal) -> FieldValue:
        value = signal.signal.fields.get(field)
        return value if isinstance(value, str | int) else None

    return plain


_COMPARED_WHOLE = ("=", "!=", "<", "<=", ">", ">=", "in", "exists")
_COMPARED_AS_TEXT = (
    *("contains", "icontains", "startswith", "endswith", "pmatch"),
    *("glob", "iglob", "regex"),
)
_OPERATORS = frozenset((*_COMPARED_WHOLE, *_COMPARED_AS_TEXT))


def parse_signal_condition(text: str) -> Expr:
    """Parse a condition over the fields of signals: fields as they are, against constants.

    Raises core.condition.ConditionError.
    """
    expr = parse_condition(text, find=lookup)
    for node in predicates(expr):
        is_plain = node.field == FieldRef(node.field.name, node.field.arg)
        has_constants = not any(isinstance(value, FieldRef) for value in node.values)
        if not (is_plain and has_constants and node.op in _OPERATORS):
            raise ConditionError(
                f"{node.field}: a step's condition compares fields with constants; what needs more"
                " than that belongs into the rule",
                0,
            )
    return expr


def holds(expr: Expr, signal: FleetSignal) -> bool:
    """Tell whether a condition is true of a signal; a missing field makes its check false."""
    match expr:
        case Predicate():
            return _predicate_holds(expr, signal)
        case And():
            return all(holds(item, signal) for item in expr.items)
        case Or():
            return any(holds(item, signal) for item in expr.items)
        case Not():
            return not holds(expr.item, signal)


def _predicate_holds(node: Predicate, signal: FleetSignal) -> bool:
    name = str(node.field)
    pseudo = pseudo_reader(name)
    if pseudo is not None:
        return value_holds(node, pseudo(signal))
    carried = signal.signal.fields
    value = carried.get(name)
    if value is None and name in STANDS_FOR:
        return any(value_holds(node, carried.get(other)) for other in STANDS_FOR[name])
    return value_holds(node, value)


def value_holds(node: Predicate, value: FieldValue) -> bool:
    """Tell whether a predicate is true of its field's value in a signal."""
    kind, is_multiple = _shape(node.field)
    # A field with several values travels as one text, joined by commas.
    parts = value.split(",") if is_multiple and isinstance(value, str) else [value]
    for part in parts:
        raw = _raw(part, kind)
        if raw is not None and operator_holds(node.op, raw, node.values):
            return True
    return False


def may_hold(expr: Expr, known: Callable[[Predicate], bool | None]) -> bool | None:
    """Evaluate a condition of which only some predicates are known (None: not known).

    None: it depends on those that are not.
    """
    match expr:
        case Predicate():
            return known(expr)
        case Not():
            found = may_hold(expr.item, known)
            return None if found is None else not found
        case And() | Or():
            decides = isinstance(expr, Or)
            values = [may_hold(item, known) for item in expr.items]
            if decides in values:
                return decides
            return None if None in values else not decides


@lru_cache(maxsize=4096)
def _shape(ref: FieldRef) -> tuple[str, bool]:
    field = lookup(ref)
    return field.type, field.multiple and ref.arg is None


def _raw(value: object, kind: str) -> bytes | int | None:
    """Return a value as conditions compare it, None where it is not of its field's type."""
    if kind == "string":
        return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else None
    if kind in ("ip", "net"):
        text = canonical_address(value) if isinstance(value, str) else None
        return None if text is None else ipaddress.ip_address(text).packed
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:20])
    return int(value) if isinstance(value, int) else None
