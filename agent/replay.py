"""Judging a capture file again: the same rules give the same signals, byte for byte."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from vedette.agent import config
from vedette.agent.logs import log
from vedette.agent.pipeline import Decisions, Facts, Pipeline
from vedette.core.capturefile import Answer, Batch, CaptureReader, End, Loss, Snapshot, restore
from vedette.core.engine import Process
from vedette.core.rules import Rule
from vedette.core.signal import Signal


class Replay:
    """A capture file's records, fed to a pipeline as they were in the live run.

    matching  "all" or "first"; None: as in the live run
    """

    def __init__(
        self,
        reader: CaptureReader,
        rules: Sequence[Rule],
        *,
        matching: Literal["all", "first"] | None = None,
        limits: config.Limits | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        header = reader.header
        self._reader = reader
        self._answers: deque[Answer] = deque()
        self._strayed = 0
        self.records_bytes = 0
        self.pipeline = Pipeline(
            rules,
            Facts(
                header.hostname,
                header.boot_to_wall_ns,
                header.users,
                header.groups,
                None if header.resolvers is None else tuple(header.resolvers),
            ),
            matching=matching or header.rule_matching,
            # How many processes are remembered decides what is forgotten, so it is the file's.
            limits=msgspec.structs.replace(
                limits or config.Limits(), processes_max=header.processes_max
            ),
            lookup=self._lookup,
            decisions=decisions,
        )

    def run(self, on_signals: Callable[[list[Signal]], None]) -> End:
        """Replay the file; on_signals gets the signals of each block that has any.

        Returns how the capture ended. Raises CaptureFileError where the file is cut short or
        damaged, after everything before that was replayed.
        """
        engine = self.pipeline.engine
        end = End(reason="")
        for block in self._reader:
            if isinstance(block, Batch):
                self._answers = deque(block.answers)
                engine.feed(block.records)
                self.records_bytes += len(block.records)
                self._strayed += len(self._answers)
                signals = self.pipeline.take()
                if signals:
                    on_signals(signals)
            elif isinstance(block, Snapshot):
                restore(engine, block)
            elif isinstance(block, Loss):
                engine.note_loss()
            else:
                end = block
        if self._strayed:
            log(
                logging.WARNING,
                "the replay asked for other processes than the live run; signals may differ",
                times=self._strayed,
            )
        return end

    def _lookup(self, pid: int) -> Process | None:
        """Give the answer that the live run got."""
        if self._answers and self._answers[0][0] == pid:
            return self._answers.popleft()[1]
        self._strayed += 1
        return None
