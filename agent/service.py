"""The agent's life: start, loop, reload, stop.

One thread takes events, matches them and makes signals; each output and the shipper have a thread
and a bounded queue of their own, so nothing outside holds the loop up.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

from prometheus_client.core import Metric

from vedette import __version__
from vedette.agent import config, identity, outputs, pipeline
from vedette.agent.errors import AgentError, ConfigError
from vedette.agent.hashreader import HashReader, HashReaderError
from vedette.agent.live import Live, capture_header, host_facts, untold_types
from vedette.agent.logs import log
from vedette.agent.procfiles import HelperError, HelperFiles
from vedette.agent.recorder import Recorder
from vedette.agent.shipper import Shipper, ShipperError
from vedette.agent.spool import Spool, SpoolError
from vedette.bpf import kernel, privileges
from vedette.bpf.capture import CaptureError, Loader
from vedette.core.keys import CurveKeys, KeyFileError, read_pair
from vedette.core.metrics import Endpoint, Labelled, MetricsError, families
from vedette.core.notify import Notifier
from vedette.core.quiet import quiet
from vedette.core.signal import Signal

_DRAIN_RING_S, _OUTPUTS_STOP_S, _SHIPPER_STOP_S = 0.6, 0.9, 1.2
"""A stop is over within two seconds: counted from its beginning, the ring is drained until the
first of these, the outputs until the second, and the shipper, whose goodbye needs a little more,
until the third."""

_CHUNK_BYTES = 64 << 10
_RULE_COUNTERS_MAX = 100
_COUNTER_NAME_CHARS = 200
_STUCK_S = 10.0
_GAUGES = frozenset(
    {
        "ring.pending_bytes",
        "engine.processes",
        "hashes.waiting",
        "hashes.queued",
        "ship.connected",
        "ship.waiting",
        "ship.kept",
        "ship.queue_bytes",
        "ship.spool_bytes",
        "ship.spool_bytes_max",
        "ship.spool_memory_bytes",
        "ship.spool_age_s",
        "ship.spool_numberings",
    }
)
_LABELLED = (
    Labelled("signals.", "signals", "rule"),
    Labelled("ship.lost.", "ship_lost_by_priority", "priority"),
)


def _counts(name: str) -> bool:
    """Tell whether a value only rises; the engine's are of either kind."""
    return name.startswith(("capture.", "procfs.", "ship."))


class Requests:
    """What the process's signals ask for.

    Until `begun` a stop is a KeyboardInterrupt, which ends even the compiling of the kernel
    programs; from then on it is a flag that the loop looks at.
    """

    def __init__(self) -> None:
        self.stop = False
        self.reload = False
        self.begun = False

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if not self.begun:
            raise KeyboardInterrupt

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Answer SIGTERM, SIGINT and SIGHUP while the context lasts."""
        handlers = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def open_outputs(
    sections: Sequence[config.StdoutOutput | config.FileOutput],
) -> list[outputs.LineWriter]:
    """Open the configuration's outputs. Raises ConfigError, with none left open."""
    writers: list[outputs.LineWriter] = []
    for index, section in enumerate(sections):
        try:
            if isinstance(section, config.FileOutput):
                writers.append(outputs.file_writer(section.path, section.queue_bytes_max))
            else:
                writers.append(outputs.stdout_writer(section.queue_bytes_max))
        except OSError as error:
            for writer in writers:
                writer.close(0.1)
            path = section.path if isinstance(section, config.FileOutput) else "stdout"
            raise ConfigError(
                f"outputs[{index}]: {path} cannot be opened: {error.strerror}; "
                "its folder must exist, and it must be a file"
            ) from None
    return writers


def open_spool(settings: config.Config, numbering_id: str) -> Spool | None:
    """Open the configuration's spool. Raises ConfigError."""
    ship = settings.ship
    if ship is None or ship.spool_path is None:
        return None
    try:
        return Spool.open(
            ship.spool_path,
            numbering_id,
            bytes_max=ship.spool_bytes_max,
            age_s_max=ship.spool_age_s_max,
        )
    except SpoolError as error:
        raise ConfigError(f"ship.spool_path: {error}") from None


