"""The agent's life: start, loop, reload, stop.

One thread takes events, matches them and makes signals; each output and the shipper have a thread
and a bounded queue of their own, so nothing outside holds the loop up.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

import msgspec
from prometheus_client.core import Metric

from vedette import __version__
from vedette.agent import config, identity, outputs, pipeline
from vedette.agent.errors import AgentError, ConfigError
from vedette.agent.hashreader import Reader
from vedette.agent.live import Live, Swapped, capture_header, host_facts, renamed, untold_types
from vedette.agent.logs import log
from vedette.agent.recorder import Recorder
from vedette.agent.releases import DamagedRelease, Releases
from vedette.agent.shipper import Shipper, ShipperError
from vedette.agent.spool import Spool, SpoolError
from vedette.bpf import kernel, privileges
from vedette.bpf.capture import CaptureError, Loader
from vedette.bpf.helper import HelperError
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
_FOR_RESTART = ("matching", "signers", "releases_path")
"""Keys of the rules' section that a reload does not change."""
_RULE_COUNTERS_MAX = 100
_COUNTER_NAME_CHARS = 200
_STUCK_S = 10.0
_STAY = "reload failed, the rules in force stay"
_NAMES_LOOK_S = 1.0
"""Between two looks at the files that name users, groups and name servers."""
_NAMES_READ_S = 10.0
"""Between two times that they are read: whoever may change his own entry has rules compiled."""
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
        "release.number",
        "release.trial",
        "rules.uncaptured",
    }
)
_LABELLED = (
    Labelled("signals.", "signals", "rule"),
    Labelled("ship.lost.", "ship_lost_by_priority", "priority"),
    Labelled("release.refused.", "release_refused", "code"),
)


def _counts(name: str) -> bool:
    """Tell whether a value only rises; the engine's are of either kind."""
    return name.startswith(
        ("capture.", "hashes.", "names.", "procfs.", "rules.", "ship.", "release.")
    )


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
    spool: Spool | None = None,
    releases: Releases | None = None,
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
            curve=curve,
            insecure=ship.insecure,
            queue_signals_max=ship.queue_signals_max,
            queue_bytes_max=ship.queue_bytes_max,
            spool=spool,
            rules=releases,
            heartbeat_s=settings.heartbeat_s,
        )
    except (ShipperError, KeyFileError) as error:
        raise ConfigError(f"ship: {error}") from None


def open_releases(settings: config.Config) -> Releases | None:
    """Open where releases of rules are kept. Raises AgentError."""
    section = settings.rules
    if not section.signers:
        return None
    if settings.ship is None:
        log(
            logging.WARNING, "releases cannot come without an aggregator", keys="rules.signers,ship"
        )
    return Releases(Path(section.releases_path), section.signer_keys, settings.host.labels)


class _Compiling(threading.Thread):
    """Compiles rules while the loop goes on.

    Then it frees the rules that were in force, which the loop hands back with `done`.

    ready     the loop can go on with it
    error     why it failed
    compiled  what was made; None: it failed, or nothing is to be changed
    """

    def __init__(self, name: str, running: pipeline.Pipeline) -> None:
        super().__init__(name=name, daemon=True)
        self._running = running
        self.ready = threading.Event()
        self.error: AgentError | None = None
        self.compiled: pipeline.Compiled | None = None
        self._swapped: SimpleQueue[Swapped] = SimpleQueue()

    def done(self, swapped: Swapped) -> None:
        """Free rules that were in force, away from the loop."""
        self._swapped.put(swapped)

    def run(self) -> None:
        try:
            try:
                with quiet(keep=True):
                    self.compiled = self._compile()
            except AgentError as error:
                self.error = error
            except Exception as error:
                # Whatever rules came from elsewhere do to the compiler: those in force go on.
                log(logging.ERROR, "internal error", error=repr(error))
                self.error = AgentError(f"internal error: {type(error).__name__}: {error}")
            if self.error is not None:
                self._failed(self.error)
        finally:
            self.ready.set()
        if self.compiled is not None:
            swapped = self._swapped.get()
            self._switched(swapped)
            self.compiled = None
            if swapped.retired is not None:
                swapped.retired.release()

    def _compile(self) -> pipeline.Compiled | None:
        raise NotImplementedError

    def _failed(self, error: AgentError) -> None:
        """Tell that it failed."""

    def _switched(self, swapped: Swapped) -> None:
        """Tell what came of it when the loop was to put it in force."""


class _Renaming(_Compiling):
    """Reads the names of users, groups and name servers, and compiles the rules in force."""

    def __init__(self, running: pipeline.Pipeline) -> None:
        super().__init__("names", running)

    def _compile(self) -> pipeline.Compiled | None:
        facts = renamed(self._running.facts)
        return None if facts == self._running.facts else self._running.rename(facts)


