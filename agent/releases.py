"""Releases of rules on this host: taken from the aggregator, kept on disk, gone back from.

`Releases` stands between the agent's threads. The shipper's gives it what the aggregator says
(`offer`, `chunk`, `withdraw`); whatever comes is verified against the signers that the
configuration pins, and counted where it is refused. The thread that compiles rules asks for the
files of a release (`files`) and says what became of it (`switched`, `failed`). The loop that takes
events asks whether others are due and leaves its counts here (`due`, `note`), which waits for no
lock and no disk; a thread of this module's own judges by them.

On disk are the releases that may be needed again, each a file as it was verified, and `state.json`:
what was accepted, withdrawn and failed, and which release is on trial. Both are replaced as a whole
(written beside, synced, renamed), so a kill at any moment leaves the old or the new one. A release
on trial that its agent did not survive for STARTS_MAX starts counts as failed.

Which release is to be in force is a function of that state: the newest accepted one whose labels
are this host's. Older ones than that are replays and refused; a withdrawn or failed one counts as
never accepted, and is not taken again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from vedette.agent.errors import AgentError
from vedette.agent.logs import log
from vedette.core import wire
from vedette.core.releases import (
    CHUNK_BYTES,
    Labels,
    Manifest,
    Number,
    ReleaseError,
    RuleFile,
    Signed,
    Withdrawal,
    check_pack,
    claimed,
    verify,
)

KEPT: Final = 3
"""Files of accepted releases, the newest; the one in force and what may be gone back to."""
HISTORY_MAX: Final = 64
NUMBERS_MAX: Final = 256
"""Withdrawn and failed releases that are remembered; those below the accepted ones need not be."""
STARTS_MAX: Final = 2
"""Starts of the agent that end in the middle of a trial without having been stopped."""
BURST_S: Final = 5.0
"""A trial's first signals are judged as if they had taken at least so long."""
BEFORE_S: Final = 60.0
BEFORE_FACTOR: Final = 10
RETRY_S: Final = 60.0
JUDGE_S: Final = 0.25
_STATE_BYTES_MAX: Final = 4 << 20
_REASON_CHARS: Final = 1000


class DamagedRelease(AgentError):
    """A release's file cannot be used; the text says why."""


class _Accepted(msgspec.Struct, frozen=True):
    number: Number
    digest: str
    labels: Labels


class _Trial(msgspec.Struct, frozen=True):
    """The release that has not proven itself, and how often the agent has started with it."""

    number: Number
    starts: int


class _Last(msgspec.Struct, frozen=True):
    """What became of the release that came last."""

    tried: int = 0
    status: wire.ReleaseStatus = ""
    reason: str = ""


class _State(msgspec.Struct, frozen=True):
    accepted: Annotated[tuple[_Accepted, ...], msgspec.Meta(max_length=HISTORY_MAX)] = ()
    withdrawn: Annotated[tuple[Number, ...], msgspec.Meta(max_length=NUMBERS_MAX)] = ()
    failed: Annotated[tuple[Number, ...], msgspec.Meta(max_length=NUMBERS_MAX)] = ()
    trial: _Trial | None = None
    last: _Last = _Last()


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """A release's file."""

    manifest: Signed
    packed: bytes


class _Incoming:
    """A pack on its way."""

    def __init__(self, signed: Signed, manifest: Manifest) -> None:
        self.signed = signed
        self.manifest = manifest
        self.packed = bytearray()


class _Sample(NamedTuple):
    time_s: float
    signals: int
    lost: int


