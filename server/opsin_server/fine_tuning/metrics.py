"""Numbers of a run as events tell them, and as the result file has them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

from opsin_server.ipc.training_events import Evaluated, StepDone
from opsin_server.storage.records import JobCheckpoint, JobEvent, NewEvent

# Azure's, and at the end what OpenAI itself calls some of them.
COLUMNS = (
    "step", "train_loss", "train_mean_token_accuracy", "valid_loss", "validation_mean_token_accuracy",
    "full_valid_loss", "full_valid_mean_token_accuracy", "train_accuracy",
)  # fmt: skip
TRAINED, EVALUATED = "train_loss", "full_valid_loss"


def step_event(event: StepDone, total: int) -> NewEvent:
    data = {
        "step": event.step,
        "total_steps": total,
        "train_loss": _finite(event.loss),
        "train_mean_token_accuracy": _finite(event.accuracy),
        "learning_rate": _finite(event.rate),
        "gradient_norm": _finite(event.norm),
        "trained_tokens": event.tokens,
    }
    return NewEvent(f"Step {event.step}/{total}: training loss={event.loss:.4f}", data=data, metrics=True)


def evaluation_event(event: Evaluated, total: int) -> NewEvent:
    data = {
        "step": event.step,
        "total_steps": total,
        "full_valid_loss": _finite(event.loss),
        "full_valid_mean_token_accuracy": _finite(event.accuracy),
    }
    return NewEvent(f"Step {event.step}/{total}: full validation loss={event.loss:.4f}", data=data, metrics=True)


def by_step(events: Iterable[JobEvent]) -> dict[int, dict[str, Any]]:
    """What metric events say of each step, in order."""
    found: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.kind == "metrics" and event.data is not None:
            found.setdefault(int(event.data["step"]), {}).update(event.data)
    return dict(sorted(found.items()))


def told_checkpoints(events: Iterable[JobEvent]) -> set[int]:
    """Steps whose checkpoints were served, or were said to be none that can be."""
    data = (event.data for event in events if event.kind == "message" and event.data is not None)
    return {int(one["step"]) for one in data if "step" in one}


def told_until(
    told: Mapping[int, Mapping[str, Any]], checkpoints: Container[int], total: int, per_epoch: int, evaluates: int
) -> int:
    """The step up to which there is nothing that was not told, but for the checkpoint at that step itself, which a run
    that goes on from it tells of again. checkpoints: those that were told; they are at the ends of epochs. evaluates:
    after so many steps, and after the last of all, is the validation set gone through; 0: there is none."""
    step = 0
    while TRAINED in (numbers := told.get(step + 1, {})):
        due = evaluates and ((step + 1) % evaluates == 0 or step + 1 == total)
        if due and EVALUATED not in numbers:
            break
        step += 1
        if (step % per_epoch == 0 or step == total) and step not in checkpoints:
            break
    return step


def checkpoint_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    names = ("train_loss", "train_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")
    return {"step": metrics.get("step")} | {name: metrics[name] for name in names if name in metrics}


def best_step(checkpoints: Iterable[JobCheckpoint]) -> int | None:
    """That with the lowest loss on the validation file, the first of equals: it becomes the model."""
    known = [one for one in checkpoints if one.metrics.get(EVALUATED) is not None]
    return min(known, key=lambda one: (one.metrics[EVALUATED], one.step)).step if known else None


def result_csv(events: Iterable[JobEvent]) -> str:
    """One line a step, with OpenAI's columns."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(COLUMNS)
    for step, numbers in by_step(events).items():
        row = numbers | {"train_accuracy": numbers.get("train_mean_token_accuracy")}
        lines.writerow([step, *(_number(row.get(name)) for name in COLUMNS[1:])])
    return text.getvalue()


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5f}"
