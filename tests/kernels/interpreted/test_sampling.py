"""The kernel that draws tokens: its filters are the definition's, ties and chunk edges included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opsin_kernels.gpu import sampling as gpu_sampling
from opsin_kernels.sampling import SamplingRow
from support.distributions import broken_logits, check_broken, check_draw, edge_rows, rows


def draw(logits: Tensor, row: SamplingRow, step: int = 16, short: int = 24) -> int:
    settings_ = [[row.temperature, row.top_k, row.top_p, row.min_p, row.uniform]]
    return int(gpu_sampling.draw(logits, torch.tensor(settings_, dtype=torch.float64), step, short))


@given(rows, st.integers(0, 10**6), st.sampled_from([1, 11, 16, 40]), st.sampled_from([2, 8]), st.sampled_from([1, 24]))
@settings(max_examples=25, deadline=None)
def test_a_draw_is_the_inverse_of_the_filtered_distribution(
    row: SamplingRow, seed: int, vocabulary: int, spread: float, short: int
) -> None:
    """Spread: many tokens are too faint for the short list, or none; short: what it holds."""
    torch.manual_seed(seed)
    logits = torch.randn(1, vocabulary) * spread
    check_draw(logits[0].tolist(), row, draw(logits, row, short=short))


FEW, MORE = (0.0, 0.45, 0.95), (0.2, 0.7)


@pytest.mark.parametrize("uniforms", [FEW, pytest.param(MORE, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("top_k", [0, 1, 3, 5, 20])
@pytest.mark.parametrize("top_p", [1.0, 0.55, 0.001])
def test_equal_tokens_stay_in_vocabulary_order(top_k: int, top_p: float, uniforms: tuple[float, ...]) -> None:
    # Two levels, ten tokens of each, over two chunks: every cut lies between equal tokens.
    logits = torch.tensor([[1.0, 0.0] * 10])
    for uniform in uniforms:
        row = SamplingRow(1.0, top_k, top_p, 0.0, uniform)
        check_draw(logits[0].tolist(), row, draw(logits, row), rounding=1e-6)


def test_greedy_is_the_first_of_the_largest() -> None:
    logits = torch.full((1, 40), -1.0)
    logits[0, [21, 38]] = 5.0
    assert draw(logits, SamplingRow(0, 0, 1, 0, 0.99)) == 21


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 40), float("-inf"))
    logits[0, [3, 37]] = torch.tensor([0.0, 1.0])
    drawn = {draw(logits, SamplingRow(1.5, top_k, 0.999, 0, u)) for top_k in (0, 30) for u in (0, 0.1, 0.5, 1 - 2**-53)}
    assert drawn == {3, 37}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_their_own(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 70).to(dtype)[:, :50]  # rows further apart than they are long
    mixed = [SamplingRow(0.7, 5, 1, 0, 0.5), SamplingRow(0, 0, 1, 0, 0.1), SamplingRow(1.3, 0, 0.8, 0.05, 0.9)]
    settings_ = torch.tensor(
        [(r.temperature, r.top_k, r.top_p, r.min_p, r.uniform) for r in mixed], dtype=torch.float64
    )
    together = gpu_sampling.draw(logits, settings_, 16, 24).tolist()
    assert together == [draw(logits[i : i + 1], row) for i, row in enumerate(mixed)]


def test_faint_tokens_count_for_top_p_though_they_are_not_looked_at() -> None:
    """3,998 tokens of 2^-18 weigh 1.5 % together: with them 98 % take two tokens, without them one."""
    weights = torch.full((4000,), 2.0**-18)
    weights[[7, 3000]] = torch.tensor([1.0, 0.02])
    row = SamplingRow(1.0, 0, 0.98, 0.0, 0.99)
    assert draw(weights.log()[None], row, step=1024) == 3000
    assert draw(weights.log()[None], replace(row, top_p=0.96), step=1024) == 7
    everything = replace(row, top_p=0.998, uniform=0.9999)
    assert draw(weights.log()[None], everything, step=1024) > 3000, "it looks at all then"


def test_top_p_behind_top_k_does_not_count_what_top_k_cut() -> None:
    """Two tokens stay of 4,000: 1 and 0.05. With all others, which weigh 1.5 % together, 0.945 would take both."""
    weights = torch.full((4000,), 2.0**-18)
    weights[[7, 3000]] = torch.tensor([1.0, 0.05])
    row = SamplingRow(1.0, 2, 0.945, 0.0, 0.99)
    assert 1.0 / 1.05 > 0.945 > 1.0 / (1.05 + 3998 * 2**-18)
    assert draw(weights.log()[None], row, step=1024) == 7


def test_min_p_ends_the_short_list_only_where_top_p_does_not_look_past_it() -> None:
    """top-k keeps faint tokens too, and top-p counts them before min-p drops them."""
    weights = torch.full((4000,), 2.0**-18)
    weights[[7, 3000]] = torch.tensor([1.0, 0.02])
    row = SamplingRow(1.0, 3999, 0.98, 0.01, 0.99)
    assert draw(weights.log()[None], row, step=1024) == 3000


@pytest.mark.parametrize("count", [23, 24, 25, 40])
def test_a_full_short_list_leaves_its_neighbour_alone(count: int) -> None:
    logits = torch.full((1, 40), float("-inf"))
    logits[0, :count] = torch.arange(count) / 100
    values, places = torch.full((30,), 7.0), torch.full((30,), 7, dtype=torch.int32)
    settings_, out = torch.tensor([[1.0, 5, 0.9, 0, 0.5]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    gpu_sampling.draw_rows[(1,)](
        logits, settings_, values, places, out, 40, 40, STEP=16, TOP=gpu_sampling.ONE + 1, SHORT=24, FAINT=2.0**-17,
        COLDEST=1e-30,
    )  # fmt: skip
    assert (values[24:] == 7).all()
    assert (places[24:] == 7).all()
    assert count - 5 <= int(out) < count


@given(broken_logits, edge_rows, st.sampled_from([1, 24]), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_at_the_edge_a_token_that_is_left_is_drawn(
    logits: list[float], row: SamplingRow, short: int, dtype: torch.dtype
) -> None:
    given_ = torch.tensor([logits]).to(dtype)
    check_broken(given_[0].tolist(), row, draw(given_, row, short=short))


@pytest.mark.parametrize("short", [1, 24])
def test_rounding_puts_nothing_before_the_largest(short: int) -> None:
    """Logits one step apart weigh 1 both in float32, and the lesser one comes first."""
    logits = torch.tensor([[0.1, 0.1 + 2.0**-27, -9.0]])
    assert logits[0, 1] > logits[0, 0]
    plain = SamplingRow(2.0, 0, 1.0, 0.0, 0.0)
    for row in (replace(plain, top_k=1), replace(plain, top_p=1e-46), replace(plain, min_p=1.0)):
        assert draw(logits, row, short=short) == 1


@pytest.mark.parametrize("top_k", [0, 3])
def test_what_is_no_number_leaves_the_others_their_distribution(top_k: int) -> None:
    logits = torch.tensor([[0.0, float("nan"), 0.0, 0.0, float("nan")]])
    drawn = [draw(logits, SamplingRow(1.0, top_k, 1.0, 0.0, uniform)) for uniform in (0.1, 0.5, 0.9)]
    assert drawn == [0, 2, 3]
