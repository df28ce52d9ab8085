"""An engine that trains nothing, and says of it what the real one would: steps, evaluations, checkpoints in a folder,
and ends. It goes on when it is told to, and can die."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from opsin_server.adapters.catalogue import Snapshot
from opsin_server.errors import Unavailable
from opsin_server.ipc.messages import Frame
from opsin_server.ipc.training_events import CheckpointSaved, Evaluated, StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_messages import StartTraining, StopTraining, ToTraining, TrainingEvents
from opsin_server.ipc.training_run import TrainingRun

PREFIX = "checkpoint-"
CONTENT = "made.txt"


def loss_of(step: int) -> float:
    return 1.0 + 1.0 / step


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


class _Training:
    """A run in the engine. waiting: a checkpoint that is on the disk, and has not been told of."""

    def __init__(self, start: StartTraining) -> None:
        self.start, self.folder, self.stop = start, Path(start.folder), ""
        self.waiting: CheckpointSaved | None = None
        self.per_epoch = -(-start.rows // min(start.rows, start.settings.batch_size))
        self.total = self.per_epoch * start.settings.epochs
        self.folder.mkdir(parents=True, exist_ok=True)
        for later in [path for path in self._checkpoints() if 0 <= start.known < _step_of(path)]:
            shutil.rmtree(later)
        self.step = max(map(_step_of, self._checkpoints()), default=0)
        self.saved = self.step
        if self.step:
            self.waiting = CheckpointSaved(self.step, str(self.folder / f"{PREFIX}{self.step}"))

    def _checkpoints(self) -> list[Path]:
        return list(self.folder.glob(f"{PREFIX}*"))

    def due(self, every: int | None) -> bool:
        return self.step % (every or self.per_epoch) == 0 or self.step == self.total

    def save(self) -> list[TrainingEvent]:
        """The checkpoint is whole, and is told of later: what is told now is the one before."""
        told = self.told()
        made, part = self.folder / f"{PREFIX}{self.step}", self.folder / ".part"
        part.mkdir()
        (part / CONTENT).write_text(f"{self.start.job_id} {self.step}")
        part.rename(made)
        self.saved, self.waiting = self.step, CheckpointSaved(self.step, str(made))
        return told

    def told(self) -> list[TrainingEvent]:
        told, self.waiting = self.waiting, None
        for old in sorted(self._checkpoints(), key=_step_of)[: -self.start.settings.keep_checkpoints]:
            shutil.rmtree(old)
        return [] if told is None else [told]

    def move(self) -> list[TrainingEvent]:
        """A step with what belongs to it, or the end."""
        said: list[TrainingEvent] = []
        if self.step < self.total and not self.stop:
            self.step += 1
            said.append(StepDone(self.step, loss_of(self.step), 0.5, 1e-3, 1.0, 10, 5, float(self.step)))
            evaluates = self.start.valid_rows > 0 and self.due(self.start.settings.evaluate_every)
            if evaluates:
                said.append(Evaluated(self.step, loss_of(self.step), 0.5, True))
            if evaluates or self.due(self.start.settings.save_every):
                said += self.save()
            return said
        if self.stop and self.step > self.saved:
            said += self.save()
        said += self.told()
        found = self.folder / f"{PREFIX}{self.saved}"
        status = self.stop or "succeeded"
        said.append(TrainingEnded(status, self.step, 10 * self.step, str(found) if self.saved else ""))  # type: ignore[arg-type]
        return said


class FakeTrainingEngine:
    """The `Trainer` of a service. check: asked before anything is made of a job. most: runs at the same time."""

    def __init__(self, check: Callable[[str], None], most: int) -> None:
        self.ready, self.disk_is_full, self.most = True, False, most
        self.runs: dict[str, TrainingRun] = {}
        self.given_up: set[str] = set()  # jobs whose failure is the engine's
        self.steps: list[tuple[str, int]] = []  # that were made, all of them
        self._check, self._trainings = check, dict[str, _Training]()

    @property
    def going(self) -> list[str]:
        return list(self._trainings)

    @property
    def unstopped(self) -> list[str]:
        return [job_id for job_id, training in self._trainings.items() if not training.stop]

    def train(self, run: TrainingRun, resume: bool = False) -> None:
        assert resume, "a job that begins again would lose its checkpoints"
        if not self.ready:
            raise Unavailable("the engine is restarting")
        assert run.job_id not in self.runs, "a run that goes on already"
        self.runs[run.job_id] = run
        run.start(self._take, resume)

    def work(self, job_id: str) -> None:
        """One step of a run, or its end."""
        training, run = self._trainings[job_id], self.runs[job_id]
        if not training.stop:
            self._check(job_id)
        before = training.step
        try:
            if self.disk_is_full and training.step < training.total:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            said = training.move()
        except OSError as error:
            self.given_up.add(job_id)
            said = [TrainingEnded("failed", training.step, 0, error=f"a checkpoint could not be written: {error}")]
        if training.step > before:
            self.steps.append((job_id, training.step))
        run.hear(TrainingEvents(job_id, tuple(said)))
        if run.ended is not None:
            del self._trainings[job_id], self.runs[job_id]

    def die(self) -> None:
        """Its supervisor loses the runs that it had, and gives up those that were there at two deaths in a row."""
        self.ready = False
        self._trainings.clear()
        for job_id, run in list(self.runs.items()):
            run.lost()
            if run.ended is not None:
                self.given_up.add(job_id)
                del self.runs[job_id]

    def live(self) -> None:
        self.ready = True
        for run in self.runs.values():
            run.start(self._take, resume=True)

    def forget(self) -> None:
        """It ends with the process that it belongs to."""
        self._trainings.clear()
        self.runs.clear()
        self.ready = True

    def _take(self, message: ToTraining, frames: Sequence[Frame]) -> None:
        if isinstance(message, StartTraining):
            assert message.job_id not in self._trainings, "trained twice at the same time"
            self._check(message.job_id)
            self._trainings[message.job_id] = _Training(message)
            assert len(self._trainings) <= self.most, "more runs than there may be"
        elif isinstance(message, StopTraining) and message.job_id in self._trainings:
            self._trainings[message.job_id].stop = message.status


class _Catalogue:
    def __init__(self) -> None:
        self.snapshot = Snapshot()

    def find(self, name: str) -> None:
        """Every name that is asked for is the base model's."""


class FakeAdapters:
    """What serves adapters, as jobs use it. served: the content of what each name means, and has meant."""

    def __init__(self, copy: Callable[[Path], str]) -> None:
        self.served: dict[str, list[str]] = {}
        self.catalogue = _Catalogue()
        self._copy = copy

    async def load(self, name: str, directory: Path, options: object) -> None:
        content = await asyncio.to_thread(self._copy, directory / CONTENT)
        self.served.setdefault(name, []).append(content)

    async def unload(self, name: str) -> None:
        self.served.pop(name)
