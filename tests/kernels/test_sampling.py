"""Sampling: the filters are what they say, a row's draw is its own, and draws follow the distribution. What C draws and
what the definition draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.cpu import native
from opsin_kernels.cpu import sampling as cpu
from opsin_kernels.sampling import SamplingRow, log_probabilities, sample, sample_ref
from opsin_server.engine.running.sampler import uniform
from support.distributions import Drawing, check_draw, dispatched, each_drawing, rows

WIDTHS = st.sampled_from([1, 3, 11, 16, 17, 255, 256, 257, 700])
PLAIN = SamplingRow(1.0, 0, 1.0, 0.0, 0.5)


@each_drawing
@given(row=rows, seed=st.integers(0, 10**6), width=WIDTHS, spread=st.sampled_from([2, 8]), barred=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_draw_is_the_inverse_of_the_filtered_distribution(
    draw: Drawing, row: SamplingRow, seed: int, width: int, spread: float, barred: bool
) -> None:
    """barred: most tokens may not be drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, width, generator=generator) * spread
    if barred:
        logits[0, (torch.rand(width, generator=generator) < 0.95) & (torch.arange(width) != seed % width)] = -torch.inf
    check_draw(logits[0].tolist(), row, int(draw(logits, [row])))


@each_drawing
@given(settings_=st.lists(rows, min_size=2, max_size=5), seed=st.integers(0, 10**6), width=WIDTHS)
@settings(max_examples=60, deadline=None)
def test_rows_beside_it_change_nothing(draw: Drawing, settings_: list[SamplingRow], seed: int, width: int) -> None:
    logits = torch.randn(len(settings_), width + 7, generator=torch.Generator().manual_seed(seed))[:, :width]
    together = draw(logits, settings_).tolist()
    assert together == [draw(logits[i : i + 1].clone(), [row]).item() for i, row in enumerate(settings_)]


