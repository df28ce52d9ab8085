"""All training runs of an engine process: each in turn, a piece at a time. One that fails fails alone."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from opsin_plugins.spec import SpecError
from opsin_server.engine.training.memory import DoesNotFit, LargestRow, MemoryPool
from opsin_server.engine.training.pieces import Piece, Pieces
from opsin_server.engine.training.remote_rows import RemoteRows
from opsin_server.engine.training.tensor_store import TensorStore
from opsin_server.engine.training.trained_model import TrainedModel, TrainingFailed
from opsin_server.engine.training.trainer import WAITING, RunShape, Trainer
from opsin_server.ipc.training_events import Notice, TrainingEnded
from opsin_server.ipc.training_frames import pixels_from, rows_from
from opsin_server.ipc.training_messages import (
    FromTraining,
    PixelsGiven,
    RowsFailed,
    RowsGiven,
    StartTraining,
    StopTraining,
    ToTraining,
    TrainingEvents,
)

log = logging.getLogger("opsin.training")


@dataclass
class _Job:
    """next: the piece that runs when it is this job's turn."""

    job_id: str
    trainer: Trainer
    rows: RemoteRows
    pieces: Pieces
    next: Piece = WAITING


class TrainingJobs:
    def __init__(
        self,
        base: TrainedModel | None,
        send: Callable[[FromTraining], None],
        memory: int,
        most: int,
    ) -> None:
        """base: None: of a model that is not trained. memory: bytes that training has. most: runs at the same time."""
        self._base, self._send, self._memory, self._most = base, send, MemoryPool(memory, most), most
        self._jobs: deque[_Job] = deque()
        self._visual_tokens: list[TensorStore] = []  # of all runs, each of which may take from the others

    def __len__(self) -> int:
        return len(self._jobs)

    def next_piece(self) -> Piece | None:
        """What `advance` runs; None: there is nothing, or all wait for rows or for a disk."""
        for job in list(self._jobs):
            if job.next is WAITING:
                self._look(job)
            if self._jobs and self._jobs[0].next is not WAITING:
                return self._jobs[0].next
            self._jobs.rotate(-1)
        return None

    def advance(self) -> None:
        """Runs one piece of the job whose turn it is; after an update it is the next one's."""
        if self.next_piece() is None:
            return
        job = self._jobs[0]
        self._look(job)
        if job.next.kind == "norm":
            self._jobs.rotate(-1)

    def take(self, message: ToTraining, frames: Sequence[bytes]) -> None:
        """Whatever is wrong with a message ends that job."""
        try:
            self._take(message, frames)
        except Exception as error:
            if not isinstance(error, SpecError | ValueError | TrainingFailed | OSError):
                log.exception("training %s could not take a message", message.job_id)
            self._end(message.job_id, str(error))

    def notice(self, text: str) -> None:
        """Something that the owners of all runs should know."""
        for job in self._jobs:
            self._send(TrainingEvents(job.job_id, (Notice(text),)))

    def close(self) -> None:
        """The process ends: each run has a checkpoint that it can go on from."""
        for job in self._jobs:
            try:
                while job.trainer.updating:
                    next(job.pieces)
                job.trainer.save_now()
            except OSError:
                log.exception("training %s could not write its last checkpoint", job.job_id)
            _close(job)
        self._jobs.clear()

    def _take(self, message: ToTraining, frames: Sequence[bytes]) -> None:
        if isinstance(message, StartTraining):
            self._start(message)
            return
        job = self._job(message.job_id)
        if job is None:  # it has ended meanwhile
            return
        if isinstance(message, RowsGiven):
            job.rows.give_rows(message.split, message.numbers, rows_from(message, frames))
        elif isinstance(message, PixelsGiven):
            for item, pixels in pixels_from(message, frames):
                job.rows.give_pixels(item, pixels)
        elif isinstance(message, StopTraining):
            job.trainer.stop(message.status)
        elif isinstance(message, RowsFailed):
            self._end(message.job_id, message.error)

    def _start(self, message: StartTraining) -> None:
        if self._job(message.job_id) is not None:
            raise ValueError(f"{message.job_id} runs already")
        if self._base is None:
            raise ValueError("this model makes embeddings alone: it is not trained here")
        if not self._memory.total:
            raise ValueError("this server has no memory for training (--train-memory)")
        if len(self._jobs) >= self._most:
            raise ValueError(
                f"{self._most} training runs are going on, and there is memory for no more (--max-train-jobs)"
            )
        folder = Path(message.folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = RemoteRows(message.job_id, self._send, message.rows, message.valid_rows, TensorStore(0, folder))
        shape = RunShape(LargestRow(message.largest_tokens, message.largest_patches), message.probe)
        trainer = Trainer(self._base, message.settings, rows, folder, self._memory, shape, self._visual_tokens)
        job = _Job(message.job_id, trainer, rows, trainer.run())
        try:
            if message.resume:
                trainer.resume(message.known)
            elif trainer.checkpoints.newest is not None:
                raise ValueError(f"{folder} has checkpoints of a run: go on with it, or give another folder")
        except BaseException:
            _close(job)
            raise
        self._jobs.append(job)

    def _look(self, job: _Job) -> None:
        """Runs what stands before the job's next piece. Whatever is raised there is this job's alone."""
        try:
            found = next(job.pieces, None)
        except DoesNotFit as error:
            self._end(job.job_id, f"{error}; {self._remedy(error.least)}", waits=error.least <= self._memory.total)
            return
        except TrainingFailed as error:
            self._end(job.job_id, str(error))
            return
        except Exception as error:
            log.exception("training %s failed", job.job_id)
            self._end(job.job_id, _told(error))
            return
        if job.trainer.events:
            self._send(TrainingEvents(job.job_id, tuple(job.trainer.events)))
            job.trainer.events.clear()
        if found is None:
            self._jobs.remove(job)
            _close(job)
        else:
            job.next = found

    def _remedy(self, least: int) -> str:
        """What would give a run so many bytes."""
        if least <= self._memory.total:
            return "other runs have the rest: it fits when they have ended"
        return f"--train-memory {least} would do"

    def _end(self, job_id: str, error: str, waits: bool = False) -> None:
        job, step, tokens = self._job(job_id), 0, 0
        if job is not None:
            self._jobs.remove(job)
            step, tokens = job.trainer.progress.step, job.trainer.progress.tokens
            _close(job)
        self._send(TrainingEvents(job_id, (TrainingEnded("failed", step, tokens, error=error, waits=waits),)))

    def _job(self, job_id: str) -> _Job | None:
        return next((job for job in self._jobs if job.job_id == job_id), None)


def _close(job: _Job) -> None:
    job.pieces.close()  # type: ignore[attr-defined]
    job.trainer.close()
    job.rows.close()


def _told(error: Exception) -> str:
    """For the job's owner, who does not see the server's log."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return "there was not enough memory for a step: fewer tokens in a row, or a smaller rank, need less"
    return f"training failed by an error of the server ({type(error).__name__}); its log says more"