def make_shipper(
    settings: config.Config,
    facts: pipeline.Facts,
    host_id: str,
    numbering_id: str,
    digest: str,
    spool: Spool | None = None,
) -> Shipper | None:
    """Make the configuration's shipper, not started. Raises ConfigError."""
    ship = settings.ship
    if ship is None:
        return None
    try:
        curve = None
        if ship.server_key is not None and ship.client_key_file is not None:
            own = read_pair(ship.client_key_file)
            curve = CurveKeys(ship.server_key, own, ship.server_key_next)
        return Shipper(
            ship.endpoint,
            host_id=host_id,
            hostname=facts.hostname,
            boot_id=numbering_id,
            addresses=identity.addresses(),
            labels=settings.host.labels,
            version=__version__,
            rules_digest=digest,
            curve=curve,
            insecure=ship.insecure,
            queue_signals_max=ship.queue_signals_max,
            queue_bytes_max=ship.queue_bytes_max,
            spool=spool,
            heartbeat_s=settings.heartbeat_s,
        )
    except (ShipperError, KeyFileError) as error:
        raise ConfigError(f"ship: {error}") from None


class _Reload(threading.Thread):
    """Reads the configuration and its rules and compiles them, while the loop goes on.

    Then it frees the rules that were in force, which the loop hands back with `release`.

    ready   the loop can go on with it
    error   why it failed; None: `result` is there
    result  the configuration, the rules and what was made of them
    """

    result: tuple[config.Config, pipeline.Loaded, pipeline.Compiled]

    def __init__(self, path: Path, running: pipeline.Pipeline) -> None:
        super().__init__(name="reload", daemon=True)
        self._path = path
        self._running = running
        self.ready = threading.Event()
        self.error: AgentError | None = None
        self._retired: SimpleQueue[pipeline.Retired] = SimpleQueue()

    def release(self, retired: pipeline.Retired) -> None:
        """Free rules that were in force, away from the loop."""
        self._retired.put(retired)

    def run(self) -> None:
        try:
            self._compile()
        finally:
            self.ready.set()
        if self.error is None:
            retired = self._retired.get()
            del self.result
            retired.release()

    def _compile(self) -> None:
        try:
            with quiet(keep=True):
                settings = config.load(self._path)
                rules = pipeline.load(settings.rules, settings.host, untold=untold_types())
                compiled = self._running.compile(rules.rules, rules.decisions)
            self.result = settings, rules, compiled
        except AgentError as error:
            self.error = error


