"""A training run as the API process sees it: what it gives the engine, and what it hears."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from opsin_server.ipc.messages import Frame
from opsin_server.ipc.training_events import StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_frames import form_of, frames_of_pixels, frames_of_rows
from opsin_server.ipc.training_messages import (
    FromTraining,
    PixelsGiven,
    PixelsWanted,
    RowsFailed,
    RowsGiven,
    RowsWanted,
    Split,
    StartTraining,
    StopTraining,
    ToTraining,
    TrainingEvents,
)
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.ipc.training_settings import TrainingSettings

log = logging.getLogger("opsin.ipc")
MAX_DEATHS = 2  # of the engine in a row, at which the run was going on
Send = Callable[[ToTraining, Sequence[Frame]], None]


class DataShape(NamedTuple):
    """tokens, patches: of the largest row, or pair. probe: the number of a row, or pair, to train on that has pictures,
    if any has."""

    tokens: int
    patches: int
    probe: int


class TrainingData(Protocol):
    """Rows that have been checked and encoded. Its methods may read files: they are called in threads."""

    def count(self, split: Split) -> int:
        """Rows, or pairs of rows where one is preferred."""

    def shape(self) -> DataShape:
        """Of the rows of both splits."""

    def row(self, split: Split, number: int) -> TrainingRow:
        """Of pair i the preferred one has number 2 i, and the other 2 i + 1."""

    def pixels(self, digest: bytes) -> Pixels: ...


class TrainingRun:
    """on_event: hears all that happens, in order. known: the step up to which all has been heard before, by whoever
    needs to hear of every step: it goes on from there at the latest, whatever later checkpoints there are; None: nobody
    does."""

    def __init__(
        self,
        job_id: str,
        settings: TrainingSettings,
        folder: Path,
        data: TrainingData,
        on_event: Callable[[TrainingEvent], None],
        known: int | None = None,
    ) -> None:
        self.job_id, self.settings, self.folder = job_id, settings, folder
        self.ended: TrainingEnded | None = None
        self._over = asyncio.Event()
        self.step = self.deaths = 0  # deaths: of the engine in a row, without a step between
        self._data, self._on_event, self._known = data, on_event, known
        self._work: set[asyncio.Task[None]] = set()
        self._send: Send | None = None
        self._stopping: Literal["paused", "cancelled"] | None = None

    def start(self, send: Send, resume: bool) -> None:
        """With an engine that is ready, at first or again."""
        self._send = send
        rows, valid_rows = self._data.count("train"), self._data.count("valid")
        shape = self._data.shape()
        known = -1 if self._known is None else max(self._known, self.step)
        send(StartTraining(self.job_id, self.settings, str(self.folder), rows, valid_rows, *shape, resume, known), ())
        if self._stopping is not None:
            send(StopTraining(self.job_id, self._stopping), ())

    def stop(self, status: Literal["paused", "cancelled"]) -> None:
        """At the next step's end, with a checkpoint; of an engine that is gone for the moment, when it is back."""
        self._stopping = status
        if self._send is not None:
            self._send(StopTraining(self.job_id, status), ())

    async def finished(self) -> TrainingEnded:
        await self._over.wait()
        assert self.ended is not None
        return self.ended

    def fail(self, error: str) -> None:
        """It cannot go on."""
        self._tell(TrainingEnded("failed", self.step, 0, error=error))

    def lost(self) -> None:
        """The engine has died: what it had asked for is not wanted any more."""
        self._send = None
        for task in self._work:
            task.cancel()
        self.deaths += 1
        if self.deaths >= MAX_DEATHS:
            self.fail(f"the engine ended {self.deaths} times in a row while this run was going on")

    def hear(self, message: FromTraining) -> None:
        if isinstance(message, TrainingEvents):
            for event in message.events:
                self._tell(event)
            return
        task = asyncio.ensure_future(self._give(message))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _tell(self, event: TrainingEvent) -> None:
        if isinstance(event, TrainingEnded):
            self.ended = event
            self._over.set()
        elif isinstance(event, StepDone) and event.step > self.step:  # it has come further than before
            self.step, self.deaths = event.step, 0
        try:
            self._on_event(event)
        except Exception:  # who listens is no reason to stop training
            log.exception("an event of training %s could not be taken", self.job_id)

    async def _give(self, message: RowsWanted | PixelsWanted) -> None:
        try:
            answer, frames = await asyncio.to_thread(self._found, message)
        except Exception as error:
            log.exception("rows of training %s cannot be read", self.job_id)
            answer, frames = RowsFailed(self.job_id, f"the training data cannot be read any more: {error}"), []
        if self._send is not None:
            self._send(answer, frames)

    def _found(self, message: RowsWanted | PixelsWanted) -> tuple[ToTraining, list[Frame]]:
        if isinstance(message, RowsWanted):
            rows = [self._data.row(message.split, number) for number in message.numbers]
            forms = tuple(form_of(row) for row in rows)
            return RowsGiven(self.job_id, message.split, message.numbers, forms), frames_of_rows(rows)
        pixels = [self._data.pixels(item.digest) for item in message.items]
        return PixelsGiven(self.job_id, message.items), frames_of_pixels(pixels)
