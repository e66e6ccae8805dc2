"""The spool: real files, and real agents' ends of the wire that are killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.aggregator.service import Service, aggregator, signals, until
from vedette.agent.shipper import BATCH_SIGNALS, Shipper
from vedette.agent.spool import BYTES_MIN, NUMBERINGS_MAX, Spool, SpoolError
from vedette.aggregator.store import Store
from vedette.core.signal import PRIORITIES, Signal

CRITICAL = PRIORITIES.index("CRITICAL")
NOTICE = PRIORITIES.index("NOTICE")
ROUNDS = int(os.environ.get("VEDETTE_SOAK_ROUNDS", "4"))


def opened(
    folder: Path, boot_id: str = "boot", bytes_max: int = 1 << 26, age_s_max: float = 1e6
) -> Spool:
    return Spool.open(folder, boot_id, bytes_max=bytes_max, age_s_max=age_s_max)


def accounted(queue: object) -> tuple[list[int], set[int]]:
    """Everything that a queue hands out: numbers in order, and numbers that it reports as lost."""
    numbers: list[int] = []
    lost: set[int] = set()
    while (taken := queue.take(100)).signals:  # type: ignore[attr-defined]
        numbers += [one.seq for one in taken.signals]
        for first, last in taken.lost:
            lost.update(range(first, last + 1))
    if end := queue.lost_at_end():  # type: ignore[attr-defined]
        lost.update(range(end[0], end[1] + 1))
    return numbers, lost


def left_open(folder: Path, boot_id: str, made: list[Signal], **changes: int) -> None:
    """Write signals in a process that is killed before it could close the spool."""
    child = os.fork()
    if child == 0:
        spool = opened(folder, boot_id, **changes)
        spool.current.put(made)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_what_was_put_is_there_after_a_kill_whole_and_in_order(tmp_path: Path) -> None:
    made = signals(1, 3000, tags=("t", "u"), fields={"proc.name": "é", "n": 7, "b": True})
    made += signals(3001, 3010, priority=CRITICAL) + signals(3011, 3020)
    left_open(tmp_path / "s", "one", made)
    with opened(tmp_path / "s", "two") as spool:
        (former,) = spool.former
        assert (former.boot_id, former.kept, former.last_seq) == ("one", 3020, 3020)
        taken = former.take(4000)
        assert taken.lost == []
        assert taken.signals == made
        assert spool.current.kept == 0


def test_acknowledged_signals_do_not_come_again(tmp_path: Path) -> None:
    left_open(tmp_path / "s", "one", signals(1, 50) + signals(51, 60, priority=CRITICAL))
    with opened(tmp_path / "s", "two") as spool:
        (former,) = spool.former
        former.rewind(40)
        assert former.kept == former.waiting == 20
        assert accounted(former) == (list(range(41, 61)), set())
        former.commit(60)
        assert former.kept == 0
        spool.finish(former)
    with opened(tmp_path / "s", "three") as spool:
        assert spool.former == []


def test_files_go_with_their_acknowledgement(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        for start in range(1, 20_001, 500):
            spool.current.put(signals(start, start + 499, output="x" * 300))
            spool.current.take(500)
            spool.current.commit(start + 499)
            assert spool.bytes < 3 << 20
        assert spool.current.kept == 0
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["lock"]


@pytest.mark.parametrize("cut", [1, 30, 70])
def test_a_record_cut_off_by_a_kill_is_left_out(tmp_path: Path, cut: int) -> None:
    left_open(tmp_path / "s", "one", signals(1, 5))
    child = os.fork()
    if child == 0:
        spool = opened(tmp_path / "s", "two")
        spool.current.put(signals(1, 5))
        spool.current.put(signals(6, 9))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (segment,) = (tmp_path / "s" / "00000002").glob("o-*")
    os.truncate(segment, segment.stat().st_size - cut)
    with opened(tmp_path / "s", "three") as spool:
        assert [queue.boot_id for queue in spool.former] == ["one", "two"]
        assert accounted(spool.former[1]) == ([1, 2, 3, 4, 5], set())


def test_a_damaged_record_is_reported_lost_and_stops_nothing(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        spool = opened(tmp_path / "s", "one")
        for start in (1, 4, 7):
            spool.current.put(signals(start, start + 2))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (segment,) = (tmp_path / "s" / "00000001").glob("o-*")
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    segment.write_bytes(raw)
    with opened(tmp_path / "s", "two") as spool:
        (former,) = spool.former
        assert accounted(former) == ([1, 2, 3, 7, 8, 9], {4, 5, 6})
        assert former.lost == {5: 3}
        assert spool.gauges()["spool_lost_damaged"] == 3


def test_at_the_bound_the_oldest_that_is_not_critical_goes_first(tmp_path: Path) -> None:
    with opened(tmp_path / "s", bytes_max=BYTES_MIN) as spool:
        queue = spool.current
        seq = 1
        for _ in range(60):
            queue.put(signals(seq, seq + 9, priority=CRITICAL, output="x" * 400))
            queue.put(signals(seq + 10, seq + 99, priority=NOTICE, output="x" * 400))
            seq += 100
            assert spool.bytes <= BYTES_MIN
        assert set(queue.lost) == {NOTICE}
        numbers, lost = accounted(queue)
        assert len(lost) == queue.lost[NOTICE] == spool.gauges()["spool_lost_bound"]
        assert sorted([*numbers, *lost]) == list(range(1, seq))
        assert max(lost) < max(n for n in numbers if n % 100 > 10 or n % 100 == 0)
        # With nothing else left, the oldest CRITICAL goes.
        queue.rewind(seq - 1)
        queue.put(signals(seq, seq + 5000, priority=CRITICAL, output="x" * 400))
        assert queue.lost[CRITICAL] > 0
        numbers, lost = accounted(queue)
        assert lost == set(range(seq, min(numbers)))


def test_losses_are_known_after_a_kill(tmp_path: Path) -> None:
    made = signals(1, 9000, output="x" * 400)
    left_open(tmp_path / "s", "one", made, bytes_max=BYTES_MIN)
    with opened(tmp_path / "s", "two") as spool:
        (former,) = spool.former
        numbers, lost = accounted(former)
        assert sorted([*numbers, *lost]) == list(range(1, 9001))
        assert former.lost[5] == len(lost) > 0


def test_what_is_under_way_stays_and_what_comes_is_counted(tmp_path: Path) -> None:
    with opened(tmp_path / "s", bytes_max=BYTES_MIN) as spool:
        queue = spool.current
        queue.put(signals(1, 1500, output="x" * 400))
        taken = queue.take(10_000).signals
        queue.put(signals(1501, 6000, output="x" * 400))
        queue.rewind(0)
        numbers, lost = accounted(queue)
        assert numbers[: len(taken)] == [one.seq for one in taken]
        assert sorted([*numbers, *lost]) == list(range(1, 6001))
        assert sum(queue.lost.values()) == len(lost) > 0


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    left_open(tmp_path / "s", "one", signals(1, 10))
    for path in (tmp_path / "s").rglob("o-*"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    with opened(tmp_path / "s", "two", age_s_max=50) as spool:
        spool.current.put(signals(1, 5))
        spool.current.tend()
        (former,) = spool.former
        assert accounted(former) == ([], set(range(1, 11)))
        assert accounted(spool.current)[0] == [1, 2, 3, 4, 5]
        assert spool.gauges()["spool_lost_age"] == 10


def test_a_disk_that_takes_nothing_costs_no_signal(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: both make write(2) fail or write less."""
    code = """
import resource, signal, sys
from pathlib import Path
from tests.agent.test_spool import accounted, opened
from tests.aggregator.service import signals
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with opened(Path(sys.argv[1]) / "s") as spool:
    queue = spool.current
    queue.put(signals(1, 100))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    for start in range(101, 2001, 100):
        queue.put(signals(start, start + 99))
    assert spool.gauges()["spool_write_errors"], "no error"
    assert spool.memory_bytes > 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    spool.retry_s = 0
    queue.put(signals(2001, 2100))
    assert queue.kept == 2100
    assert accounted(queue) == (list(range(1, 2101)), set())
    queue.rewind(0)
    assert accounted(queue) == (list(range(1, 2101)), set())
    queue.commit(2100)
    assert queue.kept == spool.memory_bytes == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_the_disk_does_not_take_is_few_segments_in_memory(tmp_path: Path) -> None:
    """Each is looked at with each signal, for as long as the disk takes nothing."""
    with opened(tmp_path / "s") as spool:
        queue = spool.current
        queue.put(signals(1, 10))
        spool.retry_s = float("inf")
        for seq in range(11, 4001):
            queue.put(signals(seq, seq, priority=CRITICAL if seq % 3 == 0 else NOTICE))
        assert sum(len(lane.segments) for lane in queue.lanes) < 10
        taken = queue.take(2000)
        assert [one.seq for one in taken.signals] == list(range(1, 2001))
        queue.commit(1500)
        numbers, lost = accounted(queue)
        assert (numbers, lost) == (list(range(2001, 4001)), set())
        for seq in range(4001, 4011):
            queue.put(signals(seq, seq))
        assert accounted(queue) == (list(range(4001, 4011)), set())
        queue.rewind(1500)
        assert accounted(queue) == (list(range(1501, 4011)), set())
        queue.commit(4010)
        assert queue.kept == spool.memory_bytes == spool.bytes == 0


def test_a_file_that_cannot_be_taken_away_stops_nothing(tmp_path: Path) -> None:
    """As on a disk that became read-only; a folder in a file's place is not unlinked either."""
    with opened(tmp_path / "s", bytes_max=BYTES_MIN) as spool:
        queue = spool.current
        queue.put(signals(1, 1500, output="x" * 400))
        paths = [segment.path for segment in queue.other.segments]
        assert len(paths) > 10
        for path in paths:
            assert path is not None
            path.unlink()
            path.mkdir()
        queue.put(signals(1501, 6000, output="x" * 400))
        assert queue.lost
        assert spool.counters["write_errors"] >= len(paths) - 1
        numbers, lost = accounted(queue)
        assert sorted([*numbers, *lost]) == list(range(1, 6001))
        queue.commit(6000)
        assert queue.kept == 0
    assert not list((tmp_path / "s").glob("0*"))


