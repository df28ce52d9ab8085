"""What "auto" becomes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin_server.fine_tuning.hyperparameters import (
    LARGEST_BATCH,
    LEAST_EPOCHS,
    MOST_EPOCHS,
    STEPS,
    Hyperparameters,
    described,
    resolve,
    training_options,
)
from opsin_server.jobs.training_options import TrainingOptions

AUTO, DEFAULTS = Hyperparameters(), TrainingOptions()


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"), [(10, 1, 25), (100, 2, 10), (1000, 16, 8), (10_000, 32, 3), (1_000_000, 32, 3)]
)
def test_batch_and_epochs_follow_from_the_rows(rows: int, batch: int, epochs: int) -> None:
    found = resolve(AUTO, rows, 4096, DEFAULTS)
    assert (found.batch_size, found.n_epochs, found.learning_rate_multiplier) == (batch, epochs, 1.0)


@given(st.integers(1, 10**7))
def test_steps_are_worth_making_within_bounds(rows: int) -> None:
    found = resolve(AUTO, rows, 4096, DEFAULTS)
    assert 1 <= found.batch_size <= min(LARGEST_BATCH, rows)
    assert LEAST_EPOCHS <= found.n_epochs <= MOST_EPOCHS
    steps = found.n_epochs * math.ceil(rows / found.batch_size)
    assert steps >= STEPS or found.n_epochs == MOST_EPOCHS


def test_narrow_models_learn_faster() -> None:
    rates = [resolve(AUTO, 100, width, DEFAULTS).learning_rate for width in (192, 896, 2048, 4096, 8192)]
    assert rates == pytest.approx([2e-3, 9.14e-4, 4e-4, 2e-4, 1e-4], rel=1e-3)


def test_what_is_given_is_taken() -> None:
    asked = Hyperparameters(batch_size=3, learning_rate_multiplier=0.5, n_epochs=7, beta=0.3)
    options = TrainingOptions(learning_rate=1e-3, projector_learning_rate=1e-5)
    found = resolve(asked, 100, 192, options)
    assert described(found, "dpo") == {"n_epochs": 7, "batch_size": 3, "learning_rate_multiplier": 0.5, "beta": 0.3}
    assert "beta" not in described(found, "supervised")
    trained = training_options(options, found, 11)
    assert (trained.learning_rate, trained.vision_learning_rate) == (5e-4, 2.5e-4)
    assert (trained.projector_learning_rate, trained.batch_size, trained.epochs, trained.seed) == (1e-5, 3, 7, 11)
    assert training_options(TrainingOptions(vision_learning_rate=1e-6), found, 0).vision_learning_rate == 1e-6
    assert resolve(asked, 2, 192, options).batch_size == 2