class Service:
    """One run of the agent by a configuration file.

    record, record_bytes_max  where to record the run as a capture file, and how much; None: nowhere

    `separate` comes before `run`.
    """

    def __init__(
        self, path: Path, *, record: Path | None = None, record_bytes_max: int = 1 << 30
    ) -> None:
        self._path = path
        self._record = record
        self._record_bytes_max = record_bytes_max
        self._settings = config.load(path)
        self._requests = Requests()
        self._notifier = Notifier()
        self._writers: list[outputs.LineWriter] = []
        self._shipper: Shipper | None = None
        self._spool: Spool | None = None
        self._metrics: Endpoint | None = None
        self._published: dict[str, int] = {}
        self._published_s = time.monotonic()
        self._facts = host_facts(self._settings.host)
        self._beat_s = 0.0
        self._reloading: _Reload | None = None
        self._loader: Loader | None = None
        self._files: HelperFiles | None = None
        self._executables: HashReader | None = None

    def separate(self, user: str | None = None) -> None:
        """Start the processes that need rights, then give up all rights of this one.

        user  whom they all become; None: the user stays

        Raises AgentError.
        """
        try:
            capture = self._settings.capture
            self._files = HelperFiles(environment=capture.environment, user=user)
            if capture.executable_hashes != "never":
                # Also where no rule asks yet: those that are read later may.
                self._executables = HashReader(capture.hash_bytes_max, user)
            self._loader = Loader(user)
            # An older kernel asks for it even where maps that one has are looked at.
            privileges.confine({"CAP_BPF"} if kernel.needs_rights() else set(), user)
            privileges.set_name("vedette-agent")
        except (HelperError, HashReaderError, CaptureError, privileges.PrivilegeError) as error:
            self._end_helpers()
            raise AgentError(str(error)) from None

    def _end_helpers(self) -> None:
        for helper in (self._loader, self._files, self._executables):
            if helper is not None:
                helper.close()

    @property
    def settings(self) -> config.Config:
        return self._settings

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises AgentError where the agent cannot start."""
        with self._requests.installed():
            try:
                self._run()
            except KeyboardInterrupt:
                log(logging.INFO, "stopped before capture began")
            finally:
                self._end_helpers()

    def _run(self) -> None:
        settings = self._settings
        log(logging.INFO, "starting", config=self._path, version=__version__)
        rules = pipeline.load(settings.rules, settings.host, untold=untold_types())
        if not rules.enabled:
            log(logging.WARNING, "no rules are loaded, nothing can match", key="rules.files")
        if not settings.outputs and settings.ship is None:
            log(logging.WARNING, "signals go nowhere", keys="outputs,ship")
        host_id = settings.host.id or identity.host_id()
        numbering_id = identity.numbering_id()
        self._spool = open_spool(settings, numbering_id)
        try:
            self._shipper = make_shipper(
                settings, self._facts, host_id, numbering_id, rules.digest, self._spool
            )
            self._writers = open_outputs(settings.outputs)
            recorder = None
            if self._record is not None:
                header = capture_header(settings, self._facts, host_id, numbering_id)
                recorder = Recorder(self._record, self._record_bytes_max, header)
            live = Live(
                settings,
                rules.rules,
                self._facts,
                recorder,
                rules.decisions,
                loader=self._loader,
                files=self._files,
                executables=self._executables,
            )
            try:
                self._live(live, host_id, rules.enabled)
            finally:
                live.close()
        finally:
            self._close_ends(time.monotonic())

    def _live(self, live: Live, host_id: str, rules: int) -> None:
        live.start()
        if self._shipper is not None:
            self._shipper.start()
        self._start_metrics()
        log(
            logging.INFO,
            "watching",
            host=host_id,
            scope=self._settings.capture.scope,
            rules=rules,
            processes=live.pipeline.engine.stats()["processes"],
        )
        self._requests.begun = True
        self._notifier.ready(f"watching, {rules} rules")
        self._loop(live)
        self._notifier.stopping()
        self._stop(live)

    def _loop(self, live: Live) -> None:
        requests = self._requests
        poll_ms = self._settings.capture.poll_ms
        more = False
        while not requests.stop:
            if not more:
                live.wait(poll_ms)
            more = live.step()
            self._deliver(live)
            self._notifier.beat()
            if self._reloading is not None and self._reloading.ready.is_set():
                reload, self._reloading = self._reloading, None
                self._end_reload(live, reload)
            if requests.reload and self._reloading is None:
                requests.reload = False
                self._begin_reload(live)
            if time.monotonic() >= self._beat_s:
                self._heartbeat(live)

    def _deliver(self, live: Live) -> None:
        signals = live.pipeline.take()
        # Into the spool first: what was printed here arrives there, even if the agent is killed.
        if self._shipper is not None:
            self._shipper.send(signals)
            self._shipper.update(complete_until_ns=live.complete_until_ns)
        if signals:
            self._print(signals)

    def _print(self, signals: Sequence[Signal]) -> None:
        if not self._writers:
            return
        lines: list[bytes] = []
        size = 0
        for item in signals:
            if item.alert:
                lines.append(outputs.alert_line(item, self._facts.hostname))
                size += len(lines[-1])
                if size >= _CHUNK_BYTES:
                    self._write(lines)
                    lines, size = [], 0
        if lines:
            self._write(lines)

    def _write(self, lines: list[bytes]) -> None:
        chunk = b"".join(lines)
        for writer in self._writers:
            writer.write(chunk, len(lines))

    def _begin_reload(self, live: Live) -> None:
        """Reopen the outputs, and read and compile the rules again, beside the loop."""
        for writer in self._writers:
            writer.reopen()
        self._reloading = _Reload(self._path, live.pipeline)
        self._reloading.start()

    def _end_reload(self, live: Live, reload: _Reload) -> None:
        """Put the rules in force that were read, by the configuration as it now is."""
        if reload.error is not None:
            log(logging.ERROR, "reload failed, the rules in force stay", error=reload.error)
            return
        settings, rules, compiled = reload.result
        reload.release(live.swap(compiled))
        changed = [
            name
            for name in config.Config.__struct_fields__
            if name != "rules" and getattr(settings, name) != getattr(self._settings, name)
        ]
        if settings.rules.matching != self._settings.rules.matching:
            changed.append("rules.matching")
        if changed:
            log(logging.WARNING, "changes that need a restart", keys=",".join(changed))
        if self._shipper is not None:
            self._shipper.update(rules_digest=rules.digest)
        if self._record is not None:
            log(logging.WARNING, "the recording has two sets of rules, a replay has one")
        log(
            logging.INFO,
            "rules reloaded",
            rules=rules.enabled,
            compiled=not compiled.is_switch,
            digest=rules.digest,
        )

    def _heartbeat(self, live: Live) -> None:
        self._beat_s = time.monotonic() + self._settings.heartbeat_s
        counters = self._counters(live)
        if self._shipper is not None:
            self._shipper.update(
                counters=counters,
                lost_events=live.lost_events,
                addresses=identity.addresses(),
            )
            counters |= {f"ship.{name}": value for name, value in self._shipper.stats().items()}
        self._published, self._published_s = counters, time.monotonic()
        log(logging.DEBUG, "heartbeat", **counters)

    def _start_metrics(self) -> None:
        listen = self._settings.metrics.listen
        if listen is None:
            return
        try:
            self._metrics = Endpoint(listen, self._collect, self._unhealthy)
        except MetricsError as error:
            raise ConfigError(f"metrics.listen: {error}") from None
        self._metrics.start()

    def _collect(self) -> Iterator[Metric]:
        """Make metrics of the last heartbeat's counters (from the metrics' threads)."""
        published = self._published
        yield from families(
            "vedette_agent",
            published,
            counters=[name for name in published if name not in _GAUGES and _counts(name)],
            gauges=_GAUGES,
            labelled=_LABELLED,
        )
        info = Metric("vedette_agent", "version", "info")
        info.add_sample("vedette_agent_info", {"version": __version__}, 1)
        yield info

    def _unhealthy(self) -> str | None:
        """Say what is wrong (from the metrics' threads)."""
        stuck_s = time.monotonic() - self._published_s
        if stuck_s > 3 * self._settings.heartbeat_s + _STUCK_S:
            return f"the agent has not moved for {stuck_s:.0f} s"
        return None

    def _counters(self, live: Live) -> dict[str, int]:
        counters = live.counters()
        counters["ring.pending_bytes"] = live.pending_bytes()
        for index, writer in enumerate(self._writers):
            counters |= {f"output.{index}.{name}": n for name, n in writer.stats().items()}
        for name, count in live.pipeline.by_rule.most_common(_RULE_COUNTERS_MAX):
            counters[f"signals.{name[:_COUNTER_NAME_CHARS]}"] = count
        return counters

    def _stop(self, live: Live) -> None:
        """Take no more events, and deliver what there is."""
        began_s = time.monotonic()
        live.detach()
        live.drain(began_s + _DRAIN_RING_S, lambda: self._deliver(live))
        left = live.pending_bytes()
        if left:
            log(logging.WARNING, "events were left in the ring", bytes=left)
        self._heartbeat(live)
        self._close_ends(began_s)
        log(
            logging.INFO,
            "stopped",
            signals=live.pipeline.signals,
            seconds=f"{time.monotonic() - began_s:.2f}",
        )

    def _close_ends(self, began_s: float) -> None:
        """Close outputs and shipper, in a stop that began at began_s (time.monotonic)."""
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            metrics.close()
        while self._writers:
            writer = self._writers.pop()
            if not writer.close(max(0.05, began_s + _OUTPUTS_STOP_S - time.monotonic())):
                log(logging.WARNING, "alerts were left unwritten", output=writer.name)
        shipper, self._shipper = self._shipper, None
        if shipper is not None:
            remaining_s = max(0.05, began_s + _SHIPPER_STOP_S - time.monotonic())
            if not shipper.close(remaining_s, "the agent was stopped"):
                kept = shipper.stats()["kept"]
                if self._spool is not None:
                    log(logging.INFO, "signals wait in the spool", kept=kept)
                else:
                    log(logging.WARNING, "signals were left unsent", kept=kept)
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
