"""What steps with ``first_seen`` remember, kept in the store with the position of the sequences."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from vedette.aggregator.schema import firsts_table, seen_table
from vedette.aggregator.store import Store
from vedette.core.first_seen import VALUES_MAX
from vedette.core.fleet import FleetSignal, Order
from vedette.core.sequence import Sequence, Step

SPECS = "first_seen.specs"
"""Where the store keeps of which steps it knows what was seen."""
KNOWN_MAX = 200_000
"""Values that are kept in memory beside the store; all go when it is full."""
PRUNE_NOTES = 10_000
NUL = "\x01"
"""What stands for the NUL in the boot of an incident that is a signal (core.correlator.MadeSignal):
PostgreSQL keeps none."""


class StoreMemory:
    """A :class:`vedette.core.first_seen.Memory` in a store; one writer.

    values_max  per name; at the bound those seen longest ago go, counted as ``forgotten``
    """

    def __init__(self, store: Store, values_max: int = VALUES_MAX) -> None:
        self.values_max = values_max
        self.forgotten = 0
        self._store = store
        self._known: dict[tuple[str, str], int | None] = {}
        self._noted: dict[tuple[str, str], int] = {}
        self._firsts: list[tuple[str, Order]] = []
        self._for_ns: dict[str, int] = {}
        self._notes = 0

    def last_ns(self, spec: str, value: str) -> int | None:
        key = (spec, value)
        if key in self._noted:
            return self._noted[key]
        if key not in self._known:
            c = seen_table.c
            with self._store.reading() as connection:
                found = connection.execute(
                    sa.select(c.last_ns).where(c.spec == spec, c.value == value)
                ).scalar()
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = found
        return self._known[key]

    def note(self, spec: str, value: str, time_ns: int, for_ns: int) -> None:
        self._noted[(spec, value)] = time_ns
        self._for_ns[spec] = for_ns

    def note_first(self, spec: str, signal: FleetSignal) -> None:
        self._firsts.append((spec, signal.order))

    @property
    def waiting(self) -> int:
        """How many values are noted and not written."""
        return len(self._noted)

    def write(self, history_ns: int) -> None:
        """Write what was noted, in the transaction that writes the position.

        history_ns  so long before the last signal it has to be known which signals were first
        """
        if not self._noted:
            return
        with self._store.transaction() as connection:
            for (spec, value), last_ns in self._noted.items():
                connection.execute(
                    self._store.insert(seen_table)
                    .values(spec=spec, value=value, last_ns=last_ns)
                    .on_conflict_do_update(
                        index_elements=["spec", "value"], set_={"last_ns": last_ns}
                    )
                )
            for spec, (time_ns, host_id, seq, boot) in self._firsts:
                boot_id = boot.replace("\0", NUL)
                connection.execute(
                    self._store.insert(firsts_table)
                    .values(spec=spec, time_ns=time_ns, host_id=host_id, seq=seq, boot_id=boot_id)
                    .on_conflict_do_nothing()
                )
            self._notes += len(self._noted)
            if self._notes >= PRUNE_NOTES:
                self._notes = 0
                self._prune(connection, max(self._noted.values()), history_ns)
        for key, last_ns in self._noted.items():
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = last_ns
        self._noted.clear()
        self._firsts.clear()

    def _prune(self, connection: sa.Connection, now_ns: int, history_ns: int) -> None:
        """Forget what nobody asks for any more, and what is beyond the bound."""
        c = seen_table.c
        connection.execute(
            firsts_table.delete().where(firsts_table.c.time_ns < now_ns - history_ns)
        )
        for spec, for_ns in self._for_ns.items():
            connection.execute(
                seen_table.delete().where(c.spec == spec, c.last_ns < now_ns - for_ns)
            )
            last_kept = connection.execute(
                sa.select(c.last_ns)
                .where(c.spec == spec)
                .order_by(c.last_ns.desc())
                .offset(self.values_max - 1)
                .limit(1)
            ).scalar()
            if last_kept is not None:
                gone = connection.execute(
                    seen_table.delete().where(c.spec == spec, c.last_ns < last_kept)
                )
                self.forgotten += gone.rowcount
        self._known.clear()

    def firsts(self, since_ns: int) -> dict[str, set[Order]]:
        """Return which signals were first, from a time on."""
        c = firsts_table.c
        query = sa.select(c.spec, c.time_ns, c.host_id, c.seq, c.boot_id).where(
            c.time_ns >= since_ns
        )
        found: dict[str, set[Order]] = {}
        with self._store.reading() as connection:
            for spec, time_ns, host_id, seq, boot_id in connection.execute(query):
                order = (time_ns, host_id, seq, boot_id.replace(NUL, "\0"))
                found.setdefault(spec, set()).add(order)
        return found

    def unknown(self, sequences: tuple[Sequence, ...]) -> list[tuple[Sequence, Step]]:
        """Return the steps that are new, and note that they no longer are."""
        known = set(msgspec.json.decode(self._store.meta(SPECS) or "[]", type=list[str]))
        found = {
            step.seen_as: (sequence, step)
            for sequence in sequences
            for step in sequence.steps
            if step.first_seen is not None
        }
        if found.keys() != known:
            self._store.set_meta(SPECS, msgspec.json.encode(sorted(found)).decode())
        return [item for spec, item in found.items() if spec not in known]
