"""A training run as a generator of pieces, from its first row to its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError

from opsin_plugins.loading.published_projector import PublishedProjector
from opsin_server.engine.training import memory, micro_step
from opsin_server.engine.training.checkpoint_files import Checkpoint, CheckpointFolder, read_state
from opsin_server.engine.training.kept_bytes import KeptBytes
from opsin_server.engine.training.memory import LargestRow, MemoryPool
from opsin_server.engine.training.micro_batch import MicroBatch, collate
from opsin_server.engine.training.micro_step import VisualInput
from opsin_server.engine.training.modules import trained_modules
from opsin_server.engine.training.objectives import Objective, Preference, Supervised, log_likelihoods
from opsin_server.engine.training.optimizer import Optimizer
from opsin_server.engine.training.peft_form import peft_config, peft_tensors, take_peft_tensors
from opsin_server.engine.training.pieces import Piece, Pieces
from opsin_server.engine.training.row_order import RowOrder, packed
from opsin_server.engine.training.row_source import RowSource
from opsin_server.engine.training.run_progress import Progress, Sums
from opsin_server.engine.training.tensor_store import TensorStore
from opsin_server.engine.training.trained_model import TrainedModel, TrainingFailed, whole_projector
from opsin_server.engine.training.trainee import Trainee
from opsin_server.engine.training.visual_tokens import VisualTokens
from opsin_server.ipc.training_events import CheckpointSaved, Evaluated, Status, StepDone, TrainingEnded, TrainingEvent
from opsin_server.ipc.training_messages import Split
from opsin_server.ipc.training_rows import TrainingRow
from opsin_server.ipc.training_settings import TrainingSettings

WAITING = Piece("waiting", 0)  # nothing can be done before rows come
MAX_UNUSABLE = 3  # steps in a row whose gradient is not finite


@dataclass(frozen=True)
class RunShape:
    """Of a run's rows. largest: of them. probe: the number of one that has all that rows have, to count with."""

    largest: LargestRow
    probe: int = 0


