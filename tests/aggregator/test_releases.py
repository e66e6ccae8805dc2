"""Releases of rules from `vedette rules push` to hosts and back: real aggregators, sockets, files.

The hosts are the agent's own shipper and releases in this process; where the agent would compile
rules for its engine, they load them, and nothing captures events. Agents as processes, on kernel
events, are in tests/agent/test_service_releases.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from tests.aggregator.service import RawAgent, Service, aggregator, beat, hello, until
from vedette.agent import config as agent_config
from vedette.agent import pipeline, service
from vedette.agent.errors import AgentError
from vedette.agent.live import Swapped
from vedette.agent.releases import STARTS_MAX, Releases
from vedette.agent.shipper import Shipper
from vedette.aggregator import releases as stored
from vedette.aggregator import rollout
from vedette.aggregator.cli import app
from vedette.aggregator.releases import Info
from vedette.aggregator.rollout import rank
from vedette.aggregator.store import RELEASE_FAILED, RELEASE_WITHDRAWN, Store
from vedette.core import releases, wire
from vedette.core.releases import CHUNK_BYTES, RuleFile

QUICK = ("--settle", "100ms")
CONFIG = "limits: {silent_alert_s: 3, silent_after_s: 3}\nmetrics: {listen: '127.0.0.1:0'}\n"


def rules(name: str = "one") -> str:
    return f"""
- rule: {name}
  desc: a test
  condition: evt.type = execve and proc.name = {name}
  output: "%proc.name"
  priority: WARNING
