"""The correlator over a real store: however the signals came, the incidents are the same."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.aggregator import attack
from tests.core.sequence_strategies import HOSTS, sequences, streams
from vedette.aggregator import sequences as aggregator_sequences
from vedette.aggregator.correlating import CLOSE_S, Correlating, Stopped
from vedette.aggregator.sequences import Correlator, Fleet, fleet_of
from vedette.aggregator.store import Store
from vedette.core import sequences_twin
from vedette.core.clock import HostClock
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence, load, parse
from vedette.core.signal import Signal
from vedette.core.wire import PROTOCOL, Batch, Hello

ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.3"}
FOREVER_NS = 10**18


def said(host: str, **changed: Any) -> Hello:
    made = Hello(
        protocol=PROTOCOL,
        host_id=f"id-{host}",
        hostname=host,
        boot_id="boot",
        addresses=["127.0.0.1", ADDRESSES[host]],
        labels={},
        version="1",
        rules_digest="d",
        time_ns=1,
    )
    return msgspec.structs.replace(made, **changed)


def hello(store: Store, host: str, received_ns: int = 1, **changed: Any) -> None:
    store.hello(said(host, **changed), received_ns, 100)


def commit(store: Store, host: str, signals: list[Signal], released_ns: int = 0) -> None:
    store.commit(f"id-{host}", "boot", Batch(signals=signals), 1, released_ns)


def dump(store: Store) -> bytes:
    """Return all incidents as bytes, but for the numbers that tell in which order rows came."""
    found = []
    for listed in store.incidents():
        incident = store.incident(listed.id)
        assert incident is not None
        signals = [[p.step, p.signal.host_id, p.signal.seq] for p in incident.signals]
        plain = msgspec.structs.replace(incident, signals=[], written_ns=0)
        row = msgspec.structs.asdict(plain)
        found.append([row, signals])
    return msgspec.json.encode(found)


def opened(folder: str, name: str) -> Store:
    store = Store.open(Path(folder) / name)
    for number, host in enumerate(HOSTS):
        hello(store, host, received_ns=number + 1)
    return store


def sent(signal: FleetSignal) -> Signal:
    """Return what the host sends, with the peer as the address that it had."""
    fields = dict(signal.signal.fields)
    if signal.peer_host is not None:
        fields["fd.rip"] = ADDRESSES[signal.peer_host]
    return msgspec.structs.replace(signal.signal, fields=fields)


@settings(max_examples=60)
@given(data=st.data(), sequence=sequences(), stream=streams(most=14))
def test_arrival_batches_restarts_and_duplicates_change_no_byte(
    data: st.DataObject, sequence: Sequence, stream: list[FleetSignal]
) -> None:
    queues = {
        host: sorted(
            (sent(signal) for signal in stream if signal.host_name == host), key=lambda s: s.seq
        )
        for host in HOSTS
    }
    with tempfile.TemporaryDirectory() as folder:
        with opened(folder, "at-once") as store:
            for host, signals in queues.items():
                if signals:
                    commit(store, host, signals)
            Correlator(store, [sequence], clock_ns=lambda: 7).advance(FOREVER_NS)
            expected = dump(store)
        with opened(folder, "bit-by-bit") as store:
            make = lambda: Correlator(  # noqa: E731
                store,
                [sequence],
                batch_signals=data.draw(st.sampled_from((1, 2, 5))),
                clock_ns=lambda: 7,
            )
            correlator = make()
            at = dict.fromkeys(HOSTS, 0)
            released_ns = 0
            while any(at[host] < len(queues[host]) for host in HOSTS):
                host = data.draw(st.sampled_from(HOSTS))
                first = max(0, at[host] - data.draw(st.integers(0, 2)))
                batch = queues[host][first : at[host] + data.draw(st.integers(1, 4))]
                if batch:
                    commit(store, host, batch, released_ns)
                    at[host] = max(at[host], first + len(batch))
                if data.draw(st.booleans()):
                    correlator = make()
                if data.draw(st.booleans()):
                    following = [
                        queues[h][at[h]].time_ns - 1 if at[h] < len(queues[h]) else FOREVER_NS
                        for h in HOSTS
                    ]
                    released_ns = max(released_ns, min(following))
                    correlator.advance(released_ns)
            correlator.advance(FOREVER_NS)
            assert dump(store) == expected
    twin = sequences_twin.incidents([sequence], stream, FOREVER_NS)
    found = [row["id"] for row, _ in msgspec.json.decode(expected)]
    counts = [row["details"]["completions"] for row, _ in msgspec.json.decode(expected)]
    assert found == [incident.id for incident in twin]
    assert counts == [incident.completions for incident in twin]


LOGINS = b"""
- sequence: two logins
  within: 1m
  steps:
    - as: one
      signal: login
    - as: two
      signal: login
      join: [two.host.name = one.peer.host]