class Trainer:
    """events: what has happened, for whoever drives this to take. folder: where checkpoints go. pool: the memory of all
    runs over this base. stores: their visual tokens, to which this run's are added.

    Raises SpecError for modules that the model does not have.
    """

    def __init__(
        self,
        base: TrainedModel,
        settings: TrainingSettings,
        source: RowSource,
        folder: Path,
        pool: MemoryPool,
        shape: RunShape,
        stores: list[TensorStore] | None = None,
    ) -> None:
        self.settings, self.source, self._base = settings, source, base
        self.checkpoints = CheckpointFolder(folder)
        whole = whole_projector(base) if settings.full_projector else None
        modules = trained_modules(settings.modules, base.targets)
        self.trainee = Trainee(modules, base.linears, settings, base.device, whole)
        self._published = base.projector if isinstance(base.projector, PublishedProjector) and whole else None
        self._reference_model: Trainee | None = None  # None: the base
        if settings.start:
            self._take_start(self.trainee)
            if settings.method == "dpo":
                self._reference_model = Trainee(modules, base.linears, settings, base.device, whole)
                self._take_start(self._reference_model)
                self._reference_model.freeze()
        self.order = RowOrder(source.count("train"), settings.batch_size, settings.seed)
        self.total = settings.max_steps or settings.epochs * self.order.steps_per_epoch
        self.optimizer = Optimizer(self.trainee, settings, self.total)
        self.progress = Progress()
        self.events: list[TrainingEvent] = []
        self._weights = [*base.model.parameters(), *base.model.buffers(), self.trainee.flat, self.trainee.gradient]
        self._pool, self._taken, self._shape = pool, 0, shape
        self._kept, self._micro_batch_tokens = KeptBytes(0), 0  # settled by the first pieces, or as they once were
        self._frozen_vision = whole is None and all(module.part == "language" for module in modules)
        self._store, self._stores = TensorStore(0, folder), [] if stores is None else stores
        self._rows_of_one = 1 if settings.method == "supervised" else 2
        self._references: dict[tuple[Split, int], torch.Tensor] = {}  # of pairs, by their split and number
        self._visual_tokens = VisualTokens(base.model, self._store, base.device, self._stores)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="opsin-checkpoint")
        self._writing: Future[Path] | None = None
        self._stop: Literal["paused", "cancelled"] | None = None
        self._clock = 0.0
        self.updating = False  # whether an update is half done
        self._saved = 0  # the step of the last checkpoint that was begun
        self._stores.append(self._store)

    def stop(self, status: Literal["paused", "cancelled"]) -> None:
        """Ends the run at the next step's end, with a checkpoint."""
        self._stop = status

    def run(self) -> Pieces:
        """Goes on from where `resume` has left it. Raises TrainingFailed."""
        yield from self._settle()
        while self.progress.step < self.total and self._stop is None:
            self._clock = time.monotonic()
            yield from self._step(self.progress.step)
            if self._writing is not None and self._writing.done():  # told now, and not when the next is written
                yield from self._written()
            evaluates = self._due(self.settings.evaluate_every) and self.source.count("valid") > 0
            if evaluates:
                yield from self._evaluate()
            if self._due(self.settings.save_every) or evaluates:
                yield from self._save()
            if self.settings.patience is not None and self.progress.worse >= self.settings.patience:
                break
        if self._stop is not None and self.progress.step > self._saved:
            yield from self._save()
        yield from self._written()
        status: Status = self._stop or "succeeded"
        chosen = self.checkpoints.chosen(self.progress.best_step)
        self.events.append(
            TrainingEnded(status, self.progress.step, self.progress.tokens, "" if chosen is None else str(chosen))
        )

    def close(self) -> None:
        """Whatever is being written is written."""
        self._writer.shutdown()
        self._stores.remove(self._store)
        self._store.close()
        self._pool.give_back(self._taken)

    def save_now(self) -> None:
        """Writes what the steps so far have made, before the process ends; what a step that runs has done is lost.
        Not while `updating`. Raises OSError."""
        if self._writing is not None:
            self._writing.result()
        assert not self.updating
        if self.progress.step > self._saved:
            self.checkpoints.write(self.checkpoint())

    def _settle(self) -> Pieces:
        """Counts what the run needs. Raises DoesNotFit."""
        rows = yield from self._rows("train", [self._shape.probe])
        batch = self._batch(rows, range(1))
        visual = yield from self._visual(batch)
        frozen = 0 if self._reference_model is None else len(self._reference_model.flat)
        trained = len(self.trainee.flat)
        found = yield from memory.count(self._base.model, batch, visual, self.trainee.lora(0), trained, frozen)
        largest = self._shape.largest
        self._taken = self._pool.take(found.needs(largest.tokens, largest.patches))
        asked = self._micro_batch_tokens or self.settings.micro_batch_tokens
        settled = found.settle(asked, largest, self._taken)
        self._micro_batch_tokens, self._store.budget = settled.micro_batch_tokens, settled.store
        self._kept = KeptBytes(settled.kept, self._weights)
        self.source.keep(settled.store)

    # ------------------------------------------------------------------------------------------- a step

    def _step(self, step: int) -> Pieces:
        numbers = self.order.rows_of(step)
        rows = yield from self._rows("train", numbers)
        if step + 1 < self.total:
            self.source.want("train", self._row_numbers(self.order.rows_of(step + 1)), self._needs)
        sums = Sums()
        for number, group in enumerate(self._groups(rows)):
            batch = self._batch(rows, group)
            objective = yield from self._objective(batch, rows, "train", [numbers[i] for i in group])
            visual = yield from self._visual(batch)
            lora = self.trainee.lora(seed_of(self.settings.seed, step, number))
            found = yield from micro_step.train(self._base.model, batch, visual, lora, self._kept, objective)
            sums.add(batch, objective.score(found))
        self.updating = True
        update = yield from self.optimizer.update()
        self.updating = False
        self._count(update.norm, sums.tokens)
        self.events.append(
            StepDone(
                step=self.progress.step,
                loss=sums.mean,
                accuracy=sums.accuracy,
                rate=update.rate,
                norm=update.norm,
                tokens=sums.tokens,
                labels=sum(int(row.labels.sum()) for row in rows),
                seconds=self.progress.seconds,
            )
        )

    def _count(self, norm: float, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += time.monotonic() - self._clock
        progress.unusable = 0 if math.isfinite(norm) else progress.unusable + 1
        if progress.unusable >= MAX_UNUSABLE:
            raise TrainingFailed(
                f"the gradient of {MAX_UNUSABLE} steps in a row, up to step {progress.step}, was not finite: a smaller "
                "learning rate, or rows without extreme lengths, may help"
            )

    def _rows(self, split: Split, numbers: Sequence[int]) -> Generator[Piece, None, list[TrainingRow]]:
        own = self._row_numbers(numbers)
        self.source.want(split, own, self._needs)
        while (rows := self.source.take(split, own)) is None:
            yield WAITING
        return rows

    def _row_numbers(self, numbers: Sequence[int]) -> list[int]:
        """Of rows, or of both rows of each pair."""
        size = self._rows_of_one
        return [size * number + i for number in numbers for i in range(size)]

    def _needs(self, digest: bytes) -> bool:
        return not self._frozen_vision or self._visual_tokens.needs(digest)

    def _groups(self, rows: Sequence[TrainingRow]) -> list[list[int]]:
        """Which rows, or pairs, of a step are computed together, by their places in it."""
        size = self._rows_of_one
        lengths = [sum(len(row.ids) for row in rows[i : i + size]) for i in range(0, len(rows), size)]
        return packed(range(len(lengths)), lengths, self._micro_batch_tokens)

    def _batch(self, rows: Sequence[TrainingRow], group: Sequence[int]) -> MicroBatch:
        size = self._rows_of_one
        mine = [row for i in group for row in rows[i * size : (i + 1) * size]]
        return collate(mine, self._base.model.spec, self._base.device)

    def _objective(
        self, batch: MicroBatch, rows: Sequence[TrainingRow], split: Split, numbers: Sequence[int]
    ) -> Generator[Piece, None, Objective]:
        """rows: of the whole step. numbers: of the micro-batch's rows or pairs in their file."""
        if self.settings.method == "supervised":
            return Supervised(sum(int(row.labels.sum()) for row in rows))
        references = []
        for place, number in enumerate(numbers):
            references.append((yield from self._reference(split, number, batch.rows[2 * place : 2 * place + 2])))
        return Preference(batch.counts, torch.cat(references), self.settings.beta, len(rows) // 2)

    def _reference(
        self, split: Split, number: int, pair: Sequence[TrainingRow]
    ) -> Generator[Piece, None, torch.Tensor]:
        """What the model that training starts from makes of a pair, computed once, and alone: the same whatever else a
        step has."""
        if (split, number) not in self._references:
            batch = collate(pair, self._base.model.spec, self._base.device)
            visual = yield from self._visual(batch)
            lora = None if self._reference_model is None else self._reference_model.lora(None)
            found = yield from micro_step.evaluate(self._base.model, batch, visual, lora)
            self._references[split, number] = log_likelihoods(found.losses, batch.counts).cpu()
        return self._references[split, number]

    def _visual(self, batch: MicroBatch) -> Generator[Piece, None, VisualInput]:
        if not batch.items:
            return VisualInput()
        if self._frozen_vision:
            return VisualInput(tokens=(yield from self._visual_tokens.of(batch.items, self.source)))
        return VisualInput([self.source.pixels(item) for item in batch.items])

    # ----------------------------------------------------------------------- evaluation and checkpoints

    def _due(self, every: int | None) -> bool:
        return self.progress.step % (every or self.order.steps_per_epoch) == 0 or self.progress.step == self.total

    def _evaluate(self) -> Pieces:
        """Nothing is kept of one micro-batch when the next begins."""
        count, size, sums = self.source.count("valid"), self.order.batch, Sums()
        for first in range(0, count, size):
            numbers = range(first, min(first + size, count))
            rows = yield from self._rows("valid", numbers)
            for group in self._groups(rows):
                batch = self._batch(rows, group)
                objective = yield from self._objective(batch, rows, "valid", [numbers[i] for i in group])
                visual = yield from self._visual(batch)
                found = yield from micro_step.evaluate(self._base.model, batch, visual, self.trainee.lora(None))
                sums.add(batch, objective.score(found))
        progress = self.progress
        best = progress.best_loss is None or sums.mean < progress.best_loss
        progress.worse = 0 if best else progress.worse + 1
        if best:
            progress.best_loss, progress.best_step = sums.mean, progress.step
        self.events.append(Evaluated(progress.step, sums.mean, sums.accuracy, best))

    def _save(self) -> Pieces:
        """The copy is a piece; the file is written by a thread while training goes on."""
        yield from self._written()
        yield Piece("checkpoint", len(self.trainee.flat))
        made, self._saved = self.checkpoint(), self.progress.step
        self._writing = self._writer.submit(self.checkpoints.write, made)

    def _written(self) -> Pieces:
        while self._writing is not None and not self._writing.done():
            yield WAITING
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            folder = writing.result()
        except OSError as error:
            raise TrainingFailed(f"a checkpoint could not be written: {error.strerror or error}") from error
        self.events.append(CheckpointSaved(int(folder.name.rpartition("-")[2]), str(folder)))
        self.checkpoints.forget(self.settings.keep_checkpoints, self.progress.best_step)

    @property
    def _asked(self) -> dict[str, Any]:
        """The settings, as JSON gives them back."""
        found: dict[str, Any] = json.loads(msgspec.json.encode(self.settings))
        return found

    def checkpoint(self) -> Checkpoint:
        """Of now, copied."""
        trainee, optimizer = self.trainee, self.optimizer
        state = {"flat": trainee.flat, "first": optimizer.first, "second": optimizer.second}
        return Checkpoint(
            step=self.progress.step,
            adapter=peft_tensors(trainee, self._published),
            config=peft_config(trainee.modules, self.settings, self._base.name, self._published),
            state={name: tensor.detach().cpu().clone() for name, tensor in state.items()},
            numbers={
                **vars(self.progress),
                "updates": optimizer.steps,
                "rows": self.order.count,
                "micro_batch_tokens": self._micro_batch_tokens,
                "settings": self._asked,
            },
        )

    def _take_start(self, trainee: Trainee) -> None:
        try:
            take_peft_tensors(trainee, self.checkpoints.start(), self._published)
        except (OSError, ValueError, SafetensorError) as error:
            raise TrainingFailed(f"the adapter that training starts from cannot be read: {error}") from None

    def resume(self, known: int = -1) -> bool:
        """Goes on from the newest checkpoint in the folder; whether there is one. It is told of once more: who heard
        of it may have died then. known: the step up to which all was heard; later checkpoints are forgotten, since
        their steps would never be told. Raises TrainingFailed for one of another run, OSError."""
        if known >= 0:
            self.checkpoints.forget_after(known)
        newest = self.checkpoints.newest
        if newest is None:
            return False
        state, numbers = read_state(newest)
        of_then = {"start": "", **numbers.pop("settings"), "rows": numbers.pop("rows")}
        asked = {**self._asked, "rows": self.order.count}
        if differing := sorted(name for name, value in asked.items() if of_then.get(name) != value):
            raise TrainingFailed(f"{newest.name} is of another run: {', '.join(differing)} differ")
        with torch.no_grad():
            self.trainee.flat.copy_(state["flat"])
            self.optimizer.first.copy_(state["first"])
            self.optimizer.second.copy_(state["second"])
        self.optimizer.steps = numbers.pop("updates")
        self._micro_batch_tokens = numbers.pop("micro_batch_tokens")
        self._saved = numbers["step"]
        self.progress = Progress(**numbers)
        self.events.append(CheckpointSaved(self.progress.step, str(newest)))
        return True


def seed_of(*numbers: int) -> int:
    """Of a micro-batch's dropout: by the run's seed, the step, and the micro-batch's number in it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