@each_drawing
@pytest.mark.parametrize("top_k", [0, 1, 3, 5, 20, 290])
@pytest.mark.parametrize("top_p", [1.0, 0.57, 0.001])
def test_equal_tokens_stay_in_vocabulary_order(draw: Drawing, top_k: int, top_p: float) -> None:
    """Two levels, of each the same number of tokens: every cut lies between equal ones."""
    for size in (20, 600):
        logits = torch.tensor([[1.0, 0.0] * (size // 2)])
        for where in (0.0, 0.45, 0.95):
            row = SamplingRow(1.0, top_k, top_p, 0.0, where)
            check_draw(logits[0].tolist(), row, int(draw(logits, [row])), rounding=1e-6)


FILTERS = [
    (0, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.9999, 0.0),
    (40, 0.9, 0.0),
    (900, 0.7, 0.01),
    (3500, 1.0, 0.0),
    (0, 1, 0.2),
]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), FILTERS)
@pytest.mark.parametrize("spread", [0.1, 1, 4])
def test_c_draws_what_the_definition_draws_from_a_wide_row(
    top_k: int, top_p: float, min_p: float, spread: float
) -> None:
    """But where the number falls on an edge, which rounding moves."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(top_k)) * spread
    draws = [SamplingRow(0.9, top_k, top_p, min_p, uniform(7, i)) for i in range(40)]
    mine, theirs = (draw(logits.expand(40, -1), draws).tolist() for draw in (dispatched, sample_ref))
    differing = [i for i in range(40) if mine[i] != theirs[i]]
    assert len(differing) <= 1
    for i in differing:
        check_draw(logits[0].tolist(), draws[i], mine[i], rounding=1e-6)


@each_drawing
def test_what_is_faint_counts_for_top_p_unless_top_k_cut_it(draw: Drawing) -> None:
    """3,998 tokens of 2^-18 weigh 1.5 % together: with them 98 % take two tokens, without them one."""
    weights = torch.full((4000,), 2.0**-18)
    weights[[7, 3000]] = torch.tensor([1.0, 0.02])

    def drawn(top_k: int, top_p: float, min_p: float = 0.0, where: float = 0.99) -> int:
        return int(draw(weights.log()[None], [SamplingRow(1.0, top_k, top_p, min_p, where)]))

    assert drawn(0, 0.98) == drawn(3999, 0.98, 0.01) == 3000
    assert drawn(0, 0.96) == drawn(2, 0.98) == 7
    assert drawn(0, 0.998, where=0.9999) > 3000


@each_drawing
def test_forbidden_tokens_are_never_drawn(draw: Drawing) -> None:
    logits = torch.full((1, 900), -torch.inf)
    logits[0, [3, 840]] = torch.tensor([0.0, 1.0])
    draws = [SamplingRow(1.5, k, p, 0, u) for k in (0, 30) for p in (1, 0.999) for u in (0, 0.1, 0.5, 1 - 2**-53, 1.0)]
    assert set(draw(logits.expand(len(draws), -1), draws).tolist()) == {3, 840}


@each_drawing
def test_rounding_puts_nothing_before_the_largest(draw: Drawing) -> None:
    """Logits one step apart weigh 1 both in float32, and the lesser one comes first."""
    logits = torch.tensor([[0.1, 0.1 + 2.0**-27, -9.0]])
    assert logits[0, 1] > logits[0, 0]
    coldest = [SamplingRow(2.0, *filters, 0.0) for filters in ((1, 1.0, 0.0), (0, 1e-46, 0.0), (0, 1.0, 1.0))]
    assert draw(logits.expand(3, -1), coldest).tolist() == [1, 1, 1]


def test_the_largest_of_each_row_comes_along() -> None:
    logits = torch.randn(5, 300)
    logits[1:5, 280] = torch.tensor([math.nan, math.inf, -math.inf, 9.0])
    logits[3, :] = -math.inf
    for rows_ in (None, [PLAIN] * 5):
        tokens, largest = sample(logits, rows_)
        assert torch.equal(largest.nan_to_num(-7), logits.amax(-1).nan_to_num(-7))
        assert tokens[2:4].tolist() == [280, 0]
    greedy = [SamplingRow(0.0, 0, 1.0, 0.0, 0.5)] * 5
    assert torch.equal(sample(logits, None)[0], sample_ref(logits, greedy))


def test_no_rows_are_no_tokens() -> None:
    assert sample(torch.randn(0, 40), [])[0].shape == (0,)


def test_the_definition_draws_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 40)
    monkeypatch.setattr(native, "forced", lambda: "torch")
    monkeypatch.setattr(native, "native", native.native.__wrapped__)
    monkeypatch.setattr(cpu, "draw", lambda *_: pytest.fail("C was called"))
    assert torch.equal(sample(logits, [PLAIN] * 2)[0], sample_ref(logits, [PLAIN] * 2))
    monkeypatch.undo()
    assert not cpu.can_draw(logits.bfloat16())
    assert not cpu.can_draw(logits.T)
    assert not cpu.can_draw(logits.requires_grad_())


@each_drawing
def test_temperature_zero_is_the_largest(draw: Drawing) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
    greedy, warm = SamplingRow(0, 0, 1, 0, 0.99), SamplingRow(1, 1, 1, 0, 0.99)
    assert draw(logits, [greedy, warm]).tolist() == [1, 0]


@each_drawing
def test_draws_of_many_seeds_follow_the_distribution(draw: Drawing) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count, got = 20_000, torch.zeros(4)
    draws = [SamplingRow(1.0, 0, 1.0, 0.0, uniform(seed, 3)) for seed in range(count)]
    for token in draw(logits.expand(count, -1), draws).tolist():
        got[token] += 1
    expected = logits.softmax(-1)
    chi_squared = ((got - count * expected) ** 2 / (count * expected)).sum()
    assert chi_squared < 25  # three degrees of freedom: one run in 60,000


def test_uniforms_are_uniform_and_differ_by_seed_and_place() -> None:
    values = [uniform(seed, i) for seed in range(100) for i in range(100)]
    assert len(set(values)) == len(values)
    assert abs(sum(values) / len(values) - 0.5) < 0.02
    assert max(values) < 1
    assert min(values) >= 0


def test_log_probabilities_are_of_the_unscaled_distribution() -> None:
    logits = torch.randn(3, 9)
    chosen, ids, values = log_probabilities(logits, torch.tensor([1, 0, 8]), 4)
    expected = logits.log_softmax(-1)
    assert torch.allclose(chosen, expected[torch.arange(3), torch.tensor([1, 0, 8])])
    assert torch.allclose(values, expected.sort(-1, descending=True).values[:, :4])
    assert torch.allclose(expected.gather(1, ids), values)