def test_a_signal_that_is_no_text_is_fitted(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        spool.current.put(signals(1, 2) + signals(3, 3, output="\udcff", fields={"n": 1 << 70}))
        assert spool.current.take(3).signals[2].output == "\\udcff"


def test_one_agent_at_a_time(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "s"),
        pytest.raises(SpoolError, match="another agent uses it"),
    ):
        opened(tmp_path / "s")
    with pytest.raises(SpoolError, match="must exist"):
        opened(tmp_path / "no" / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot be used"):
        opened(tmp_path / "file")


def test_an_agent_that_dies_all_the_time_fills_no_folder(tmp_path: Path) -> None:
    for number in range(NUMBERINGS_MAX + 3):
        left_open(tmp_path / "s", f"boot-{number}", signals(1, 3))
    with opened(tmp_path / "s", "last") as spool:
        assert len(spool.former) == NUMBERINGS_MAX - 1
        assert spool.former[-1].boot_id == f"boot-{NUMBERINGS_MAX + 2}"


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 7)),
            st.tuples(st.just("take"), st.integers(1, 40)),
            st.tuples(st.just("untake"), st.integers(0, 20)),
            st.tuples(st.just("commit"), st.integers(0, 30)),
            st.tuples(st.just("rewind"), st.integers(0, 30)),
            st.tuples(st.just("reopen"), st.just(0)),
        ),
        max_size=60,
    ),
)
def test_every_number_is_delivered_or_reported_lost(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, the other end can account for every number, and sees none twice."""
    with tempfile.TemporaryDirectory() as folder:
        # 16 kB a put: what is under way and a few more fill the spool.
        spool = opened(Path(folder) / "s", bytes_max=BYTES_MIN)
        queue = spool.current
        seq = committed = 0
        arrived: list[int] = []
        reported: set[int] = set()

        def take(count: int) -> list[Signal]:
            taken = queue.take(count)
            for first, last in taken.lost:
                reported.update(range(first, last + 1))
            for one in taken.signals:
                assert not arrived or one.seq > arrived[-1]
                arrived.append(one.seq)
            return taken.signals

        for step, number in steps:
            if step == "put":
                queue.put(
                    [
                        Signal(
                            seq=seq + n,
                            time_ns=seq + n,
                            rule="r",
                            priority=number if n % 7 else 7 - number,
                            output="x" * 3000,
                        )
                        for n in range(1, 61)
                    ]
                )
                seq += 60
                assert spool.bytes <= BYTES_MIN
            elif step == "take":
                take(number)
            elif step == "untake":
                rest = take(number + 1)[1:]
                queue.untake(rest)
                for one in rest:
                    arrived.remove(one.seq)
                reported = {n for n in reported if not arrived or n < arrived[-1]} | {
                    n for n in reported if n <= committed
                }
            elif step == "commit":
                committed = max(committed, *arrived[: len(arrived) - number], 0)
                queue.commit(committed)
            else:
                committed = max(committed, *arrived[: len(arrived) - number], 0)
                if step == "reopen" and seq:
                    spool.close()
                    spool = opened(Path(folder) / "s", "next", bytes_max=BYTES_MIN)
                    found = [q for q in spool.former if q.boot_id == "boot"]
                    if not found:
                        assert committed == seq
                        break
                    queue = found[0]
                queue.rewind(committed)
                arrived = [n for n in arrived if n <= committed]
                reported = {n for n in reported if n <= committed}
            assert queue.kept == queue.waiting + len([n for n in arrived if n > committed])
        else:
            while take(BATCH_SIGNALS):
                pass
            if end := queue.lost_at_end():
                reported.update(range(end[0], end[1] + 1))
            assert {*arrived, *reported} == set(range(1, seq + 1))
            assert not {n for n in arrived if n > committed} & reported
        spool.close()


# On the wire.

BATCH_MAX = 37
_AGENT = f"""
import os, sys, time
from pathlib import Path
from tests.aggregator.service import signals
from vedette.agent.shipper import Shipper
from vedette.agent.spool import Spool

endpoint, folder, boot_id, note = sys.argv[1:]
spool = Spool.open(folder, boot_id, bytes_max=1 << 28, age_s_max=1e6)
log = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with Shipper(endpoint, host_id="a", hostname="a", boot_id=boot_id, spool=spool,
             heartbeat_s=0.1, backoff_s=0.01, backoff_max_s=0.05) as shipper:
    seq = 0
    while True:
        count = 1 + seq % {BATCH_MAX}
        shipper.send([s for n in range(count) for s in signals(seq + n + 1, seq + n + 1,
                                                               priority=(seq + n) % 8)])
        seq += count
        os.write(log, b"%d\\n" % seq)
        time.sleep(0.0005)
"""


class Killed:
    """Agents, one after the other, of one spool; each notes what it handed over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boots: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, endpoint: str) -> None:
        boot = f"boot-{len(self.boots)}"
        self.boots.append(boot)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AGENT, endpoint, self.folder / "spool", boot, self._note(boot)]
        )
        until(lambda: self._generated(boot) > 0, "a first signal")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def generated(self) -> dict[str, int]:
        """The highest number that each agent had handed over for sure."""
        return {boot: self._generated(boot) for boot in self.boots}

    def _generated(self, boot: str) -> int:
        note = self._note(boot)
        # A line without its end was being written when the agent was killed.
        written = note.read_bytes() if note.exists() else b""
        return int((b"0\n" + written).split(b"\n")[-2])

    def _note(self, boot: str) -> Path:
        return self.folder / f"{boot}.note"


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Killed]:
    made = Killed(tmp_path)
    yield made
    made.kill()


