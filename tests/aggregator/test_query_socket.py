"""The query socket: a real process, real keys; what is asked there is answered as here."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from tests.aggregator import attack
from tests.aggregator.service import RawAgent, hello, signals, until
from tests.aggregator.test_searching import fill
from tests.aggregator.test_server import get
from tests.aggregator.test_store import server, where  # noqa: F401
from vedette.aggregator import query_client, query_server
from vedette.aggregator.query_client import RemoteError, remote
from vedette.aggregator.questions import AskSignals, encode_question, local
from vedette.aggregator.searching import QuestionError
from vedette.aggregator.store import Store
from vedette.bench.overhead import free_port
from vedette.core import keys, wire


def slow(predicates: int) -> str:
    """A condition of predicates that are asked of each signal alone."""
    return " or ".join(f"peer.host = {'x' * 50}{number}" for number in range(predicates))


SERVED = re.compile(r"questions are answered on (\S+)")


class Serving:
    """A query server's process over a store with an attack in it."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        (folder / "aggregator.yaml").write_text(config)
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vedette.aggregator.query_server"),
                    str(folder / "aggregator.yaml"),
                ],
                stdin=subprocess.PIPE,
                stderr=log,
            )
        until(lambda: SERVED.search(self.log.read_text()) or self.process.poll() is not None, "it")
        found = SERVED.search(self.log.read_text())
        assert found is not None, self.log.read_text()
        self.endpoint = found[1]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0, self.log.read_text()


@contextmanager
def serving(folder: Path, queries: str = "", more: str = "") -> Iterator[Serving]:
    endpoint = f"ipc://{folder}/questions" if not more else "tcp://127.0.0.1:*"
    made = Serving(folder, f"queries: {{endpoint: '{endpoint}'{queries}}}\n{more}")
    try:
        yield made
        made.close()
    finally:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "vedette.db") as store:
        attack.fill(store)
        attack.correlate(store)
    return tmp_path


def test_the_answers_are_those_of_the_store_itself(folder: Path) -> None:
    with (
        serving(folder) as served,
        remote(served.endpoint, None) as there,
        Store.open(folder / "vedette.db", read_only=True) as store,
        local(store) as here,
    ):
        incident = here.incidents()[0].id
        last = here.signals(limit=1)[0]
        for ask in (
            lambda asked: asked.hosts(),
            lambda asked: asked.addresses(),
            lambda asked: asked.last_signal_id(),
            lambda asked: asked.signals(limit=1000),
            lambda asked: asked.signals(after_id=0, tag="ssh", limit=1000),
            lambda asked: asked.signals(condition="login.user = deploy and host.name = b"),
            lambda asked: asked.signal(last.id),
            lambda asked: asked.signal(1),
            lambda asked: asked.counts(by=("rule", "time"), every_ns=10**10),
            lambda asked: asked.incidents(),
            lambda asked: asked.incidents_written(0, "", 10),
            lambda asked: asked.incident(incident),
            lambda asked: asked.incident("ffff"),
            lambda asked: asked.meta("sequences.position"),
        ):
            assert ask(there) == ask(here)
        with pytest.raises(QuestionError, match=r"condition: .*lgin.user"):
            there.signals(condition="lgin.user = x")
        with pytest.raises(QuestionError, match="not to be read"):
            there.meta("outputs")
        # Whoever was refused may go on.
        assert len(there.hosts()) == 3


def keyed(folder: Path) -> tuple[str, dict[str, keys.KeyPair]]:
    own = keys.make_pair()
    keys.write_pair(folder / "key", own)
    pairs = {name: keys.make_pair() for name in ("alice", "web-1", "stranger")}
    keys.enroll(folder / "allow", "alice", pairs["alice"].public, keys.READER)
    keys.enroll(folder / "allow", "web-1", pairs["web-1"].public)
    return own.public, pairs


