"""The sequences in a thread of their own, so that they hold up nobody who delivers.

What they take is in the store already, and they read it there, over a connection of their own. So
acknowledgements wait neither for a burst that completes many sequences nor for tables that are
made again after a restart; and where the sequences fall behind, nothing is lost but time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import sqlalchemy as sa

from vedette.aggregator.store import Store

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""After the store refused something, before it is asked again."""
CLOSE_S = 30.0


class Stopped(Exception):
    """The sequences are to stop, wherever they are."""


class Correlator(Protocol):
    """What looks for sequences in the store."""

    def advance(self, watermark_ns: int, check: Callable[[], None]) -> None:
        """Take the signals up to this time: none that is not marked late will be added there.

        check  called now and then where there is much to take; may raise Stopped
        """

    def stats(self) -> Mapping[str, int]:
        """Return counters by name, and what there is at the moment; from any thread."""


class Correlating:
    """Gives a correlator each new watermark; make it, `advance` it, `close` it.

    make      called at once, with a store for the correlator alone
    taken_ns  up to which it has been brought
    """

    def __init__(self, store: Store, make: Callable[[Store], Correlator]) -> None:
        self.store = store.companion()
        self.store_errors = 0
        self.taken_ns = 0
        self.failure: BaseException | None = None
        self._correlator = make(self.store)
        self._wanted_ns = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sequences", daemon=True)
        self._thread.start()

    def advance(self, watermark_ns: int) -> None:
        """Have the signals up to a time taken."""
        with self._changed:
            self._wanted_ns = max(self._wanted_ns, watermark_ns)
            self._changed.notify()

    def stats(self) -> Mapping[str, int]:
        """Return the correlator's numbers."""
        return self._correlator.stats()

    def close(self) -> None:
        """Wait for the part that is being taken, and stop."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            # The process ends, and with it the transaction: the next start takes it up again.
            log.warning("the sequences did not stop within %g s", CLOSE_S)
        else:
            self.store.close()

    def _check(self) -> None:
        if self._stopping:
            raise Stopped

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._wanted_ns > self.taken_ns)
                if self._stopping:
                    return
                watermark_ns = self._wanted_ns
            try:
                self._correlator.advance(watermark_ns, self._check)
                self.taken_ns = watermark_ns
            except Stopped:
                return
            except sa.exc.SQLAlchemyError as error:
                self.store_errors += 1
                log.error("%s: %s; the sequences wait", self.store.name, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, RETRY_S)
            except Exception as error:
                # The server finds it, and ends.
                self.failure = error
                log.exception("the sequences have failed")
                return
