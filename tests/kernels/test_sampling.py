"""Sampling: the filters are what they say, a row's draw is its own, and draws follow the distribution."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.sampling import SamplingRow, log_probabilities, sample
from opsin_server.engine.running.sampler import uniform
from support.distributions import allowed, rows


@given(rows, st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_a_draw_is_the_inverse_of_the_filtered_distribution(row: SamplingRow, seed: int) -> None:
    logits = torch.randn(1, 11, generator=torch.Generator().manual_seed(seed)) * 2
    expected = allowed(logits[0].tolist(), row)
    (token,) = sample(logits, [row]).tolist()
    below = sum(expected[:token])
    assert expected[token] > 0
    assert below - 1e-5 <= row.uniform <= below + expected[token] + 1e-5


@given(st.lists(rows, min_size=2, max_size=5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_rows_beside_it_change_nothing(settings_: list[SamplingRow], seed: int) -> None:
    logits = torch.randn(len(settings_), 37, generator=torch.Generator().manual_seed(seed))
    together = sample(logits, settings_).tolist()
    assert together == [sample(logits[i : i + 1], [row]).item() for i, row in enumerate(settings_)]


def test_temperature_zero_is_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
    greedy, warm = SamplingRow(0, 0, 1, 0, 0.99), SamplingRow(1, 1, 1, 0, 0.99)
    assert sample(logits, [greedy, warm]).tolist() == [1, 0]


def test_draws_of_many_seeds_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count, got = 20_000, torch.zeros(4)
    draws = [SamplingRow(1.0, 0, 1.0, 0.0, uniform(seed, 3)) for seed in range(count)]
    for token in sample(logits.expand(count, -1), draws).tolist():
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
