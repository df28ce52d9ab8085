"""Guesses by what steps took: whatever that was, they are numbers that a plan can be made of."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin_server.engine.scheduling.step_times import StepTimes

TOKENS = st.integers(1, 4096)
SECONDS = st.sampled_from((0.0, 0.001, 0.002, 0.05)) | st.floats(0.0, 1.0)  # often the same
STEPS = st.lists(st.tuples(TOKENS, SECONDS), max_size=20)


def times(*steps: tuple[int, float]) -> StepTimes:
    found = StepTimes()
    for tokens, seconds in steps:
        found.observe(tokens, seconds)
    return found


def test_tokens_fit_as_steps_of_more_were_measured() -> None:
    known = times((4, 0.004), (8, 0.008), (64, 0.016))
    assert known.fits(4, 0.004, 0.006) == pytest.approx(2)
    assert known.fits(4, 0.004, 0.012) == pytest.approx(4 + 28)
    assert known.fits(4, 0.004, 1.0) == 60, "no more than what was tried"


def test_none_fit_where_the_step_takes_longer_than_it_may_already() -> None:
    """Its time is guessed by that of the only step that was tried, which is larger: both are the same."""
    known = times((5, 0.020))
    assert known.seconds(2) == 0.020
    assert known.fits(2, 0.020, 0.010) == 0


@given(STEPS, TOKENS, SECONDS)
def test_what_fits_lies_within_what_was_tried(steps: Sequence[tuple[int, float]], tokens: int, most: float) -> None:
    known = times(*steps)
    room = known.fits(tokens, known.seconds(tokens), most)
    assert 0 <= room <= max((size for size, _ in steps), default=0)
