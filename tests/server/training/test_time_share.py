"""Idle time is training's, a floor is kept beside answers, and no gap is stretched beyond its limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin_server.engine.training.pieces import Piece
from opsin_server.engine.training.time_share import TimeShare

PIECE = Piece("language.layers.forward", 100)


def saturated(share: TimeShare, step: float, cost: float, seconds: float) -> tuple[float, float]:
    """Trained seconds and the longest gap, while answers never pause."""
    now = trained = longest = 0.0
    share.ran(PIECE, cost)
    while now < seconds:
        share.answered(step)
        spent = 0.0
        while share.may_run(PIECE, spent):
            share.ran(PIECE, cost)
            spent += cost
        now += step + spent
        trained += spent
        longest = max(longest, step + spent)
    return trained / now, longest


@given(
    floor=st.floats(0.05, 0.6),
    step=st.floats(0.001, 0.3),
    cost=st.floats(0.0005, 0.4),
)
def test_the_floor_holds_whatever_steps_and_pieces_take(floor: float, step: float, cost: float) -> None:
    got, longest = saturated(TimeShare(floor), step, cost, 300 * (step + cost))
    assert got == pytest.approx(floor, rel=0.1, abs=0.01)
    assert longest <= step + cost + step * floor / (1 - floor) + 1e-9


def test_idle_time_counts() -> None:
    """What was trained while nobody asked is not taken from those who ask afterwards."""
    share = TimeShare(0.2)
    share.ran(PIECE, 1.0)
    share.answered(2.0)
    assert not share.may_run(PIECE, 0.0)
    share.answered(4.0)
    share.costs.observe(Piece("small", 100), 0.001)
    assert share.may_run(Piece("small", 100), 0.0)


def test_an_idle_night_is_not_paid_for_a_whole_day() -> None:
    share = TimeShare(0.2)
    share.ran(Piece("other", 1), 10_000.0)
    got, _ = saturated(share, 0.05, 0.01, 60.0)
    assert got > 0.15


def test_a_limit_on_gaps_goes_before_the_floor() -> None:
    share = TimeShare(0.3, longest_gap=0.06)
    _, longest = saturated(share, 0.05, 0.004, 20.0)
    assert longest <= 0.06
    assert saturated(TimeShare(0.3, longest_gap=0.06), 0.05, 0.02, 20.0)[0] == 0.0  # (no piece fits)


def test_a_limit_that_leaves_less_than_the_floor_is_said_once() -> None:
    share = TimeShare(0.3, longest_gap=0.06)
    saturated(share, 0.05, 0.02, 20.0)
    said = share.shortfall(PIECE)
    assert said is not None
    assert "--itl-slo-ms 60" in said
    assert "took 50.0 ms" in said
    assert "takes 20.0 ms" in said
    saturated(share, 0.05, 0.02, 20.0)
    assert share.shortfall(PIECE) is None
    for fits in (TimeShare(0.15, longest_gap=0.06), TimeShare(0.3)):
        saturated(fits, 0.05, 0.004, 60.0)
        assert fits.shortfall(PIECE) is None


def test_a_piece_that_never_ran_is_tried() -> None:
    share = TimeShare(0.1)
    share.answered(0.01)
    assert share.may_run(Piece("new", 1), 0.0)
