"""Training by the clock: steps until the time budget is used, marked and saved on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mini_opsin import checkpoint, exam
from mini_opsin.batches import Batch
from mini_opsin.ranks import agree
from mini_opsin.trainer import Trainer

LOG_EVERY = 25  # steps


@dataclass(frozen=True)
class Budget:
    minutes: float
    start: float  # share of the schedule that was already used
    marks: tuple[float, ...]  # minutes at which the model is examined and saved, beside the end


class Log:
    """Lines of JSON in out/log.jsonl and on the screen, from rank 0 alone."""

    def __init__(self, trainer: Trainer, out: Path) -> None:
        self.trainer, self.path = trainer, out / "log.jsonl"

    def write(self, when: dict[str, float], found: Mapping[str, object]) -> None:
        t = self.trainer
        if t.rank:
            return
        line = json.dumps({**when, "step": t.step, "images": t.images, "questions": t.questions, **found})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def run(trainer: Trainer, held_out: list[Batch], budget: Budget, out: Path) -> None:
    """Saves out/last.safetensors and one file a mark. Rank 0's clock is everyone's: all must agree on stage and end."""
    began = time.monotonic() - budget.start * budget.minutes * 60
    marks = [m for m in sorted(budget.marks) if m > budget.start * budget.minutes]
    log, sums, counted = Log(trainer, out), dict[str, float](), 0
    while True:
        minutes = agree((time.monotonic() - began) / 60)
        fraction = min(1.0, minutes / budget.minutes)
        if fraction >= 1 or (marks and minutes >= marks[0]):
            marks = [m for m in marks if m > minutes]
            trainer.fraction = fraction
            check_agreement(trainer)
            log.write({"mark": round(minutes, 1)}, examine(trainer, held_out))
            save(trainer, out, minutes)
        if fraction >= 1:
            return
        parts = trainer.train_step(fraction)
        sums = {k: sums.get(k, 0.0) + v for k, v in parts.items()}
        counted += 1
        if trainer.step % LOG_EVERY == 0:
            log.write({"min": round(minutes, 2)}, {k: round(v / counted, 4) for k, v in sums.items()})
            sums, counted = {}, 0


def check_agreement(trainer: Trainer) -> None:
    """All ranks hold the same weights, to the last bit; raises RuntimeError where one has drifted."""
    weights = sum(float(p.detach().double().sum()) for p in trainer.named.values())
    if weights != agree(weights):
        raise RuntimeError(f"rank {trainer.rank} has other weights than rank 0 at step {trainer.step}")


def examine(trainer: Trainer, held_out: list[Batch]) -> dict[str, object]:
    """All ranks mark the held-out set together; percent and n of each task."""
    table = exam.score(trainer.model, held_out, trainer.dtype)
    rates = {task: [round(100 * right / n, 1), n] for task, (right, n) in table.items()}
    return {"all": exam.overall(table) if table else None, "table": rates}


def save(trainer: Trainer, out: Path, minutes: float) -> None:
    if trainer.rank:
        return
    checkpoint.save(trainer, out / "last.safetensors")
    checkpoint.save(trainer, out / f"mark{round(minutes):03d}.safetensors")
