"""From logits to tokens as the engine asks for them: rows that are greedy, alone and beside drawn ones."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from opsin_server.engine.running.sampler import draw, sampling_inputs
from opsin_server.ipc.messages import Sampling

GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=1.0, seed=5)


def tokens(logits: torch.Tensor, *settings: Sampling) -> list[int | None]:
    chunks = [
        SimpleNamespace(sequence=SimpleNamespace(sampling=sampling, guide=None, min_tokens=0), draw=3)
        for sampling in settings
    ]
    rules = sampling_inputs(chunks, logits.shape[1], logits.device)
    return [drawn.token for drawn in draw(logits, chunks, rules).read()]


def test_a_greedy_row_draws_alone_what_it_draws_beside_others() -> None:
    logits = torch.stack([torch.tensor([1.0, 3.0, -math.inf, 2.0, -math.inf]), torch.zeros(5)])
    assert tokens(logits, GREEDY, GREEDY)[0] == tokens(logits, GREEDY, WARM)[0] == 1


@pytest.mark.parametrize("kind", [GREEDY, WARM])
def test_a_row_that_is_no_numbers_draws_nothing_and_harms_no_other(kind: Sampling) -> None:
    inf, nan = math.inf, math.nan
    rows = [[nan] * 3, [-inf] * 3, [nan, -inf, nan], [1.0, nan, 2.0], [inf, 1.0, 2.0], [-inf, -inf, 1.0]]
    logits = torch.tensor(rows)
    assert tokens(logits, *[kind] * 6) == [None] * 5 + [2]
    chunks = [SimpleNamespace(sequence=SimpleNamespace(sampling=kind, guide=None, min_tokens=0), draw=3) for _ in rows]
    ids = draw(logits, chunks, sampling_inputs(chunks, 3, logits.device)).ids
    assert all(0 <= token < 3 for token in ids.tolist()), "a step that was launched ahead reads them"


@pytest.mark.parametrize("change", [{"temperature": 1e-46}, {"top_p": 1e-46}, {"min_p": 1.0}, {"temperature": 1e-300}])
def test_the_coldest_request_gets_what_a_greedy_one_gets(change: dict[str, float]) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(2))
    cold = [Sampling(**{"temperature": 1.0, "seed": seed, **change}) for seed in range(20)]
    assert tokens(logits, *cold) == tokens(logits, *[GREEDY] * 20) == logits.argmax(-1).tolist()
