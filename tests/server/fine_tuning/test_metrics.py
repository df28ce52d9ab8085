"""What events say of a run, and the file that is made of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

import pytest

from opsin_server.fine_tuning.metrics import (
    EVALUATED,
    best_step,
    by_step,
    checkpoint_metrics,
    evaluation_event,
    result_csv,
    step_event,
    told_until,
)
from opsin_server.fine_tuning.model_names import checkpoint_name, model_name
from opsin_server.ipc.training_events import Evaluated, StepDone
from opsin_server.storage.records import JobCheckpoint, JobEvent, NewEvent


def told(*events: NewEvent) -> list[JobEvent]:
    kinds = ("message", "metrics")
    return [JobEvent(f"e{n}", e.level, kinds[e.metrics], e.message, e.data, float(n)) for n, e in enumerate(events)]  # type: ignore[arg-type]


def step(number: int, loss: float, norm: float = 1.0) -> StepDone:
    return StepDone(number, loss, 0.5, 1e-4, norm, 100, 10, number * 2.0)


def test_a_line_for_each_step() -> None:
    events = told(
        NewEvent("hello"),
        step_event(step(1, 2.0), 3),
        step_event(step(2, 1.5, math.nan), 3),
        evaluation_event(Evaluated(2, 1.25, 0.75, True), 3),
        step_event(step(3, 1.0), 3),
    )
    assert events[1].message == "Step 1/3: training loss=2.0000"
    assert events[2].data is not None
    assert events[2].data["gradient_norm"] is None
    rows = list(csv.DictReader(io.StringIO(result_csv(events))))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["full_valid_loss"] for row in rows] == ["", "1.25000", ""]
    assert rows[1]["full_valid_mean_token_accuracy"] == "0.75000"
    assert rows[0]["train_loss"] == "2.00000"
    assert rows[0]["train_accuracy"] == rows[0]["train_mean_token_accuracy"] == "0.50000"
    assert checkpoint_metrics(by_step(events)[2]) == {
        "step": 2,
        "train_loss": 1.5,
        "train_mean_token_accuracy": 0.5,
        "full_valid_loss": 1.25,
        "full_valid_mean_token_accuracy": 0.75,
    }


def test_names() -> None:
    name = model_name("Qwen/Qwen2-VL-2B", "my model @ home!", "ftjob-AbCdEfGhIjKl")
    assert name == "ft:Qwen2-VL-2B:opsin:my-model-home:AbCdEfGh"
    assert checkpoint_name(name, 12) == f"{name}:ckpt-step-12"
    assert model_name("m", None, "ftjob-AbCdEfGhIjKl") == "ft:m:opsin::AbCdEfGh"


@pytest.mark.parametrize(
    ("steps", "checkpoints", "evaluates", "until"),
    [
        (range(1, 6), {3}, 0, 5),
        (range(1, 6), set(), 0, 3),  # who heard of the checkpoint died before it was served
        (range(1, 7), {3}, 0, 6),
        (range(1, 7), {3, 6}, 0, 6),
        ([1, 2, 4], {3}, 0, 2),
        (range(1, 6), {3}, 3, 2),  # the evaluation at its end was not told
        ([], set(), 0, 0),
    ],
)
def test_a_run_goes_on_where_nothing_before_it_was_left_untold(
    steps: Iterable[int], checkpoints: set[int], evaluates: int, until: int
) -> None:
    told = {step: {"train_loss": 1.0} for step in steps}
    assert told_until(told, checkpoints, 6, 3, evaluates) == until


def test_the_best_checkpoint_is_the_first_with_the_lowest_validation_loss() -> None:
    losses = {5: 0.3, 4: 0.2, 3: None, 2: 0.2, 1: 0.4}  # the newest first, one whose loss was no number
    made = [JobCheckpoint("", step, "", {EVALUATED: loss}, 0.0) for step, loss in losses.items()]
    assert best_step(made) == 2
    assert best_step([JobCheckpoint("", 1, "", {}, 0.0)]) is None
