"""Writes down what a run says: each step once, in the order in which things happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from opsin_server.fine_tuning.metrics import EVALUATED, TRAINED, checkpoint_metrics, evaluation_event, step_event
from opsin_server.fine_tuning.tensorboard_log import TensorBoardLog
from opsin_server.ipc.training_events import CheckpointSaved, Evaluated, Notice, StepDone, TrainingEvent
from opsin_server.job_metrics import JobMetrics
from opsin_server.storage.records import NewEvent


class Book(Protocol):
    """Where it is written."""

    @property
    def job_id(self) -> str: ...

    async def note(self, events: Sequence[NewEvent], estimated_finish: float | None = None) -> None: ...

    async def add_checkpoint(self, step: int, folder: Path, metrics: dict[str, Any]) -> None: ...


class Scribe:
    """total: steps. per_epoch: of them. told: numbers of the steps that are known already. log: gets them, too."""

    def __init__(
        self,
        book: Book,
        total: int,
        per_epoch: int,
        told: dict[int, dict[str, Any]],
        metrics: JobMetrics,
        log: TensorBoardLog | None = None,
    ) -> None:
        self._book, self._total, self._per_epoch, self._told = book, total, per_epoch, told
        self._metrics, self._log = metrics, log

    async def write(self, events: Sequence[TrainingEvent]) -> None:
        new: list[NewEvent] = []
        finish: float | None = None
        for event in events:
            if isinstance(event, StepDone):
                finish = time.time() + (self._total - event.step) * event.seconds / event.step
                if TRAINED not in self._told.get(event.step, {}):
                    new.append(self._numbers(event.step, step_event(event, self._total)))
                    self._metrics.stepped(self._book.job_id, event.tokens, event.loss)
            elif isinstance(event, Evaluated):
                if EVALUATED not in self._told.get(event.step, {}):
                    new.append(self._numbers(event.step, evaluation_event(event, self._total)))
            elif isinstance(event, Notice):
                new.append(NewEvent(event.text, "warn"))
            elif isinstance(event, CheckpointSaved):
                await self._note(new, finish)
                new = []
                await self._checkpoint(event)
        if new or finish is not None:
            await self._note(new, finish)

    async def _note(self, events: Sequence[NewEvent], finish: float | None) -> None:
        await self._book.note(events, finish)
        if self._log is not None:
            await asyncio.to_thread(self._log.write, events)

    def _numbers(self, step: int, event: NewEvent) -> NewEvent:
        self._told.setdefault(step, {}).update(event.data or {})
        return event

    async def _checkpoint(self, event: CheckpointSaved) -> None:
        """Those at the end of an epoch are served."""
        if event.step % self._per_epoch == 0 or event.step == self._total:
            metrics = checkpoint_metrics(self._told.get(event.step, {}))
            await self._book.add_checkpoint(event.step, Path(event.folder), metrics)