"""


def logins() -> tuple[Sequence, ...]:
    loaded = parse(LOGINS, "logins.yaml")
    assert not loaded.errors
    return loaded.sequences


def a_login(seq: int, time_ns: int, address: str) -> Signal:
    fields = {"fd.rip": address}
    return Signal(seq=seq, time_ns=time_ns, rule="login", priority=5, fields=fields)


def filled(folder: Path, name: str = "store", kind: type[Store] = Store) -> Store:
    """Return a store of a, b and c, where a's login points at b and b's at c."""
    store = kind.open(folder / name)
    for number, host in enumerate(ADDRESSES, 1):
        hello(store, host, received_ns=number)
    commit(store, "a", [a_login(1, 10, ADDRESSES["b"])])
    commit(store, "b", [a_login(1, 20, f"::ffff:{ADDRESSES['c']}")])
    commit(store, "c", [a_login(1, 30, "198.51.100.1")])
    return store


def steps_of(store: Store) -> list[list[str]]:
    """Return the hosts of each incident's signals."""
    whole = [store.incident(listed.id) for listed in store.incidents()]
    return [[place.signal.hostname for place in one.signals] for one in whole if one is not None]


def test_the_host_behind_an_address_joins(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        Correlator(store, logins()).advance(FOREVER_NS)
        # One incident per way; each way has keys of its own.
        assert steps_of(store) == [["a", "b"], ["b", "c"]]
        assert [incident.hosts for incident in store.incidents()] == [
            ["id-a", "id-b"],
            ["id-b", "id-c"],
        ]


def test_only_what_the_watermark_has_passed_is_taken(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        correlator = Correlator(store, logins())
        correlator.advance(19)
        assert (store.incidents(), correlator.released_ns) == ([], 19)
        correlator.advance(20)
        assert (len(store.incidents()), correlator.released_ns) == (1, 20)


def test_a_host_cannot_take_anothers_name_or_address(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        hello(store, "a", 99, host_id="hostile", hostname="b", addresses=list(ADDRESSES.values()))
        fleet = Fleet(store.hosts())
        assert [fleet.name(f"id-{host}") for host in ADDRESSES] == ["a", "b", "c"]
        assert fleet.name("hostile") == "b (hostile)"
        Correlator(store, logins()).advance(FOREVER_NS)
        assert steps_of(store) == [["a", "b"], ["b", "c"]]


def test_who_had_an_address_is_known_for_its_time(tmp_path: Path) -> None:
    """Host b gives its address up at 200 s, and c takes it at 300 s; a was never asked."""
    second_ns = 10**9
    with filled(tmp_path) as store:
        store.hello(said("c"), 2 * second_ns, 100)
        store.hello(said("b", addresses=[]), 200 * second_ns, 100)
        store.hello(said("c", addresses=[ADDRESSES["b"]]), 300 * second_ns, 100)
        fleet = fleet_of(store)
    asked = {0: "b", 199: "b", 200: "b", 239: None, 241: "c", 10**6: "c"}
    for at_s, name in asked.items():
        assert fleet.behind(ADDRESSES["b"], at_s * second_ns) == name
    assert fleet.behind("192.0.2.9", second_ns) is None


def test_a_hosts_address_is_its_own_until_it_is_silent(tmp_path: Path) -> None:
    second_ns = 10**9
    with filled(tmp_path) as store:
        store.hello(said("b"), 100 * second_ns, 100)
        store.hello(said("c", addresses=[ADDRESSES["b"]]), 50 * second_ns, 100)
        fleet = fleet_of(store)
    assert fleet.behind(ADDRESSES["b"], 150 * second_ns) == "b"
    assert fleet.behind(ADDRESSES["b"], 161 * second_ns) == "c"


def test_what_two_clocks_cannot_tell_apart_is_said(tmp_path: Path) -> None:
    clock = HostClock(0, 3)
    with filled(tmp_path) as store:
        for host, at_ns, address in (("c", 100, ADDRESSES["a"]), ("a", 105, "198.51.100.1")):
            batch = Batch(signals=[a_login(9, at_ns, address)])
            store.commit(f"id-{host}", "boot", batch, 1, 0, clock)
        Correlator(store, logins()).advance(FOREVER_NS)
        found = [i.details["uncertain"] for i in store.incidents() if i.end_ns == 105]
        (other,) = [i.details for i in store.incidents() if i.end_ns == 20]
    assert (other["addresses"], other["users"]) == (
        [ADDRESSES["b"], f"::ffff:{ADDRESSES['c']}"],
        [],
    )
    assert found
    assert all("clocks are known to 0.000 ms" in text for (text,) in found)


def test_addresses_that_every_host_has_name_nobody(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        commit(store, "a", [a_login(2, 40, "127.0.0.1")])
        (found,) = [s for s in store.released(None, FOREVER_NS) if s.time_ns == 40]
        assert Fleet(store.hosts()).signal(found).peer_host is None


def test_a_late_signal_is_left_out_and_doubts_are_written_down(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        correlator = Correlator(store, logins())
        correlator.advance(15)
        commit(store, "b", [a_login(2, 14, ADDRESSES["c"])], released_ns=15)
        batch = Batch(signals=[a_login(5, 25, "198.51.100.1")], lost=[(3, 3)])
        store.commit("id-b", "boot", batch, 1, 15)
        correlator.advance(FOREVER_NS)
        incident = store.incidents()[0]
        assert not incident.complete
        assert incident.reasons == [
            "b: 1 signals that came too late",
            "b: 1 signals that its agent had to give up",
            "b: 1 signals that nobody accounts for",
        ]


class FailingStore(Store):
    """A store, one of whose writes of the position fails."""

    writes_left = -1

    def set_meta(self, key: str, value: str) -> None:
        self.writes_left -= 1
        if self.writes_left == 0:
            raise OSError("no space left")
        super().set_meta(key, value)


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_write_that_fails_is_taken_up_again_where_the_store_stands(
    tmp_path: Path, failing: int
) -> None:
    """Equal times, batches of one: the worst place to stop."""
    stores = []
    for name, kind in (("whole", Store), ("failing", FailingStore)):
        stores.append(filled(tmp_path, name, kind))
        commit(stores[-1], "b", [a_login(seq, 20, ADDRESSES["b"]) for seq in range(2, 6)])
    whole, broken = stores
    with whole, broken:
        Correlator(whole, logins(), clock_ns=lambda: 7).advance(FOREVER_NS)
        correlator = Correlator(broken, logins(), batch_signals=1, clock_ns=lambda: 7)
        assert isinstance(broken, FailingStore)
        broken.writes_left = failing
        with pytest.raises(OSError, match="no space left"):
            correlator.advance(FOREVER_NS)
        correlator.advance(FOREVER_NS)
        assert dump(broken) == dump(whole)


def test_where_there_is_much_to_write_it_is_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as anything is to be written, and the same comes of it."""
    stores = []
    for name in ("whole", "parts"):
        stores.append(filled(tmp_path, name, Store))
        commit(stores[-1], "b", [a_login(seq, 20, ADDRESSES["b"]) for seq in range(2, 6)])
    whole, parts = stores
    with whole, parts:
        Correlator(whole, logins(), clock_ns=lambda: 7).advance(FOREVER_NS)
        for name in ("CHUNK_SIGNALS", "INCIDENTS_AT_ONCE", "SEEN_AT_ONCE"):
            monkeypatch.setattr(aggregator_sequences, name, 1)
        positions = []
        set_meta = parts.set_meta

        def noted(key: str, value: str) -> None:
            positions.append(key)
            set_meta(key, value)

        monkeypatch.setattr(parts, "set_meta", noted)
        Correlator(parts, logins(), clock_ns=lambda: 7).advance(FOREVER_NS)
        assert positions.count(aggregator_sequences.POSITION) > len(whole.incidents()) > 0
        assert dump(parts) == dump(whole)


def test_the_shipped_sequence_sees_the_attack_once(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        attack.fill(store)
        attack.correlate(store)
        attack.correlate(store)
        (incident,) = store.incidents()
        assert incident.hosts == ["id-b", "id-c"]
        assert incident.complete
        whole = store.incident(incident.id)
        assert whole is not None
        assert [place.step for place in whole.signals] == [
            *["knock"] * 5,
            *("entry", "theft", "pivot", "landing", "execution", "callback"),
        ]


@pytest.mark.parametrize("left_out", range(7, len(attack.ATTACK)))
def test_without_any_of_its_steps_the_attack_is_no_incident(tmp_path: Path, left_out: int) -> None:
    told = tuple(item for number, item in enumerate(attack.ATTACK) if number != left_out)
    with Store.open(tmp_path / "store") as store:
        attack.fill(store, told)
        attack.correlate(store)
        assert store.incidents() == []


FIRST = b"""
- sequence: new program
  within: 1m
  steps:
    - as: run
      signal: run
      first_seen: {fields: [proc.name], for: 1m}
    - as: call
      signal: call
      join: call.host.name = run.host.name
"""


def a_run(seq: int, at_s: int, name: str, rule: str = "run") -> Signal:
    return Signal(seq=seq, time_ns=at_s * 10**9, rule=rule, priority=5, fields={"proc.name": name})


def in_turn(store: Store, restart: bool) -> list[list[int]]:
    """Let x and y be run on a and b, with a call after each; return what was found when."""
    found = parse(FIRST, "f.yaml").sequences
    correlator = Correlator(store, found)
    script = [("a", 1, "x"), ("b", 20, "x"), ("b", 40, "y"), ("a", 90, "x"), ("b", 155, "x")]
    for number, (host, at_s, name) in enumerate(script, 1):
        signals = [a_run(2 * number, at_s, name), a_run(2 * number + 1, at_s + 1, name, "call")]
        commit(store, host, signals)
        correlator.advance((at_s + 1) * 10**9)
        if restart:
            correlator = Correlator(store, found)
    return [
        [place.signal.time_ns // 10**9 for place in whole.signals]
        for whole in (store.incident(listed.id) for listed in store.incidents())
        if whole is not None
    ]


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_seen_is_kept_with_the_position(tmp_path: Path, restart: bool) -> None:
    """x is new at 1 s; at 90 s it was seen 70 s before, at 155 s only 65."""
    with filled(tmp_path) as store:
        assert in_turn(store, restart) == [[1, 2], [40, 41], [90, 91], [155, 156]]


def test_a_new_sequence_learns_what_was_seen_before_it_was_there(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        Correlator(store, logins()).advance(9)
        commit(store, "a", [a_run(2, 1, "x"), a_run(3, 30, "y")])
        Correlator(store, logins()).advance(31 * 10**9)
        correlator = Correlator(store, parse(FIRST, "f.yaml").sequences)
        commit(store, "b", [a_run(2, 50, "x"), a_run(3, 51, "y"), a_run(4, 52, "z")])
        commit(store, "b", [a_run(5, 53, "z", "call")])
        correlator.advance(60 * 10**9)
        (listed,) = [i for i in store.incidents() if i.sequence == "new program"]
        assert (listed.start_ns, listed.end_ns) == (52 * 10**9, 53 * 10**9)


def test_incidents_are_followed_though_the_clock_is_set_back(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        correlator = Correlator(store, logins(), clock_ns=lambda: 1000)
        correlator.advance(25)
        (first,) = store.incidents_written(0, "", 10)
        assert first.written_ns == 1000
        correlator = Correlator(store, logins(), clock_ns=lambda: 500)
        correlator.advance(35)
        (second,) = store.incidents_written(first.written_ns, first.id, 10)
        assert second.written_ns == 1001


@pytest.mark.parametrize("checks", [0, 1, 5, 15])
def test_who_is_to_stop_stops_between_batches_and_goes_on_from_there(
    tmp_path: Path, checks: int
) -> None:
    left = checks

    def check() -> None:
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1

    made = [a_run(2 + n, 1 + n, "x", "login") for n in range(40)]
    with filled(tmp_path) as store:
        commit(store, "a", made)
        with pytest.raises(Stopped):
            Correlator(store, logins(), batch_signals=2).advance(FOREVER_NS, check)
        position = store.meta(aggregator_sequences.POSITION)
        taken = 0 if position is None else msgspec.json.decode(position)[2]
        assert taken < made[-1].seq
        assert (taken > 0) == (checks > 0)
        # While the tables are made again, too.
        left = 1
        with pytest.raises(Stopped):
            Correlator(store, logins(), batch_signals=2).advance(FOREVER_NS, check)
        Correlator(store, logins()).advance(FOREVER_NS)
        stopped = dump(store)
    (tmp_path / "other").mkdir()
    with filled(tmp_path / "other") as store:
        commit(store, "a", made)
        Correlator(store, logins()).advance(FOREVER_NS)
        assert [row[0]["details"] for row in msgspec.json.decode(stopped)] == [
            row[0]["details"] for row in msgspec.json.decode(dump(store))
        ]


def test_the_sequences_are_left_while_they_catch_up(tmp_path: Path) -> None:
    """However much there is to take: the rest is taken up by the next start."""
    reached = threading.Event()

    class Endless:
        def advance(self, watermark_ns: int, check: Callable[[], None]) -> None:
            while True:
                reached.set()
                check()
                time.sleep(0.001)

        def stats(self) -> dict[str, int]:
            return {}

    with filled(tmp_path) as store:
        correlating = Correlating(store, lambda _: Endless())
        correlating.advance(7)
        assert reached.wait(30)
        began_s = time.monotonic()
        correlating.close()
        assert time.monotonic() - began_s < CLOSE_S / 2
        assert (correlating.taken_ns, correlating.failure) == (0, None)


CHAIN = b"""
- sequence: two logins
  within: 1m
  steps:
    - {as: first, signal: login, count: 2, by: [host.name]}
- sequence: the same again
  within: 10m
  steps:
    - {as: one, signal: {sequence: two logins}}
    - {as: other, signal: {sequence: two logins}}
"""


@pytest.mark.parametrize("restart", [False, True])
def test_incidents_are_signals_of_other_sequences(tmp_path: Path, restart: bool) -> None:
    found = parse(CHAIN, "c.yaml").sequences
    with filled(tmp_path) as store:
        correlator = Correlator(store, found)
        for number, (host, at_s) in enumerate([("a", 110), ("a", 120), ("b", 130), ("b", 140)], 2):
            login = a_login(number, at_s * 10**9, "198.51.100.1")
            commit(store, host, [login])
            correlator.advance(at_s * 10**9)
            if restart:
                correlator = Correlator(store, found)
        (listed,) = [i for i in store.incidents() if i.sequence == "the same again"]
        whole = store.incident(listed.id)
        assert whole is not None
        assert [place.step for place in whole.signals] == [
            *("one/first", "one/first", "other/first", "other/first")
        ]
        assert whole.hosts == ["id-a", "id-b"]
        assert (whole.start_ns, whole.end_ns) == (110 * 10**9, 140 * 10**9)


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_a_hundred_arrival_orders_give_the_same_incidents(tmp_path: Path, first: int) -> None:
    """The attack three times over, with all that ships: whatever comes when, not a byte differs."""
    found = load([attack.SEQUENCES, attack.SEQUENCES.parent / "sequences_fleet.yaml"]).sequences
    again = parse(
        b"""
- sequence: the intrusion again
  within: 1h
  steps:
    - {as: one, signal: {sequence: SSH intrusion that moves on to a second host}}
    - {as: other, signal: {sequence: SSH intrusion that moves on to a second host}}
""",
        "again.yaml",
    ).sequences
    told = [(after_s + 1000 * turn, *rest) for turn in range(3) for after_s, *rest in attack.ATTACK]
    queues: dict[str, list[Signal]] = {host: [] for host in ADDRESSES}
    for item in sorted(told, key=lambda item: item[0]):
        host = str(item[1])
        queues[host].append(attack.signal(len(queues[host]) + 1, item))  # type: ignore[arg-type]
    with Store.open(tmp_path / "at-once") as store:
        attack.fill(store, ())
        for host, signals in queues.items():
            if signals:
                store.commit(f"id-{host}", attack.BOOT, Batch(signals=signals), 1, 0)
        Correlator(store, (*found, *again), clock_ns=lambda: 7).advance(attack.LATEST_NS)
        expected = dump(store)
        names = {incident.sequence for incident in store.incidents()}
    assert {"the intrusion again", "Login from a new address that moves on"} & names
    assert len(names) >= 4
    for seed in range(first, first + 20):
        source = random.Random(seed)
        with Store.open(tmp_path / f"{seed}") as store:
            attack.fill(store, ())
            with store.transaction():
                _arrive(store, (*found, *again), queues, source)
            assert dump(store) == expected, f"seed {seed}"


def _arrive(
    store: Store,
    found: tuple[Sequence, ...],
    queues: dict[str, list[Signal]],
    source: random.Random,
) -> None:
    """Let hosts' signals come in some order, in batches, some twice, with restarts in between."""

    def make() -> Correlator:
        return Correlator(store, found, batch_signals=source.choice((1, 3, 50)), clock_ns=lambda: 7)

    correlator = make()
    at = dict.fromkeys(queues, 0)
    released_ns = 0
    while any(at[host] < len(queues[host]) for host in queues):
        host = source.choice([host for host in queues if at[host] < len(queues[host])])
        first = max(0, at[host] - source.randrange(3))
        end = min(len(queues[host]), at[host] + source.randrange(1, 6))
        batch = Batch(signals=queues[host][first:end])
        store.commit(f"id-{host}", attack.BOOT, batch, 1, released_ns)
        at[host] = end
        if source.random() < 0.5:
            following = [
                queues[h][at[h]].time_ns - 1 if at[h] < len(queues[h]) else attack.LATEST_NS
                for h in queues
            ]
            released_ns = max(released_ns, min(following))
            correlator.advance(released_ns)
        if source.random() < 0.2:
            correlator = make()
    correlator.advance(attack.LATEST_NS)


def test_a_host_that_was_silent_is_a_doubt(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        store.note_silence({"id-b": True}, 15)
        Correlator(store, logins()).advance(FOREVER_NS)
        reasons = {tuple(i.hosts): (i.complete, i.reasons) for i in store.incidents()}
    doubt = (False, ["b: silent since before the last signal"])
    assert reasons == {("id-a", "id-b"): doubt, ("id-b", "id-c"): doubt}