def drain(endpoint: str, folder: Path) -> None:
    """Deliver what is left, with an agent that makes no signals of its own."""
    with (
        Spool.open(folder / "spool", "drain", bytes_max=1 << 28, age_s_max=1e6) as spool,
        Shipper(
            endpoint, host_id="a", hostname="a", boot_id="drain", spool=spool, heartbeat_s=0.1
        ) as agent,
    ):
        until(lambda: agent.stats()["kept"] == 0, f"everything delivered: {agent.state}")


def assert_exactly_once(store_path: Path, generated: dict[str, int]) -> None:
    with Store.open(store_path, read_only=True) as store:
        found: list[tuple[str, int]] = []
        after_id = 0
        while page := store.signals(after_id=after_id, limit=50_000):
            found += [(s.boot_id, s.seq) for s in page]
            after_id = page[-1].id
        (host,) = store.hosts()
    assert len(set(found)) == len(found)
    torn = 0
    for boot, least in generated.items():
        numbers = [seq for name, seq in found if name == boot]
        # The kill may have come between the hand-over and the note of it, and while the last batch
        # was written: of that the urgent ones may be on disk already, and the others are not.
        missing = set(range(1, numbers[-1] + 1)).difference(numbers)
        assert numbers == sorted(numbers)
        assert all(seq > least for seq in missing)
        assert len(missing) < BATCH_MAX
        torn += len(missing)
        assert numbers[-1] >= least > 0
    assert (host.signals_lost, host.signals_missing) == (torn, 0)