class _Watch:
    """What is looked at while a release settles."""

    def __init__(self, manifest: Manifest, begun: _Sample, before: _Sample | None) -> None:
        self.manifest = manifest
        self.begun = begun
        spent_s = 0.0 if before is None else begun.time_s - before.time_s
        if before is None or spent_s < 1.0:
            self.signals_per_s = self.lost_per_s = 0.0
        else:
            self.signals_per_s = (begun.signals - before.signals) / spent_s
            self.lost_per_s = (begun.lost - before.lost) / spent_s

    def wrong(self, now: _Sample) -> str | None:
        """Say what exceeds its bound."""
        spent_s = max(now.time_s - self.begun.time_s, BURST_S)
        signals = now.signals - self.begun.signals
        per_s_max = max(self.manifest.signals_per_s_max, BEFORE_FACTOR * self.signals_per_s)
        if signals > per_s_max * spent_s:
            return (
                f"{signals} signals in {now.time_s - self.begun.time_s:.1f} s, more than "
                f"{per_s_max:.0f} a second (--signals-per-s-max); before it were "
                f"{self.signals_per_s:.1f} a second"
            )
        lost = now.lost - self.begun.lost
        lost_max = max(self.manifest.lost_events_max, BEFORE_FACTOR * self.lost_per_s * spent_s)
        if lost > lost_max:
            return (
                f"{lost} kernel events lost in {now.time_s - self.begun.time_s:.1f} s, more than "
                f"{lost_max:.0f} (--lost-events-max)"
            )
        return None