def test_readers_alone_may_ask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_key, pairs = keyed(folder)
    with serving(folder, more="listen: {key_file: key, allow_list: allow}") as served:
        with remote(served.endpoint, keys.CurveKeys(server_key, pairs["alice"])) as asked:
            assert len(asked.hosts()) == 3
            keys.revoke(folder / "allow", "alice")

            def is_refused() -> bool:
                try:
                    asked.hosts()
                except QuestionError as error:
                    return "may no longer ask" in str(error)
                return False

            until(is_refused, "the end of a key that was taken off")
        monkeypatch.setattr(query_client, "CONNECT_S", 0.5)
        for curve in (
            keys.CurveKeys(server_key, pairs["alice"]),
            keys.CurveKeys(server_key, pairs["web-1"]),
            keys.CurveKeys(server_key, pairs["stranger"]),
            keys.CurveKeys(pairs["web-1"].public, pairs["stranger"]),
            None,
        ):
            with (
                remote(served.endpoint, curve) as asked,
                pytest.raises(RemoteError, match="enrolled there with the role reader"),
            ):
                asked.hosts()


def test_a_reader_cannot_speak_as_a_host(folder: Path) -> None:
    _, pairs = keyed(folder)
    assert pairs["alice"].public not in keys.read_allow_list(folder / "allow", keys.AGENT)


def test_answers_are_bounded_in_rows_bytes_and_time(tmp_path: Path) -> None:
    with Store.open(tmp_path / "vedette.db") as store:
        fill(store, 900)
    with (
        serving(tmp_path, ", rows_max: 300") as served,
        remote(served.endpoint, None) as asked,
    ):
        assert len(asked.signals(limit=10_000)) == 300
        assert asked.notes == ["no more than 300 rows are sent"]
        asked.notes.clear()
        assert len(asked.signals(limit=300)) == 300
        assert asked.notes == []
    with serving(tmp_path, ", bytes_max: 65536") as served, remote(served.endpoint, None) as asked:
        assert 0 < len(asked.signals(limit=10_000)) < 900
        assert asked.notes == ["no more than 65536 bytes are sent"]
    # A tenth of a second is the least that may be set.
    with (
        serving(tmp_path, ", seconds_max: 0.1, workers: 1") as served,
        remote(served.endpoint, None) as asked,
    ):
        began_s = time.monotonic()
        with pytest.raises(QuestionError, match=r"not answered within 0.1 s"):
            for _ in range(50):
                asked.counts(by=("rule", "host"), condition=slow(1200))
        assert time.monotonic() - began_s < 15
        assert len(asked.hosts()) == 3


def test_garbage_and_many_questions_harm_nobody(folder: Path) -> None:
    with serving(folder) as served, remote(served.endpoint, None) as asked:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            rude = context.socket(zmq.DEALER)
            rude.connect(served.endpoint)
            for frames in (
                [b""], [b"1"], [b"1", b""], [b"1", os.urandom(100)], [b"1", b"\x81\xa4type\xa1x"],
                [b"x" * 1000, b""], [b"1", b"2", b"3"],
            ):  # fmt: skip
                rude.send_multipart(frames)
            # Asks and never reads.
            question = encode_question(AskSignals(limit=1000))
            for number in range(200):
                rude.send_multipart([str(number).encode(), question])
            assert len(asked.hosts()) == 3
            refused = [rude.recv_multipart()[1][:1] for _ in range(3)]
            assert b"F" in refused
        finally:
            context.destroy(linger=0)
        assert len(asked.hosts()) == 3


def test_without_keys_it_is_local_or_refused(folder: Path) -> None:
    (folder / "aggregator.yaml").write_text("queries: {endpoint: 'tcp://0.0.0.0:*'}")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vedette.aggregator.query_server"),
            str(folder / "aggregator.yaml"),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no keys are set" in done.stderr