def test_an_agent_killed_again_and_again_loses_nothing(tmp_path: Path, killed: Killed) -> None:
    moments = random.Random()
    with aggregator(tmp_path / "aggregator") as service:
        for _ in range(ROUNDS):
            killed.start(service.endpoint)
            time.sleep(moments.uniform(0, 0.4))
            killed.kill()
        drain(service.endpoint, tmp_path)
        assert_exactly_once(service.store_path, killed.generated())


def test_agent_and_aggregator_killed_at_random_lose_nothing(tmp_path: Path, killed: Killed) -> None:
    moments = random.Random()
    with aggregator(tmp_path / "aggregator") as service:
        endpoint = service.endpoint
        for _ in range(ROUNDS):
            if killed.process is None:
                killed.start(endpoint)
            time.sleep(moments.uniform(0, 0.4))
            if moments.random() < 0.6:
                killed.kill()
            if moments.random() < 0.6:
                service.end(signal.SIGKILL)
                service = Service(tmp_path / "aggregator")
        killed.kill()
        try:
            drain(endpoint, tmp_path)
            assert_exactly_once(service.store_path, killed.generated())
        finally:
            service.end(signal.SIGKILL)


def test_an_aggregator_that_was_away_gets_what_dead_agents_left(
    tmp_path: Path, killed: Killed
) -> None:
    folder = tmp_path / "aggregator"
    for _ in range(3):
        killed.start(f"ipc://{folder}/socket")
        killed.kill()
    with aggregator(folder) as service:
        assert service.endpoint == f"ipc://{folder}/socket"
        drain(service.endpoint, tmp_path)
        assert_exactly_once(service.store_path, killed.generated())
