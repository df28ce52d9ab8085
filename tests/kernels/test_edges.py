"""Settings and logits at the edge of float32: the definition of the draw, and what rows draw that are greedy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.penalties import LogitAdjustments, penalized
from opsin_kernels.sampling import SamplingRow, log_probabilities, sample
from support.distributions import (
    Drawing,
    broken_logits,
    check_broken,
    check_edge,
    each_drawing,
    edge_logits,
    edge_rows,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rounded(logits: list[float], dtype: torch.dtype) -> list[float]:
    return torch.tensor(logits).to(dtype).tolist()


@each_drawing
@given(logits=edge_logits, row=edge_rows)
@settings(max_examples=600, deadline=None)
def test_a_token_that_is_left_is_drawn(draw: Drawing, logits: list[float], row: SamplingRow) -> None:
    check_edge(rounded(logits, torch.float32), row, int(draw(torch.tensor([logits]), [row])))


@each_drawing
@given(logits=broken_logits, row=edge_rows, dtype=st.sampled_from(DTYPES))
@settings(max_examples=400, deadline=None)
def test_no_draw_is_of_what_is_no_number(
    draw: Drawing, logits: list[float], row: SamplingRow, dtype: torch.dtype
) -> None:
    given_ = torch.tensor([logits]).to(dtype)
    check_broken(given_[0].tolist(), row, int(draw(given_, [row])))


@each_drawing
def test_what_is_no_number_leaves_the_others_their_distribution(draw: Drawing) -> None:
    logits = torch.tensor([[0.0, math.nan, 0.0, 0.0, math.nan]] * 3)
    rows = [SamplingRow(1.0, top_k, 1.0, 0.0, uniform) for top_k, uniform in ((0, 0.1), (3, 0.5), (0, 0.9))]
    assert draw(logits, rows).tolist() == [0, 2, 3]


@each_drawing
@given(rows=st.lists(broken_logits, min_size=1, max_size=4), beside=edge_rows)
@settings(max_examples=200, deadline=None)
def test_greedy_is_the_same_alone_and_beside_drawn_rows(
    draw: Drawing, rows: list[list[float]], beside: SamplingRow
) -> None:
    width = max(map(len, rows))
    logits = torch.tensor([row + [-math.inf] * (width - len(row)) for row in rows])
    greedy = SamplingRow(0.0, 0, 1.0, 0.0, 0.5)
    alone = [draw(row[None], [greedy]).item() for row in logits]
    assert draw(logits, [greedy] * len(rows)).tolist() == alone
    mixed = draw(logits, [greedy] * (len(rows) - 1) + [beside]).tolist()
    assert mixed[:-1] == alone[:-1]
    for row, token in zip(logits.tolist(), alone, strict=True):
        check_broken(row, greedy, token)


@each_drawing
@pytest.mark.parametrize("field", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [1e-300, 1e-46, 1e-45, 1e-40, 1e-38])
def test_next_to_nothing_is_the_most_likely_token(draw: Drawing, field: str, value: float) -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(1))
    for uniform in (0.0, 0.5, 1 - 2**-53):
        row = SamplingRow(
            **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": uniform, field: value}
        )
        assert draw(logits, [row]).tolist() == logits.argmax(-1).tolist()


@given(
    st.sampled_from(DTYPES),
    st.lists(st.floats(-3e38, 3e38), min_size=2, max_size=8),
    st.sampled_from([0.01, 0.5, 1.0, 100.0]),
    st.sampled_from([-100.0, 0.0, 100.0]),
    edge_rows,
)
@settings(max_examples=300, deadline=None)
def test_penalties_make_no_logit_infinitely_likely(
    dtype: torch.dtype, logits: list[float], factor: float, shift: float, row: SamplingRow
) -> None:
    most = torch.finfo(dtype).max
    x = torch.tensor([logits]).clamp(-most, most).to(dtype).clamp(-most, most)
    count = x.shape[1] - 1  # the last token keeps its logit
    places = LogitAdjustments([0] * count, list(range(count)), [factor] * count, [shift] * count)
    changed = penalized(x, places.to(x.device))
    assert changed.max() < math.inf
    check_edge(changed[0].tolist(), row, int(sample(changed, [row])[0]))


def test_what_is_forbidden_stays_forbidden() -> None:
    x = torch.tensor([[-math.inf, 1.0]])
    changed = penalized(x, LogitAdjustments([0], [0], [0.01], [-100.0]).to(x.device))
    assert changed.tolist() == [[-math.inf, 1.0]]


def test_log_probabilities_without_a_distribution_are_none_at_all() -> None:
    logits = torch.tensor(
        [[math.nan, 1.0, 0.0], [math.inf, 1.0, math.inf], [math.nan] * 3, [-math.inf, 2.0, -math.inf]]
    )
    chosen, _, values = log_probabilities(logits, sample(logits, [SamplingRow(0.0, 0, 1.0, 0.0, 0.5)] * 4)[0], 2)
    assert chosen[0] == pytest.approx(math.log(1 / (1 + math.exp(-1))))
    assert chosen[1:].tolist() == [-math.inf, -math.inf, 0.0]
    assert not values.isnan().any()
