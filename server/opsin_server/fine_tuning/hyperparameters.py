"""OpenAI's hyperparameters: what "auto" becomes, and what the trainer is told. docs/fine-tuning-api.md says the rule
and what was measured of it."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from opsin_server.jobs.training_options import TrainingOptions

Auto = Literal["auto"]
ROWS_OF_A_STEP = 64  # a step has one row for so many of the file
LARGEST_BATCH = 32
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 500, 3, 25  # steps that are worth making, within so many epochs
RATE, WIDTH, HIGHEST_RATE = 2e-4, 4096, 2e-3  # of a model of such a width; narrower ones learn faster
PREFERENCES = 0.1  # of that rate: they move a model that answers already
VISION = 0.5  # of the language's rate


class Hyperparameters(msgspec.Struct, frozen=True):
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"
    n_epochs: int | Auto = "auto"
    beta: float | Auto = "auto"


class Resolved(msgspec.Struct, frozen=True):
    """As a job reports them. learning_rate: of the language's factors, the multiplier in it."""

    batch_size: int
    learning_rate_multiplier: float
    n_epochs: int
    beta: float
    learning_rate: float


def resolve(
    asked: Hyperparameters, rows: int, width: int, options: TrainingOptions, *, preferences: bool = False
) -> Resolved:
    """rows: to train on. width: of the decoder. options: whose learning rate, unless it is the default, is what the
    multiplier is of."""
    batch = asked.batch_size if asked.batch_size != "auto" else _batch(rows)
    epochs = asked.n_epochs if asked.n_epochs != "auto" else LEAST_EPOCHS if preferences else _epochs(rows, batch)
    multiplier = asked.learning_rate_multiplier if asked.learning_rate_multiplier != "auto" else 1.0
    base = options.learning_rate
    if base == TrainingOptions().learning_rate:
        base = min(HIGHEST_RATE, RATE * WIDTH / width) * (PREFERENCES if preferences else 1.0)
    beta = asked.beta if asked.beta != "auto" else options.beta
    return Resolved(min(batch, rows), multiplier, epochs, beta, min(1.0, base * multiplier))


def training_options(options: TrainingOptions, resolved: Resolved, seed: int) -> TrainingOptions:
    vision = options.vision_learning_rate or VISION * resolved.learning_rate
    return replace(
        options,
        learning_rate=resolved.learning_rate,
        vision_learning_rate=vision,
        batch_size=resolved.batch_size,
        epochs=resolved.n_epochs,
        beta=resolved.beta,
        seed=seed,
    )


def described(resolved: Resolved, method: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n_epochs": resolved.n_epochs,
        "batch_size": resolved.batch_size,
        "learning_rate_multiplier": resolved.learning_rate_multiplier,
    }
    return found | ({"beta": resolved.beta} if method == "dpo" else {})


def _batch(rows: int) -> int:
    return min(LARGEST_BATCH, 2 ** max(0, round(math.log2(max(1, rows) / ROWS_OF_A_STEP))))


def _epochs(rows: int, batch: int) -> int:
    return max(LEAST_EPOCHS, min(MOST_EPOCHS, math.ceil(STEPS * batch / rows)))
