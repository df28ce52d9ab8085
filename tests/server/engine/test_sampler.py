"""From logits to tokens as the engine asks for them: rows that are greedy, alone and beside drawn ones."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from opsin_server.engine.running.sampler import draw, sampling_inputs
from opsin_server.ipc.messages import Sampling

GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=1.0, seed=5)


def tokens(logits: torch.Tensor, *settings: Sampling) -> list[int]:
    sequences = [SimpleNamespace(sampling=sampling, generated=3) for sampling in settings]
    rules = sampling_inputs(sequences, logits.shape[1], logits.device)
    return [drawn.token for drawn in draw(logits, sequences, rules)]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_greedy_row_draws_alone_what_it_draws_beside_others(odd: float) -> None:
    row = torch.tensor([1.0, 3.0, odd, 2.0, odd])
    logits = torch.stack([row, torch.zeros(5)])
    expected = 2 if odd == math.inf else 1
    assert tokens(logits, GREEDY, GREEDY)[0] == tokens(logits, GREEDY, WARM)[0] == expected


def test_a_row_without_any_number_is_the_first_token() -> None:
    logits = torch.tensor([[math.nan] * 3, [-math.inf] * 3, [math.nan, -math.inf, math.nan]])
    assert tokens(logits, GREEDY, GREEDY, GREEDY) == tokens(logits, WARM, WARM, WARM) == [0, 0, 0]


@pytest.mark.parametrize("change", [{"temperature": 1e-46}, {"top_p": 1e-46}, {"min_p": 1.0}, {"temperature": 1e-300}])
def test_the_coldest_request_gets_what_a_greedy_one_gets(change: dict[str, float]) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(2))
    cold = [Sampling(**{"temperature": 1.0, "seed": seed, **change}) for seed in range(20)]
    assert tokens(logits, *cold) == tokens(logits, *[GREEDY] * 20) == logits.argmax(-1).tolist()