class _Reload(_Compiling):
    """Reads rules and compiles them.

    path      the configuration file, if that is to be read again; None: settings are as they are
    number    the release that the rules are of; 0: none
    settings  the configuration that was read
    rules     the rules that were
    """

    rules: pipeline.Loaded

    def __init__(
        self,
        path: Path | None,
        settings: config.Config,
        running: pipeline.Pipeline,
        releases: Releases | None,
    ) -> None:
        super().__init__("reload", running)
        self.path = path
        self.number = 0
        if releases is not None:
            # Another release comes by itself, so that a configuration is tried with none.
            self.number = releases.wanted if path is None else releases.in_force
        self.settings = settings
        self._releases = releases

    def _compile(self) -> pipeline.Compiled | None:
        if self.path is not None:
            self.settings = config.load(self.path)
        section, host = self.settings.rules, self.settings.host
        with _released(self._releases, self.number) as files:
            self.rules = pipeline.load(section, host, files, untold=untold_types())
        facts = renamed(self._running.facts)
        return self._running.compile(self.rules.rules, self.rules.decisions, facts)

    def _failed(self, error: AgentError) -> None:
        releases = self._releases
        if releases is None or self.number == releases.in_force:
            return
        # What the configuration's own files have wrong is no fault of the release.
        if self._loads(releases, releases.in_force):
            releases.failed(self.number, str(error))
        else:
            releases.hindered(self.number, str(error))

    def _loads(self, releases: Releases, number: int) -> bool:
        """Tell whether the configuration's own files can be used with a release."""
        try:
            with releases.files(number) as files:
                pipeline.load(self.settings.rules, self.settings.host, files)
        except DamagedRelease:
            return True
        except AgentError:
            return False
        return True

    def _switched(self, swapped: Swapped) -> None:
        releases = self._releases
        if releases is None:
            return
        is_release = self.path is None
        if swapped.retired is None:
            if is_release:
                # It was not asked for anything yet.
                releases.hindered(self.number, swapped.error)
        elif not swapped.error or (is_release and swapped.before):
            # What the kernel refused before the release came is not the release's fault.
            releases.switched(self.number)
        elif is_release:
            # A configuration is tried with the release that ran before, which is not to blame.
            releases.failed(self.number, swapped.error)