class Releases:
    """See the module.

    folder   where releases are kept; made, mode 0700
    signers  public keys whose releases are taken
    labels   this host's: releases for others are refused
    Raises AgentError where the folder cannot be used.
    """

    def __init__(self, folder: Path, signers: Sequence[bytes], labels: Mapping[str, str]) -> None:
        self._folder = folder
        self._signers = tuple(signers)
        self._labels = dict(labels)
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._incoming: _Incoming | None = None
        self.in_force = 0
        self._wanted = 0
        self._digest = ""
        self._watch: _Watch | None = None
        self._samples: deque[_Sample] = deque(maxlen=1024)
        self._stuck: tuple[int, float] | None = None
        self._noted = (0, 0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self.version = 0
        self.on_change: Callable[[], None] = lambda: None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_mode & 0o022:
                raise AgentError(
                    f"rules.releases_path: others can write to {folder}; run `chmod 700 {folder}`"
                )
            for left in folder.glob("*.files"):
                shutil.rmtree(left)
            for half in folder.glob("*.new"):
                half.unlink()
            self._state = self._read_state()
            self._begin()
            self._look()
        except OSError as error:
            raise AgentError(
                f"rules.releases_path: {folder} cannot be used: {error.strerror or error}"
            ) from None

    # What the shipper's thread says.

    @property
    def report(self) -> wire.ReleaseReport:
        """How this host stands, for the aggregator."""
        with self._lock:
            last = self._state.last
            return wire.ReleaseReport(
                number=self.in_force,
                digest=self._digest,
                tried=last.tried,
                status=last.status,
                reason=last.reason,
            )

    def offer(self, offer: wire.Offer) -> wire.Fetch | None:
        """Take an offered release, or refuse it; return what is to be asked for."""
        with self._lock:
            number = claimed(offer.manifest)
            try:
                manifest = verify(offer.manifest, Manifest, self._signers)
                if self._is_here(manifest):
                    # It asks for what it has been told already: tell it again.
                    self._changed()
                    return None
                self._check(manifest)
            except ReleaseError as error:
                self._refuse(number, error.code, str(error))
                return None
            incoming = self._incoming
            if incoming is None or incoming.signed != offer.manifest:
                incoming = self._incoming = _Incoming(offer.manifest, manifest)
            self._counts["offered"] += 1
            self._tell(manifest.number, "taking")
            return wire.Fetch(number=manifest.number, offset=len(incoming.packed))

    def chunk(self, chunk: wire.Chunk) -> wire.Fetch | None:
        """Take a part of the pack that was asked for; return what is to be asked for next."""
        with self._lock:
            incoming = self._incoming
            if (
                incoming is None
                or chunk.number != incoming.manifest.number
                or chunk.offset != len(incoming.packed)
            ):
                self._counts["refused.unexpected"] += 1
                return None
            incoming.packed += chunk.data
            missing = incoming.manifest.packed_bytes - len(incoming.packed)
            if missing > 0 and len(chunk.data) == CHUNK_BYTES:
                return wire.Fetch(number=chunk.number, offset=len(incoming.packed))
            self._incoming = None
            manifest = incoming.manifest
            try:
                if missing:
                    raise ReleaseError("size", "its pack is not as long as was signed")
                check_pack(manifest, incoming.packed)
                # Looked at again: what was withdrawn meanwhile is not accepted.
                self._check(manifest)
                self._write(
                    self._path(manifest.number),
                    msgspec.msgpack.encode(_Kept(incoming.signed, bytes(incoming.packed))),
                )
            except ReleaseError as error:
                self._refuse(manifest.number, error.code, str(error))
                return None
            except OSError as error:
                self._refuse(manifest.number, "disk", f"it cannot be kept: {error.strerror}")
                return None
            self._counts["taken"] += 1
            self._accept(manifest)
            return None

    def withdraw(self, withdraw: wire.Withdraw) -> None:
        """Take back a release: this host goes back to what it had before."""
        with self._lock:
            try:
                withdrawal = verify(withdraw.withdrawal, Withdrawal, self._signers)
            except ReleaseError as error:
                self._refuse(claimed(withdraw.withdrawal), error.code, str(error))
                return
            number = withdrawal.number
            # What has failed here has been gone back from.
            if number in self._state.withdrawn or number in self._state.failed:
                return
            if self._incoming is not None and self._incoming.manifest.number == number:
                self._incoming = None
            self._counts["withdrawn"] += 1
            self._drop(number, withdrawn=True)
            self._tell(number, "withdrawn")
            log(logging.WARNING, "a release is withdrawn", release=number)

    # What the service's thread asks and says.

    def start(self) -> None:
        """Begin to judge."""
        self._thread.start()

    def close(self) -> None:
        """Judge no more."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def stopped(self) -> None:
        """Note that the agent was stopped, which is no fault of a release on trial."""
        with self._lock:
            trial = self._state.trial
            if trial is not None:
                trial = msgspec.structs.replace(trial, starts=0)
                self._save(msgspec.structs.replace(self._state, trial=trial))

    def note(self, signals: int, lost: int) -> None:
        """Say how many signals were made, and events lost, so far."""
        self._noted = signals, lost

    def due(self) -> bool:
        """Tell whether other rules are to be put in force."""
        wanted = self._wanted
        if wanted == self.in_force:
            return False
        stuck = self._stuck
        return stuck is None or stuck[0] != wanted or time.monotonic() - stuck[1] > RETRY_S

    @property
    def wanted(self) -> int:
        """The release that is to be in force; 0: none."""
        return self._wanted

    def candidates(self) -> list[int]:
        """Return what may be in force, best first: numbers of releases, and 0 for none."""
        with self._lock:
            found = [item.number for item in self._for_this_host() if self._has(item.number)]
            return [*sorted(found, reverse=True), 0]

    @contextmanager
    def files(self, number: int) -> Iterator[list[Path]]:
        """Give the rule files of a release, in order, while the context lasts; none of release 0.

        They are verified first. Raises DamagedRelease where the file on disk is damaged, or its
        signer is no longer in the configuration; the file goes then, and the release may come
        again.
        """
        if not number:
            yield []
            return
        folder = self._folder / f"{number}.files"
        try:
            try:
                made = [_place(folder, file) for file in check_pack(*self._kept(number))]
            except (ReleaseError, OSError) as error:
                self._unusable(number, str(error))
                raise DamagedRelease(f"release {number} on disk cannot be used: {error}") from None
            yield made
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def switched(self, number: int) -> None:
        """Note that a release (0: none) is in force."""
        with self._lock:
            if self._stuck is not None and self._stuck[0] == number:
                self._stuck = None
            self.in_force = number
            self._digest = ""
            self._watch = None
            manifest = None
            if number:
                with contextlib.suppress(ReleaseError, OSError):
                    manifest = self._kept(number)[0]
            if manifest is not None:
                self._digest = manifest.digest
            if manifest is not None and self._on_trial(number):
                now_s = time.monotonic()
                before = next(
                    (item for item in self._samples if item.time_s > now_s - BEFORE_S), None
                )
                self._watch = _Watch(manifest, _Sample(now_s, *self._noted), before)
                self._tell(number, "trial")
            elif number and number == self._state.last.tried:
                self._tell(number, "confirmed")
            else:
                self._changed()
            log(logging.INFO, "release in force", release=number)

    def failed(self, number: int, reason: str) -> None:
        """Note that a release cannot come, or stay, in force.

        One that has proven itself before is tried again after a while: what is wrong is around it.
        """
        with self._lock:
            reason = self._shortened(number, reason)
            if not self._on_trial(number):
                self._stuck = (number, time.monotonic())
                log(logging.ERROR, "rules cannot be gone back to", release=number, error=reason)
                if number:
                    self._tell(number, "failed", reason)
                return
            self._counts["failed"] += 1
            self._drop(number, withdrawn=False)
            self._tell(number, "failed", reason)
            log(logging.ERROR, "a release failed", release=number, error=reason)

    def hindered(self, number: int, reason: str) -> None:
        """Note that a release cannot come in force for now, by no fault of its own."""
        with self._lock:
            self._stuck = (number, time.monotonic())
            reason = self._shortened(number, reason)
            log(logging.ERROR, "a release waits for this host", release=number, error=reason)

    def stats(self) -> dict[str, int]:
        """Counters; number (the release in force) and trial (1: it settles) are gauges."""
        names = ("offered", "taken", "confirmed", "failed", "withdrawn", "damaged", "write_errors")
        return {
            "number": self.in_force,
            "trial": int(self._watch is not None),
            **dict.fromkeys(names, 0),
            **self._counts.copy(),
        }

    # The thread of its own.

    def _run(self) -> None:
        while not self._ending.wait(JUDGE_S):
            with self._lock:
                self._judge(_Sample(time.monotonic(), *self._noted))

    def _judge(self, now: _Sample) -> None:
        """Look at what a release on trial does; it may fail, or be confirmed."""
        watch = self._watch
        if watch is None:
            if not self._samples or now.time_s - self._samples[-1].time_s >= 1.0:
                self._samples.append(now)
            return
        number = watch.manifest.number
        wrong = watch.wrong(now)
        if wrong is not None:
            self.failed(number, wrong)
        elif now.time_s - watch.begun.time_s >= watch.manifest.settle_s:
            self._watch = None
            self._counts["confirmed"] += 1
            if self._on_trial(number):
                self._state = msgspec.structs.replace(self._state, trial=None)
            self._tell(number, "confirmed")
            self._prune()
            log(logging.INFO, "release confirmed", release=number)

    # With the lock held.

    def _unusable(self, number: int, reason: str) -> None:
        with self._lock:
            self._counts["damaged"] += 1
            self._path(number).unlink(missing_ok=True)
            if self._on_trial(number):
                self._state = msgspec.structs.replace(self._state, trial=None)
            self._tell(number, "missing", reason)
            log(logging.ERROR, "a release is missing", release=number, error=reason)

    def _on_trial(self, number: int) -> bool:
        trial = self._state.trial
        return trial is not None and trial.number == number

    def _shortened(self, number: int, text: str) -> str:
        """Name the files of a release in a message as they are named in it."""
        return text.replace(f"{self._folder / f'{number}.files'}/", f"release {number}: ")

    def _look(self) -> None:
        """Find out again what is to be in force."""
        self._wanted = self.candidates()[0]

    def _newest(self) -> _Accepted | None:
        return max(self._for_this_host(), default=None, key=_number_of)

    def _is_here(self, manifest: Manifest) -> bool:
        newest = self._newest()
        return (
            newest is not None
            and (manifest.number, manifest.digest) == (newest.number, newest.digest)
            and self._has(manifest.number)
        )

    def _check(self, manifest: Manifest) -> None:
        """Raise ReleaseError where a release that is signed well is not to be taken."""
        number = manifest.number
        if not manifest.selects(self._labels):
            wanted = ", ".join(f"{name}={value}" for name, value in manifest.labels.items())
            raise ReleaseError("label", f"it is for hosts with {wanted}, which this one is not")
        if number in self._state.withdrawn:
            raise ReleaseError("replay", f"release {number} was withdrawn")
        if number in self._state.failed:
            raise ReleaseError("replay", f"release {number} has failed here")
        newest = self._newest()
        if newest is None or number > newest.number:
            return
        # The one that was accepted last may come again where its file is lost.
        if (number, manifest.digest) != (newest.number, newest.digest):
            raise ReleaseError(
                "replay", f"release {number} is not newer than {newest.number}, accepted before"
            )

    def _accept(self, manifest: Manifest) -> None:
        number = manifest.number
        others = [item for item in self._state.accepted if item.number != number]
        accepted = (*others, _Accepted(number, manifest.digest, manifest.labels))
        self._state = msgspec.structs.replace(
            self._state,
            accepted=tuple(sorted(accepted, key=_number_of)[-HISTORY_MAX:]),
            trial=_Trial(number, 0),
        )
        self._tell(number, "taking")

    def _drop(self, number: int, *, withdrawn: bool) -> None:
        """Let a release count as never accepted, and remember that it must not come again."""
        state = self._state
        trial = state.trial
        name = "withdrawn" if withdrawn else "failed"
        had: tuple[int, ...] = getattr(state, name)
        self._state = msgspec.structs.replace(
            state,
            accepted=tuple(item for item in state.accepted if item.number != number),
            trial=None if trial is not None and trial.number == number else trial,
            **{name: tuple(sorted({*had, number}))[-NUMBERS_MAX:]},
        )
        if self._watch is not None and self._watch.manifest.number == number:
            self._watch = None

    def _for_this_host(self) -> list[_Accepted]:
        return [
            item
            for item in self._state.accepted
            if all(self._labels.get(name) == value for name, value in item.labels.items())
        ]

    def _refuse(self, number: int, code: str, reason: str) -> None:
        self._counts[f"refused.{code}"] += 1
        log(logging.WARNING, "a release is refused", release=number, code=code, error=reason)
        self._tell(number, "refused", reason)

    def _tell(self, number: int, status: wire.ReleaseStatus, reason: str = "") -> None:
        """Write down and report what became of a release."""
        plain = reason.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()
        last = _Last(number, status, plain[:_REASON_CHARS])
        self._save(msgspec.structs.replace(self._state, last=last))
        self._changed()

    def _changed(self) -> None:
        self._look()
        self.version += 1
        self.on_change()

    # On disk.

    def _begin(self) -> None:
        """Take note of a start: of one more with a release on trial."""
        trial = self._state.trial
        if trial is None:
            return
        if trial.starts >= STARTS_MAX:
            self.failed(
                trial.number,
                f"the agent ended {trial.starts} times while it was on trial; its log says why",
            )
            return
        trial = msgspec.structs.replace(trial, starts=trial.starts + 1)
        self._save(msgspec.structs.replace(self._state, trial=trial))

    def _read_state(self) -> _State:
        path = self._folder / "state.json"
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(_STATE_BYTES_MAX), type=_State)
        except FileNotFoundError:
            reason = "missing"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = f"damaged: {error}"
        # The releases themselves are signed, and say what they are.
        accepted = []
        for kept in self._folder.glob("*.release"):
            with contextlib.suppress(ReleaseError, OSError, ValueError):
                manifest = self._kept(int(kept.stem))[0]
                accepted.append(_Accepted(manifest.number, manifest.digest, manifest.labels))
        if accepted or reason != "missing":
            self._counts["damaged"] += 1
            log(logging.ERROR, "the releases' state begins anew", file=path, error=reason)
        accepted.sort(key=_number_of)
        return _State(accepted=tuple(accepted[-HISTORY_MAX:]))

    def _save(self, state: _State) -> None:
        self._state = state
        try:
            self._write(self._folder / "state.json", msgspec.json.encode(state))
        except OSError as error:
            self._counts["write_errors"] += 1
            log(logging.ERROR, "the releases' state cannot be kept", error=error.strerror)

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_name(f"{path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.release"

    def _has(self, number: int) -> bool:
        return self._path(number).exists()

    def _kept(self, number: int) -> tuple[Manifest, bytes]:
        """Read and verify a release's file. Raises ReleaseError and OSError."""
        data = self._path(number).read_bytes()
        try:
            kept = msgspec.msgpack.decode(data, type=_Kept)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ReleaseError("malformed", f"damaged: {error}") from None
        manifest = verify(kept.manifest, Manifest, self._signers)
        if manifest.number != number:
            raise ReleaseError("malformed", f"it is release {manifest.number}")
        return manifest, kept.packed

    def _prune(self) -> None:
        """Delete the files of releases that are not needed any more."""
        needed = {item.number for item in self._state.accepted[-KEPT:]} | {self.in_force}
        for path in self._folder.glob("*.release"):
            if not path.stem.isdigit() or int(path.stem) not in needed:
                with contextlib.suppress(OSError):
                    path.unlink()


def _number_of(item: _Accepted) -> int:
    return item.number


def _place(folder: Path, file: RuleFile) -> Path:
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(file.data)
    return path