@contextmanager
def whole_service(folder: Path, more: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """An aggregator as its command runs it, with the query socket beside it."""
    (folder / "a.yaml").write_text(
        f"listen: {{endpoint: 'ipc://{folder}/socket'}}\n"
        f"queries: {{endpoint: 'ipc://{folder}/questions'}}\n{more}"
    )
    log = folder / "log"
    with log.open("w") as file:
        service = subprocess.Popen(
            [
                *(sys.executable, "-m", "vedette.aggregator.cli"),
                *("aggregator", "run", "--config", str(folder / "a.yaml")),
            ],
            stderr=file,
        )
    try:
        until(lambda: SERVED.search(log.read_text()) or service.poll() is not None, "its socket")
        assert service.poll() is None, log.read_text()
        yield service
    finally:
        service.kill()
        service.wait()


def test_it_lives_and_dies_with_its_aggregator(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"

    def counted(text: str) -> bool:
        return f"\nvedette_aggregator_questions_{text}\n" in get(f"http://127.0.0.1:{port}/metrics")

    with whole_service(tmp_path, f"metrics: {{listen: '127.0.0.1:{port}'}}\n") as service:
        assert counted('total{outcome="answered"} 0.0') and counted("ended_total 0.0")
        (child,) = children_of(service.pid)
        with remote(f"ipc://{tmp_path}/questions", None) as asked:
            assert asked.hosts() == []
        until(lambda: counted('total{outcome="answered"} 1.0'), "it is counted")
        # It is made again where it dies,
        os.kill(child, 9)
        until(lambda: len(SERVED.findall(log.read_text())) == 2, "another one")
        with remote(f"ipc://{tmp_path}/questions", None) as asked:
            assert asked.hosts() == []
            with pytest.raises(QuestionError):
                asked.signals(condition="proc.name")
        # with what was counted before,
        until(lambda: counted('total{outcome="failed"} 1.0'), "it is counted")
        assert counted('total{outcome="answered"} 2.0') and counted("ended_total 1.0")
        assert counted("under_way 0.0") and not counted("seconds_total 0.0")
        (child,) = children_of(service.pid)
        # and ends where the aggregator is killed.
        service.kill()
        service.wait()
        until(lambda: not is_running(child), "its end")


def test_it_is_tried_again_where_the_system_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_server, "RESTART_S", 0.01)
    (tmp_path / "a.yaml").touch()
    supervisor = query_server.Supervisor(tmp_path / "a.yaml")
    # A limit of this process's own, which os.pipe meets first: the error is as that of a fork.
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        supervisor.start()
        until(lambda: supervisor.counters["unstarted"] > 2, "it is tried again")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    # It starts; that it cannot use this configuration ends it again.
    until(lambda: supervisor.counters["restarts"] > 0, "it is started")
    supervisor.stop()
    shown = {s.name: s.value for m in query_server.metrics(supervisor.counters) for s in m.samples}
    assert shown["vedette_aggregator_questions_unstarted_total"] > 2


@pytest.mark.parametrize("through", ["store", "socket"])
def test_a_slow_question_delays_no_acknowledgement(
    where: str,  # noqa: F811
    tmp_path: Path,
    through: str,
) -> None:
    with Store.open(where) as store:
        fill(store, 1500)
    kind = "url" if where.startswith("postgresql") else "path"
    # What is stored is old, and is to stay.
    store_is = f"store: {{{kind}: '{where}', age_s_max: 300000000}}\n"
    begun = threading.Event()

    def ask() -> None:
        with ExitStack() as stack:
            if through == "socket":
                asked = stack.enter_context(remote(f"ipc://{tmp_path}/questions", None))
            else:
                asked = stack.enter_context(
                    local(stack.enter_context(Store.open(where, read_only=True)))
                )
            asked.progress = lambda _: begun.set()
            asked.counts(by=("rule", "host"), condition=slow(60))

    with whole_service(tmp_path, store_is), RawAgent(f"ipc://{tmp_path}/socket") as agent:
        assert isinstance(agent.ask(hello("new")), wire.Welcome)
        asker = threading.Thread(target=ask, daemon=True)
        asker.start()
        assert begun.wait(20)
        acknowledged = 0
        while asker.is_alive() and acknowledged < 20:
            batch = wire.Batch(signals=signals(acknowledged + 1, acknowledged + 1))
            answer = agent.ask(batch)
            assert isinstance(answer, wire.Ack) and answer.committed_seq == acknowledged + 1
            acknowledged += asker.is_alive()
        asker.join()
        # One may have been on its way; a store that the question had locked would give no other.
        assert acknowledged >= 3


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread that answered a request may have ended.
        with suppress(FileNotFoundError):
            found += map(int, (task / "children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