def _released(
    releases: Releases | None, number: int
) -> contextlib.AbstractContextManager[list[Path]]:
    return contextlib.nullcontext([]) if releases is None else releases.files(number)


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
        self._releases: Releases | None = None
        self._metrics: Endpoint | None = None
        self._published: dict[str, int] = {}
        self._published_s = time.monotonic()
        # Looked at before they are read: what changes meanwhile is read again.
        self._name_files = identity.NameFiles()
        self._names_changed = False
        self._names_look_s = self._names_read_s = 0.0
        self._names = dict.fromkeys(("read", "changed", "failed"), 0)
        self._reloads = dict.fromkeys(("reloaded", "failed"), 0)
        self._rules = 0
        self._uncaptured = ""
        self._facts = host_facts(self._settings.host)
        self._beat_s = 0.0
        self._compiling: _Reload | _Renaming | None = None
        self._switching: _Reload | _Renaming | None = None
        self._loader: Loader | None = None
        self._reader: Reader | None = None

    def separate(self, user: str | None = None) -> None:
        """Start the processes that need rights, then give up all rights of this one.

        user  whom they all become; None: the user stays

        Raises AgentError.
        """
        try:
            capture = self._settings.capture
            # It reads executables also where no rule asks yet: those that are read later may.
            hashes = capture.executable_hashes != "never"
            self._reader = Reader(
                environment=capture.environment,
                hash_bytes_max=capture.hash_bytes_max if hashes else 0,
                user=user,
            )
            self._loader = Loader(user)
            # An older kernel asks for it even where maps that one has are looked at.
            privileges.confine({"CAP_BPF"} if kernel.needs_rights() else set(), user)
            privileges.set_name("vedette-agent")
        except (HelperError, CaptureError, privileges.PrivilegeError) as error:
            self._end_helpers()
            raise AgentError(str(error)) from None

    def _end_helpers(self) -> None:
        for helper in (self._loader, self._reader):
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
        self._releases = open_releases(settings)
        if not settings.outputs and settings.ship is None:
            log(logging.WARNING, "signals go nowhere", keys="outputs,ship")
        host_id = settings.host.id or identity.host_id()
        numbering_id = identity.numbering_id()
        self._spool = open_spool(settings, numbering_id)
        try:
            self._shipper = make_shipper(
                settings, self._facts, host_id, numbering_id, self._spool, self._releases
            )
            self._writers = open_outputs(settings.outputs)
            recorder = None
            if self._record is not None:
                header = capture_header(settings, self._facts, host_id, numbering_id)
                recorder = Recorder(self._record, self._record_bytes_max, header)
            live, rules = self._start_rules(recorder)
            if not rules.enabled:
                log(logging.WARNING, "no rules are loaded, nothing can match", key="rules.files")
            if self._shipper is not None:
                self._shipper.update(rules_digest=rules.digest)
            try:
                self._live(live, host_id, rules.enabled)
            finally:
                live.close()
        except KeyboardInterrupt:
            self._note_stop()
            raise
        finally:
            self._close_ends(time.monotonic())

    def _start_rules(self, recorder: Recorder | None) -> tuple[Live, pipeline.Loaded]:
        """Load and compile the rules of the release that was in force, or the last good one's.

        Raises AgentError where even the configuration's own rules cannot be used.
        """
        settings, releases = self._settings, self._releases
        numbers = [0] if releases is None else releases.candidates()
        failures: list[tuple[int, str]] = []
        for number in numbers:
            try:
                with _released(releases, number) as files:
                    rules = pipeline.load(
                        settings.rules, settings.host, files, untold=untold_types()
                    )
                live = Live(
                    settings,
                    rules.rules,
                    self._facts,
                    recorder,
                    rules.decisions,
                    loader=self._loader,
                    reader=self._reader,
                )
            except ConfigError as error:
                # Where nothing can be used, the configuration's own files are to blame.
                if releases is None or not number:
                    raise
                failures.append((number, str(error)))
            except DamagedRelease:
                continue
            else:
                break
        if releases is not None:
            for failed, text in failures:
                releases.failed(failed, text)
            releases.in_force = number
        return live, rules

    def _live(self, live: Live, host_id: str, rules: int) -> None:
        live.start()
        if self._shipper is not None:
            self._shipper.start()
        if self._releases is not None:
            self._releases.switched(self._releases.in_force)
            self._releases.start()
        self._start_metrics()
        log(
            logging.INFO,
            "watching",
            host=host_id,
            scope=self._settings.capture.scope,
            hook=live.hook,
            rules=rules,
            processes=live.pipeline.engine.stats()["processes"],
        )
        self._requests.begun = True
        self._rules = rules
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
            if self._compiling is not None and self._compiling.ready.is_set():
                done, self._compiling = self._compiling, None
                if isinstance(done, _Reload):
                    self._end_reload(live, done)
                else:
                    self._end_renaming(live, done)
            if self._compiling is None:
                if requests.reload:
                    requests.reload = False
                    self._reopen()
                    self._begin_reload(live, self._path)
                elif self._switching is not None and self._switching.is_alive():
                    # What became of a release may not be noted yet.
                    pass
                elif self._releases is not None and self._releases.due():
                    self._begin_reload(live, None)
                else:
                    self._look_at_names(live)
            if time.monotonic() >= self._beat_s:
                self._heartbeat(live)

    def _deliver(self, live: Live) -> None:
        signals = live.pipeline.take()
        # Into the spool first: what was printed here arrives there, even if the agent is killed.
        if self._shipper is not None:
            self._shipper.send(signals)
            self._shipper.update(complete_until_ns=live.complete_until_ns)
        if self._releases is not None:
            self._releases.note(live.pipeline.signals, live.lost_events)
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

    def _reopen(self) -> None:
        for writer in self._writers:
            writer.reopen()

    def _begin_reload(self, live: Live, path: Path | None) -> None:
        """Read and compile the rules beside the loop; path: by the configuration as it now is."""
        self._compiling = _Reload(path, self._settings, live.pipeline, self._releases)
        self._compiling.start()

    def _look_at_names(self, live: Live) -> None:
        """Have users, groups and name servers read again where they changed, but not too often."""
        now_s = time.monotonic()
        if now_s < self._names_look_s:
            return
        self._names_look_s = now_s + _NAMES_LOOK_S
        self._names_changed |= self._name_files.changed()
        if self._names_changed and now_s >= self._names_read_s:
            self._names_changed = False
            self._names_read_s = now_s + _NAMES_READ_S
            self._names["read"] += 1
            self._compiling = _Renaming(live.pipeline)
            self._compiling.start()

    def _end_renaming(self, live: Live, renaming: _Renaming) -> None:
        if renaming.error is not None:
            self._names["failed"] += 1
            log(logging.ERROR, "names stay as they were", error=renaming.error)
        elif (compiled := renaming.compiled) is not None:
            swapped = live.swap(compiled)
            self._switching = renaming
            renaming.done(swapped)
            if swapped.error:
                self._names["failed"] += 1
                self._complain(live, swapped, "names stay as they were")
            if swapped.retired is None:
                return
            self._names["changed"] += 1
            if self._record is not None:
                log(logging.WARNING, "the recording has the names of its beginning")
            facts = compiled.facts
            log(logging.INFO, "names read", users=len(facts.users), groups=len(facts.groups))

    def _end_reload(self, live: Live, reload: _Reload) -> None:
        """Put the rules in force that were read, by the configuration as it now is."""
        if reload.error is not None:
            self._reloads["failed"] += 1
            log(logging.ERROR, _STAY, error=reload.error)
            return
        settings, rules, compiled = reload.settings, reload.rules, reload.compiled
        assert compiled is not None
        swapped = live.swap(compiled)
        if self._releases is not None and swapped.retired is not None:
            self._releases.in_force = reload.number
        self._switching = reload
        reload.done(swapped)
        self._reloads["failed" if swapped.error else "reloaded"] += 1
        if swapped.error:
            self._complain(live, swapped, _STAY)
        if swapped.retired is None:
            return
        changed = [
            name
            for name in config.Config.__struct_fields__
            if name != "rules" and getattr(settings, name) != getattr(self._settings, name)
        ]
        changed += [
            f"rules.{name}"
            for name in _FOR_RESTART
            if getattr(settings.rules, name) != getattr(self._settings.rules, name)
        ]
        if changed:
            log(logging.WARNING, "changes that need a restart", keys=",".join(changed))
        if self._shipper is not None:
            self._shipper.update(rules_digest=rules.digest)
        section = msgspec.structs.replace(
            settings.rules,
            **{name: getattr(self._settings.rules, name) for name in _FOR_RESTART},
        )
        self._settings = msgspec.structs.replace(self._settings, rules=section)
        if self._record is not None:
            log(logging.WARNING, "the recording has two sets of rules, a replay has one")
        self._rules = rules.enabled
        self._tell_status(live)
        log(
            logging.INFO,
            # Where some of their events do not come, an error says so above.
            "rules in force, not captured in full" if swapped.error else "rules reloaded",
            rules=rules.enabled,
            compiled=not compiled.is_switch,
            release=reload.number,
            digest=rules.digest,
        )

    def _complain(self, live: Live, swapped: Swapped, otherwise: str) -> None:
        """Log that capture refused to follow; otherwise: what that means if nothing was changed."""
        what = otherwise if swapped.retired is None else "some events of the rules do not come"
        log(logging.ERROR, what, error=swapped.error)
        self._tell_status(live)

    def _tell_status(self, live: Live) -> None:
        self._uncaptured = live.refused
        text = f"watching, {self._rules} rules"
        self._notifier.status(f"{text}; {live.refused}" if live.refused else text)

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
        log(logging.INFO, "metrics", url=f"{self._metrics.url}/metrics")

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
        return self._uncaptured or None

    def _counters(self, live: Live) -> dict[str, int]:
        counters = live.counters()
        counters["ring.pending_bytes"] = live.pending_bytes()
        counters |= {f"names.{name}": count for name, count in self._names.items()}
        counters["names.late"] = identity.USERS.late + identity.GROUPS.late
        counters |= {f"rules.{name}": count for name, count in self._reloads.items()}
        counters["rules.uncaptured"] = int(bool(live.refused))
        for index, writer in enumerate(self._writers):
            counters |= {f"output.{index}.{name}": n for name, n in writer.stats().items()}
        if self._releases is not None:
            counters |= {f"release.{name}": n for name, n in self._releases.stats().items()}
        for name, count in live.pipeline.by_rule.most_common(_RULE_COUNTERS_MAX):
            counters[f"signals.{name[:_COUNTER_NAME_CHARS]}"] = count
        return counters

    def _stop(self, live: Live) -> None:
        """Take no more events, and deliver what there is."""
        began_s = time.monotonic()
        live.detach()
        live.drain(began_s + _DRAIN_RING_S, lambda: self._deliver(live))
        live.tell_suppressed(began_s + _DRAIN_RING_S)
        self._deliver(live)
        left = live.pending_bytes()
        if left:
            log(logging.WARNING, "events were left in the ring", bytes=left)
        self._heartbeat(live)
        self._note_stop()
        self._close_ends(began_s)
        log(
            logging.INFO,
            "stopped",
            signals=live.pipeline.signals,
            seconds=f"{time.monotonic() - began_s:.2f}",
        )

    def _note_stop(self) -> None:
        if self._releases is not None:
            self._releases.stopped()

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
        releases, self._releases = self._releases, None
        if releases is not None:
            releases.close()
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