"""


class Host:
    """A host: shipper and releases, and a thread that does what the service's loop does."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        name: str,
        signers: list[str],
        labels: dict[str, str] | None = None,
        local: str = "",
    ) -> None:
        self.name = name
        self.folder = folder / f"host-{name}"
        self.labels = labels or {}
        self.local = folder / f"{name}.yaml"
        self.local.write_text(local)
        self.loaded: list[str] = []
        self.signals = 0
        self.releases = Releases(
            self.folder, [releases.parse_key(text) for text in signers], self.labels
        )
        self.shipper = Shipper(
            endpoint,
            host_id=name,
            hostname=f"name-{name}",
            boot_id=f"boot-{time.time_ns()}",
            labels=self.labels,
            rules=self.releases,
            heartbeat_s=0.2,
            backoff_s=0.02,
            backoff_max_s=0.1,
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Host:
        for number in self.releases.candidates():
            if self._load(number):
                break
        self.releases.start()
        self.shipper.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.end()

    def end(self) -> None:
        """Stop in an orderly way."""
        self._ending.set()
        self._thread.join()
        self.shipper.close(drain_s=0.5)
        self.releases.stopped()
        self.releases.close()

    def _run(self) -> None:
        while not self._ending.wait(0.005):
            self.releases.note(self.signals, 0)
            if self.releases.due():
                self._load(self.releases.wanted)

    def _load(self, number: int) -> bool:
        section = agent_config.Rules(files=(str(self.local),))
        try:
            with self.releases.files(number) as files:
                loaded = pipeline.load(section, agent_config.Host(labels=self.labels), files)
        except AgentError as error:
            self.releases.failed(number, str(error))
            return False
        self.loaded = [rule.name for rule in loaded.rules]
        self.releases.switched(number)
        return True

    @property
    def report(self) -> wire.ReleaseReport:
        return self.releases.report

    def has(self, number: int, status: str = "confirmed") -> Callable[[], bool]:
        return lambda: (self.report.number, self.report.status) == (number, status)


class Keys:
    """A folder with a signing key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "signing.pem"
        self.signer = releases.make_key(self.key)


class World(Keys):
    """The same with an aggregator, and commands."""

    def __init__(self, folder: Path, service: Service) -> None:
        super().__init__(folder)
        self.service = service
        self.target: str | Path = service.store_path

    def host(self, name: str, **rest: Any) -> Host:
        return Host(self.folder, self.service.endpoint, name, [self.signer], **rest)

    def rules(self, *names: str) -> Path:
        path = self.folder / "rules.yaml"
        path.write_text("".join(map(rules, names)))
        return path

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        store = ["--store", self.target] if "keygen" not in words else []
        done = CliRunner().invoke(app, [str(word) for word in (*words, *store)])
        return done.exit_code, done.stdout, done.stderr

    def push(self, *words: str | Path, names: tuple[str, ...] = ("one",)) -> int:
        """Push rules; return the release's number."""
        words = (self.rules(*names), "--key", self.key, *QUICK, *words)
        code, out, error = self.run("rules", "push", *words, "--json")
        assert code == 0, error
        return int(json.loads(out.splitlines()[0])["release"])

    def info(self, number: int) -> Info:
        with Store.open(self.target, read_only=True) as store:
            found = stored.find(store, number)
        assert found is not None
        return found

    def state(self, number: int) -> str:
        return self.info(number).state

    def becomes(self, number: int, state: str) -> None:
        until(lambda: self.state(number) == state, f"release {number} {state}")

    def statuses(self, number: int) -> dict[str, str]:
        with Store.open(self.target, read_only=True) as store:
            return {item.host_id: item.status for item in stored.hosts(store, number)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with aggregator(tmp_path, CONFIG) as service:
        yield World(tmp_path, service)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_by_label_in_stages_shown_per_host_and_offline_hosts_catch_up(world: World) -> None:
    prod, dev = {"env": "prod", "tier": "1"}, {"env": "dev"}
    names = ["a", "b", "c", "d"]
    with contextlib.ExitStack() as stack:
        hosts = {name: stack.enter_context(world.host(name, labels=prod)) for name in names}
        other = stack.enter_context(world.host("other", labels=dev, local=rules("local")))
        until(lambda: len(stored_hosts(world)) == 5, "all hosts report")
        hosts["d"].end()
        until(lambda: stored_hosts(world)["d"].left_ns, "d said goodbye")
        number = world.push("--label", "env=prod", "--stages", "25%,50%,100%", "--note", "n")
        assert number == 1
        until(lambda: world.info(1).stage > 0, "a first stage")
        first, *_ = sorted("abc", key=lambda name: rank(1, name))
        with Store.open(world.target, read_only=True) as store:
            offered = sorted(stored.hosts(store, 1), key=lambda item: item.offered_ns)
        assert offered[0].host_id == first
        world.becomes(1, "complete")
        assert world.statuses(1) == dict.fromkeys("abc", "confirmed")
        for name in "abc":
            assert hosts[name].loaded == ["one"]
        assert (other.report.number, other.loaded) == (0, ["local"])
        with world.host("d", labels=prod) as late:
            until(late.has(1), "d catches up")
            until(lambda: world.statuses(1).get("d") == "confirmed", "d is written down")
        until(lambda: stored_hosts(world)["d"].left_ns, "d said goodbye again")
        code, out, _ = world.run("hosts", "--json")
        shown = {row["host_id"]: row["release"] for row in map(json.loads, out.splitlines())}
        assert code == 0
        assert shown["a"] == msgspec.structs.asdict(hosts["a"].report)
        assert (shown["a"]["number"], shown["a"]["status"]) == (1, "confirmed")
        assert shown["other"]["number"] == 0
        _, out, _ = world.run("rules", "releases")
        assert "complete" in out and "env=prod" in out and "4 confirmed" in out
        _, out, _ = world.run("rules", "releases", "1", "--json")
        row = json.loads(out)
        assert [item["host_id"] for item in row["host_states"]] == names
        assert (row["signer"], row["note"], row["labels"]) == (world.signer, "n", {"env": "prod"})
        # One more, for everybody: local files stay, and come last.
        words = (world.rules("one", "two"), "-k", world.key, *QUICK, "--wait")
        code, out, _ = world.run("rules", "push", *words)
        assert code == 0
        assert out.splitlines()[-1] == "release 2: complete: 4 confirmed"
        assert "release 2: stage 2 of 3 (50 %)" in out
        assert other.loaded == ["one", "two", "local"]
        name = 'vedette_aggregator_release_hosts{release="2",status="confirmed"} 4.0'
        until(lambda: name in page(world), "the gauge of hosts")
        assert 'vedette_aggregator_release_messages_total{what="offers"} 8.0' in page(world)


def page(world: World) -> str:
    with urllib.request.urlopen(f"{world.service.metrics_url}/metrics") as answer:
        return str(answer.read().decode())


def stored_hosts(world: World) -> dict[str, Any]:
    with Store.open(world.target, read_only=True) as store:
        return {host.host_id: host for host in store.hosts() if host.release is not None}


def test_a_release_that_one_host_cannot_use_goes_back_everywhere(world: World) -> None:
    # The same rule in another language is an error, which only this host can notice.
    conflict = """
title: two
logsource: {product: linux, category: process_creation}
detection: {selection: {Image: /bin/x}, condition: selection}
"""
    with world.host("a") as a, world.host("b", local=conflict) as b:
        until(lambda: len(stored_hosts(world)) == 2, "both report")
        assert world.push("--stages", "100%") == 1
        world.becomes(1, "complete")
        assert world.push("--stages", "100%", names=("two", "three")) == 2
        world.becomes(2, "withdrawn")
        until(lambda: a.report.number == 1 and a.report.status == "withdrawn", "a goes back")
        assert (a.loaded, b.loaded) == (["one"], ["one", "two"])
        assert (b.report.number, b.report.tried, b.report.status) == (1, 2, "failed")
        assert "the name is taken already, at release 2: rules.yaml:2" in b.report.reason
        info = world.info(2)
        assert info.reason.startswith("1 of its hosts had errors: b: ")
        with Store.open(world.target, read_only=True) as store:
            alerts = store.signals(host="b", tag="fleet", after_id=0, limit=10)
        assert [item.rule for item in alerts] == [RELEASE_FAILED, RELEASE_WITHDRAWN]
        assert all(item.alert and "the name is taken already" in item.output for item in alerts)
        # With one error allowed it stays, and b stays with what it has.
        assert world.push("--stages", "100%", "--errors-max", "1", names=("two",)) == 3
        world.becomes(3, "complete")
        until(a.has(3), "a has it")
        assert (b.report.number, b.report.tried, b.report.status) == (1, 3, "failed")
        code, out, error = world.run("rules", "rollback", "--wait")
        assert (code, error) == (0, "")
        assert a.report.number == 1
        assert world.state(3) == "withdrawn"
        code, out, error = world.run("rules", "rollback", "3")
        assert (code, "taken back before" in error) == (1, True)
        # What was taken back comes again only as a new release, signed.
        code, out, error = world.run("rules", "rollback", "--to", "3", "-k", world.key, "--json")
        assert (code, json.loads(out)["release"]) == (0, 4)
        until(lambda: a.loaded == ["two"], "the rules of release 3, again")


def failing(host: Host) -> None:
    """Let a host say of whatever release it gets that it did harm."""
    host.releases.switched = lambda number: host.releases.failed(number, "so it says")  # type: ignore[method-assign]


def test_no_host_alone_takes_a_release_back_and_two_do(world: World) -> None:
    """The one that lies is the first of the first stage, where it is the only one."""
    with contextlib.ExitStack() as stack:
        hosts = {name: stack.enter_context(world.host(name)) for name in "abcd"}
        until(lambda: len(stored_hosts(world)) == 4, "all report")
        liar, *honest = sorted("abcd", key=lambda name: rank(1, name))
        failing(hosts[liar])
        assert world.push("--stages", "25%,50%,100%") == 1
        world.becomes(1, "complete")
        assert world.statuses(1) == {liar: "failed"} | dict.fromkeys(honest, "confirmed")
        assert [hosts[name].loaded for name in honest] == [["one"]] * 3
        _, out, _ = world.run("rules", "releases", "1")
        assert "up to 5 % of the stage's hosts', or one's" in out
        # A release that does harm everywhere gets to two hosts.
        for host in hosts.values():
            failing(host)
        assert world.push("--stages", "25%,50%,100%", names=("two",)) == 2
        world.becomes(2, "withdrawn")
        assert list(world.statuses(2).values()) == ["failed", "failed"]
        assert world.info(2).reason.startswith("2 of its hosts had errors: ")
        # Where any error is to stop it, one does.
        assert world.push("--errors-max", "0", "--stages", "25%,50%,100%", names=("two",)) == 3
        world.becomes(3, "withdrawn")
        assert list(world.statuses(3).values()) == ["failed"]


def test_how_many_hosts_may_have_errors(keys: Keys) -> None:
    def allowed(selected: int, stage_hosts: int, errors_max: int | None = None) -> int:
        signed = made(keys, 1, errors_max=errors_max).manifest
        manifest = releases.verify(signed, releases.Manifest, None)
        return manifest.errors_allowed(selected, stage_hosts)

    assert [allowed(hosts, hosts) for hosts in (1, 2, 3, 39, 40, 1000)] == [0, 0, 1, 1, 2, 50]
    assert allowed(1000, 1) == 1
    assert [allowed(1000, 1000, errors_max) for errors_max in (0, 7)] == [0, 7]


def test_a_stage_does_not_wait_for_ever_for_who_does_not_answer(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(keys.folder / "s") as store:
        for name in "abc":
            store.hello(hello(name), 1, 100)
        going = rollout.Rollout(store)
        release = made(keys, 1, stages=(50.0, 100.0), settle_s=0.0)
        stored.push(store, release, releases.verify(release.manifest, releases.Manifest, None))

        def say(name: str, status: str) -> None:
            with store.transaction():
                number = 1 if status == "confirmed" else 0
                going.report(name, wire.ReleaseReport(tried=1, number=number, status=status))

        for name in "abc":
            going.arrived(name, {})
            going.report(name, wire.ReleaseReport())
        mute, second, third = sorted("abc", key=lambda name: rank(1, name))

        def offered(now_s: float) -> set[str]:
            going.tick(now_s, ())
            return {row.host_id for row in stored.hosts(store, 1)}

        assert offered(10.0) == {mute, second}
        say(second, "confirmed")
        say(mute, "trial")
        assert offered(20.0) == {mute, second}
        monkeypatch.setattr(rollout, "ANSWER_S", 0.0)
        assert offered(30.0) == {mute, second, third}
        say(third, "confirmed")
        for now_s in (40.0, 50.0):
            going.tick(now_s, ())
        found = stored.find(store, 1)
        assert found is not None and found.state == "complete"
        assert {row.host_id: row.status for row in stored.hosts(store, 1)} == {
            mute: "trial",
            second: "confirmed",
            third: "confirmed",
        }


def test_too_many_signals_or_silence_on_trial_take_it_back(world: World) -> None:
    with world.host("a") as a, contextlib.ExitStack() as stack:
        until(lambda: len(stored_hosts(world)) == 1, "a reports")
        number = world.push("--settle", "20s", "--stages", "100%", "--signals-per-s-max", "10")
        until(a.has(number, "trial"), "on trial")
        a.signals += 51
        world.becomes(number, "withdrawn")
        assert "51 signals in" in world.info(number).reason
        until(lambda: a.report.number == 0, "a goes back")
        # A host that takes a release and is never heard again.
        raw = stack.enter_context(RawAgent(world.service.endpoint))
        raw.ask(hello("z"))
        raw.ask(beat(1, release=wire.ReleaseReport()))
        until(lambda: len(stored_hosts(world)) == 2, "z reports")
        number = world.push("--settle", "20s", "--stages", "50%,100%", "--label", "who=z")
        assert world.state(number) == "rolling"
        code, _, error = world.run("rules", "push", world.rules("x"), "-k", world.key)
        assert (code, "is still being brought out" in error) == (1, True)
        assert world.run("rules", "rollback", str(number))[0] == 0
        number = world.push("--settle", "20s", "--stages", "100%")

        def offered() -> bool:
            raw.say(beat(1, release=wire.ReleaseReport()))
            while raw.socket.poll(50):
                if isinstance(raw.hear(), wire.Offer):
                    return True
            return False

        until(offered, "an offer to z")
        raw.ask(wire.Fetch(number=number, offset=0))
        raw.say(beat(1, release=wire.ReleaseReport(tried=number, status="trial")))
        world.becomes(number, "withdrawn")
        assert "z: it fell silent" in world.info(number).reason


def test_killed_again_and_again_the_aggregator_goes_on_where_it_was(
    world: World, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(world.host(name)) for name in "abc"]
        until(lambda: len(stored_hosts(world)) == 3, "all report")
        number = world.push("--stages", "30%,60%,100%")
        shares = []
        for stage in (1, 2):
            until(lambda stage=stage: world.info(number).stage >= stage, f"stage {stage}")
            world.service.end(signal.SIGKILL)
            shares.append((len(world.statuses(number)), world.info(number).stage))
            world.service = Service(tmp_path)
        stack.callback(world.service.end, signal.SIGKILL)
        # Never more hosts than the stage allows, whatever was forgotten.
        assert all(count <= stage + 1 for count, stage in shares), shares
        world.becomes(number, "complete")
        assert world.statuses(number) == dict.fromkeys("abc", "confirmed")
        # A roll-back, too, is carried out by whoever comes after the one that decided.
        world.service.end(signal.SIGKILL)
        assert world.run("rules", "rollback")[0] == 0
        world.service = Service(tmp_path)
        stack.callback(world.service.end, signal.SIGKILL)
        until(lambda: all(host.report.number == 0 for host in hosts), "all go back")


def made(keys: Keys, number: int, **rest: Any) -> releases.Release:
    values = {"labels": {}, "stages": (100.0,), "settle_s": 0.1, "errors_max": 0}
    bounds = {"signals_per_s_max": 100, "lost_events_max": 100}
    files = rest.pop("files", [RuleFile("r.yaml", rules().encode())])
    key = releases.read_key(rest.pop("key", keys.key))
    return releases.make(files, key, number=number, rules=1, **values | bounds | rest)


def deliver(host: Releases, release: releases.Release) -> wire.ReleaseReport:
    """Give a release as an aggregator does, be it a bad one; return the report."""
    fetch = host.offer(wire.Offer(manifest=release.manifest))
    while fetch is not None:
        data = release.packed[fetch.offset : fetch.offset + CHUNK_BYTES]
        fetch = host.chunk(wire.Chunk(number=fetch.number, offset=fetch.offset, data=data))
    return host.report


def test_what_a_taken_aggregator_could_do_is_refused_and_counted(keys: Keys) -> None:
    other_key = keys.folder / "other.pem"
    releases.make_key(other_key)
    signer = [releases.parse_key(keys.signer)]
    host = Releases(keys.folder / "agent", signer, {"env": "prod"})
    good = made(keys, 5)

    def refused(release: releases.Release, code: str) -> None:
        before = host.stats().get(f"refused.{code}", 0)
        report = deliver(host, release)
        assert report.status == "refused", code
        assert host.stats()[f"refused.{code}"] == before + 1
        assert host.wanted == accepted

    accepted = 0
    replace = msgspec.structs.replace
    refused(made(keys, 5, key=other_key), "signer")
    forged = made(keys, 5, key=other_key).manifest
    forged = replace(forged, key=good.manifest.key)
    refused(replace(good, manifest=forged), "signature")
    altered = bytearray(good.manifest.body)
    altered[altered.index(b"number") + 6] += 1
    refused(replace(good, manifest=replace(good.manifest, body=bytes(altered))), "signature")
    refused(replace(good, packed=b"x" * len(good.packed)), "digest")
    refused(replace(good, packed=good.packed[:-1]), "size")
    refused(replace(good, packed=good.packed + b"x"), "size")
    refused(made(keys, 5, labels={"env": "dev"}), "label")
    # A withdrawal is no release, nor the other way round.
    refused(replace(good, manifest=good.withdrawal), "signature")
    host.withdraw(wire.Withdraw(withdrawal=good.manifest))
    assert host.report.status == "refused"
    assert host.chunk(wire.Chunk(number=5, offset=0, data=b"x")) is None
    assert host.stats()["refused.unexpected"] == 1
    assert deliver(host, good).status == "taking"
    accepted = 5
    host.switched(5)
    for number in (4, 5):
        refused(made(keys, number, files=[RuleFile("r.yaml", b"[]")]), "replay")
    # Given again, the one that is here costs nothing and changes nothing.
    assert deliver(host, good).status in ("trial", "refused")
    accepted = 7
    assert deliver(host, made(keys, 7)).status == "taking"
    host.switched(7)
    refused(good, "replay")
    host.withdraw(wire.Withdraw(withdrawal=made(keys, 7).withdrawal))
    assert (host.report.status, host.wanted) == ("withdrawn", 5)
    host.switched(5)
    accepted = 5
    refused(made(keys, 7), "replay")
    # Newer than what is in force, and never taken back: that may come.
    assert deliver(host, made(keys, 6)).status == "taking"


def test_bounds_of_packs_hold_against_bombs_and_names_that_lead_out(keys: Keys) -> None:
    import zstandard

    def packed(files: Any) -> bytes:
        return zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(files))

    bomb = packed([("a.yaml", b"\0" * (releases.BYTES_MAX * 4))])
    assert len(bomb) < 1 << 16
    for data, code in (
        (bomb, "size"),
        (packed([("a", b"")] * (releases.FILES_MAX + 1)), "size"),
        (packed([("../a", b"")]), "malformed"),
        (packed([("/a", b"")]), "malformed"),
        (packed([("a//b", b"")]), "malformed"),
        (packed([("a", b""), ("a", b"")]), "malformed"),
        (packed([("a", b""), ("a/b", b"")]), "malformed"),
        (packed([("a\0", b"")]), "malformed"),
        (packed({"a": b""}), "malformed"),
        (b"no pack", "malformed"),
    ):
        with pytest.raises(releases.ReleaseError) as error:
            releases.unpack(data)
        assert error.value.code == code
    with pytest.raises(releases.ReleaseError, match="are allowed"):
        releases.pack([RuleFile("a", b"\0" * (releases.BYTES_MAX + 1))])
    noise = b"".join(
        hashlib.sha256(number.to_bytes(8, "little")).digest() for number in range(300_000)
    )
    with pytest.raises(releases.ReleaseError, match="when packed"):
        releases.pack([RuleFile("a", noise)])
    host = Releases(keys.folder / "agent", [releases.parse_key(keys.signer)], {})
    evil = made(keys, 1)
    manifest = releases.verify(evil.manifest, releases.Manifest, None)
    manifest = msgspec.structs.replace(
        manifest, digest=hashlib.sha256(bomb).hexdigest(), packed_bytes=len(bomb)
    )
    signed = releases.sign(manifest, releases.read_key(keys.key))
    report = deliver(host, releases.Release(signed, evil.withdrawal, bomb))
    assert (report.status, host.stats()["refused.size"]) == ("refused", 1)
    # Names from anywhere become names that a pack may have, each once.
    paths = [Path("/x/rules/.a b/ü.yaml"), Path("/y/rules/.a b/ü.yaml"), Path("/z/..yaml")]
    names = releases.named(paths, [Path("/x/rules"), Path("/y/rules"), Path("/z/..yaml")])
    files = [RuleFile(name, b"") for name in names]
    assert releases.unpack(releases.pack(files)) == files


def test_a_host_keeps_what_it_has_through_kills_damage_and_lost_keys(keys: Keys) -> None:
    """Each new object is a start of the agent that follows a kill: nothing was closed."""
    folder, signers = keys.folder / "agent", [releases.parse_key(keys.signer)]
    first, second, third = (made(keys, number) for number in (1, 2, 3))
    host = Releases(folder, signers, {})
    deliver(host, first)
    host.switched(1)
    host.start()
    until(lambda: host.report.status == "confirmed", "confirmed")
    host.close()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    # Killed when it has written the second and has not switched: it starts with that.
    deliver(host, second)
    for _ in range(STARTS_MAX):
        host = Releases(folder, signers, {})
        assert host.wanted == 2
        host.switched(2)
        assert host.report.status == "trial"
    # It does not survive its trial: the first is in force again, and the second stays away.
    host = Releases(folder, signers, {})
    assert (host.wanted, host.report.status) == (1, "failed")
    assert f"the agent ended {STARTS_MAX} times" in host.report.reason
    assert deliver(host, second).status == "refused"
    # An orderly stop is no end of that kind.
    deliver(host, third)
    for _ in range(STARTS_MAX + 2):
        host = Releases(folder, signers, {})
        assert host.wanted == 3
        host.stopped()
    # A file that was damaged is asked for again; its number is not a replay then.
    host = Releases(folder, signers, {})
    path = folder / "3.release"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(AgentError, match="cannot be used"), host.files(3):
        pass
    assert (host.wanted, host.report.status, host.stats()["damaged"]) == (1, "missing", 1)
    assert deliver(host, third).status == "taking"
    assert host.wanted == 3
    # Without its state a host begins with what is signed.
    (folder / "state.json").write_text("{")
    host = Releases(folder, signers, {})
    assert host.wanted == 3
    assert deliver(host, first).status == "refused"
    folder.chmod(0o770)
    with pytest.raises(AgentError, match="run `chmod 700"):
        Releases(folder, signers, {})
    folder.chmod(0o700)
    # A signer that is not in the configuration any more counts for nothing.
    other = keys.folder / "other.pem"
    host = Releases(folder, [releases.parse_key(releases.make_key(other))], {})
    with pytest.raises(AgentError, match=r"none of rules\.signers"), host.files(3):
        pass


def test_what_the_hosts_own_files_have_wrong_is_no_fault_of_a_release(keys: Keys) -> None:
    path = keys.folder / "agent.yaml"
    own = keys.folder / "own.yaml"
    path.write_text(f"rules: {{files: [{own}]}}\n")
    own.write_text(rules("own"))
    host = Releases(keys.folder / "agent", [releases.parse_key(keys.signer)], {})
    deliver(host, made(keys, 1))
    settings = agent_config.load(path)
    running = pipeline.Pipeline(
        [],
        pipeline.Facts("h", 0),
        matching="all",
        limits=settings.limits,
        lookup=None,
    )

    def reload(
        configuration: Path | None,
        uncaptured: str = "",
        before: str = "",
        is_swapped: bool = True,
    ) -> service._Reload:
        one = service._Reload(configuration, settings, running, host)
        one.start()
        one.ready.wait()
        if one.compiled is not None:
            retired = pipeline.Retired([], None) if is_swapped else None
            one.done(Swapped(retired, uncaptured, before))
        one.join()
        return one

    own.write_text("- rule: [")
    one = reload(None)
    assert (one.number, one.error is None) == (1, False)
    # It is tried again after a while, and the aggregator is not told that it has failed.
    assert (host.wanted, host.due(), host.report.status) == (1, False, "taking")
    # A configuration is tried with what is in force.
    one = reload(path)
    assert (one.number, one.error is None) == (0, False)
    assert (host.wanted, host.report.status) == (1, "taking")
    own.write_text(rules("own"))
    reload(path)
    assert reload(None).error is None
    assert (host.in_force, host.report.number, host.report.status) == (1, 1, "trial")
    # What the kernel refuses of a configuration that was changed under it is not, either.
    full = "the kernel takes no program more"
    reload(path, uncaptured=full)
    assert (host.wanted, host.in_force, host.report.status) == (1, 1, "trial")
    # One that is bad itself is, with the same files.
    deliver(host, made(keys, 2, files=[RuleFile("b.yaml", b"- rule: [")]))
    assert reload(None).error is not None
    assert (host.wanted, host.report.status) == (1, "failed")
    deliver(host, made(keys, 3))
    # It was not asked for anything yet.
    reload(None, uncaptured=full, is_swapped=False)
    assert (host.wanted, host.due(), host.in_force, host.report.status) == (3, False, 1, "taking")
    reload(None, uncaptured=full)
    assert (host.wanted, host.report.tried, host.report.status) == (1, 3, "failed")
    # Nor is it the fault of a release what the kernel refused before it came.
    deliver(host, made(keys, 4))
    reload(path, uncaptured=full, before=full)
    assert (host.wanted, host.in_force, host.report.status) == (4, 1, "taking")
    reload(None, uncaptured=full, before=full)
    assert (host.wanted, host.in_force, host.report.status) == (4, 4, "trial")
    running.engine.close()


def test_lost_events_fail_a_trial_and_marks_are_kept_by_label(keys: Keys) -> None:
    folder, signers = keys.folder / "agent", [releases.parse_key(keys.signer)]
    host = Releases(folder, signers, {"env": "prod"})
    deliver(host, made(keys, 5, labels={"env": "prod"}))
    host.switched(5)
    host.start()
    until(lambda: host.report.status == "confirmed", "confirmed")
    deliver(host, made(keys, 6, settle_s=60.0))
    host.note(0, 50)
    host.switched(6)
    host.note(0, 150)
    assert host.due() is False
    host.note(0, 151)
    until(lambda: host.report.status == "failed", "a failure")
    assert "101 kernel events lost" in host.report.reason
    assert (host.wanted, host.due()) == (5, True)
    host.close()
    # A host whose labels have changed has nothing, and is not bound by what others had.
    host = Releases(folder, signers, {"env": "dev"})
    assert host.wanted == 0
    assert deliver(host, made(keys, 6)).status == "refused"
    assert deliver(host, made(keys, 3, labels={"env": "dev"})).status == "taking"
    assert host.wanted == 3
    # What proved itself and cannot be loaded now is tried again later, not given up.
    host = Releases(folder, signers, {"env": "prod"})
    host.failed(5, "a local file is wrong")
    assert (host.wanted, host.due()) == (5, False)
    assert (host.report.tried, host.report.status) == (5, "failed")
    host.switched(5)
    assert host.report.status == "confirmed"


def test_the_command_checks_signs_and_refuses(world: World) -> None:
    folder = world.folder
    broken = folder / "broken.yaml"
    broken.write_text(rules().replace("evt.type =", "evt.typ ="))
    code, out, error = world.run("rules", "push", broken, "-k", world.key)
    assert (code, out) == (2, "")
    assert "broken.yaml:4:" in error
    assert "nothing is pushed: 1 error in the rules" in error
    good = world.rules("one")
    for words, exit_code, said in (
        ((good,), 2, "which key signs it? Give --key FILE, or set VEDETTE_SIGNING_KEY"),
        ((good, "-k", folder / "none"), 1, "cannot be read"),
        ((good, "-k", world.key, "--stages", "50%,20%"), 2, "expected rising shares"),
        ((good, "-k", world.key, "--label", "prod"), 2, "expected NAME=VALUE"),
        ((good, "-k", world.key, "--settle", "soon"), 2, "expected a time"),
        ((good, "-k", world.key, "--out", folder / "r"), 2, "--out needs --number"),
        ((folder / "none.yaml", "-k", world.key), 2, "none.yaml"),
    ):
        code, _, error = world.run("rules", "push", *words)
        assert (code, said in error) == (exit_code, True), error
    # Signed where the key is, pushed where it is not.
    sealed = folder / "release"
    code, _, error = world.run(
        "rules", "push", good, "-k", world.key, "--number", "7", "--out", sealed
    )
    assert code == 0, error
    code, out, error = world.run("rules", "push", sealed)
    assert code == 0, error
    assert "release 7: 1 rules in 1 files" in out
    world.run("rules", "rollback")
    code, _, error = world.run("rules", "push", sealed)
    assert (code, "not above 7, the last one; sign it again with --number 8" in error) == (1, True)
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    code, _, error = world.run("rules", "push", sealed)
    assert (code, "not those that were signed" in error) == (2, True)
    code, _, error = world.run("rules", "releases", "9")
    assert (code, "no release 9" in error) == (1, True)
    # What a command of another version wrote is left alone, and stops nothing.
    with Store.open(world.target, guest=True) as store, store.transaction() as connection:
        connection.exec_driver_sql("UPDATE releases SET number = 70, manifest = x'00'")
    until(lambda: "release 70 cannot be read" in world.service.log, "a word about it")
    code, _, error = world.run("rules", "releases")
    assert (code, "written by another version" in error) == (1, True)
    with Store.open(world.target, guest=True) as store, store.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM releases")
    # Keys: encrypted, readable by others, of another kind.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VEDETTE_SIGNING_PASSPHRASE", "word")
        code, out, _ = world.run("rules", "keygen", folder / "k", "--encrypt")
        assert (code, out.startswith("ed25519:")) == (0, True)
        assert releases.public_key(releases.read_key(folder / "k", lambda: b"word")) == out.strip()
        assert world.run("rules", "push", good, "-k", folder / "k")[0] == 0
        patch.setenv("VEDETTE_SIGNING_PASSPHRASE", "other")
        code, _, error = world.run("rules", "push", good, "-k", folder / "k")
        assert (code, "the passphrase is wrong" in error) == (1, True)
    assert world.run("rules", "keygen", folder / "k")[0] == 1
    (folder / "k").chmod(0o644)
    code, _, error = world.run("rules", "push", good, "-k", folder / "k")
    assert (code, "run `chmod 600" in error) == (1, True)
