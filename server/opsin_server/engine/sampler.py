"""Logits to tokens: each sequence's own parameters and its own reproducible draw."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opsin_kernels.penalties import penalized
from opsin_kernels.sampling import SamplingRow, log_probabilities, sample
from opsin_server.engine.penalties import places_of
from opsin_server.engine.sequence import Sequence
from opsin_server.ipc.messages import Logprobs

MASK = 2**64 - 1


@dataclass(frozen=True)
class Drawn:
    token: int
    logprobs: Logprobs | None


def draw(logits: Tensor, sequences: list[Sequence]) -> list[Drawn]:
    """logits [M, vocab], one row a sequence."""
    settings = [s.sampling for s in sequences]
    ruled = logits
    if any(s.penalizes for s in settings):
        ruled = penalized(logits, places_of(sequences, logits.shape[1]))
    if all(s.temperature == 0 for s in settings):
        picked = ruled.argmax(-1)
    else:
        picked = sample(
            ruled,
            [
                SamplingRow(p.temperature, p.top_k, p.top_p, p.min_p, uniform(p.seed, s.generated))
                for p, s in zip(settings, sequences, strict=True)
            ],
        )
    asked = [i for i, s in enumerate(settings) if s.top_logprobs >= 0]
    found = _logprobs(logits, picked, asked, max(settings[i].top_logprobs for i in asked)) if asked else {}
    out = []
    for i, token in enumerate(picked.tolist()):
        known = found.get(i)
        if known is not None:
            top = settings[i].top_logprobs
            known = Logprobs(known.chosen, known.ids[:top], known.values[:top])
        out.append(Drawn(token, known))
    return out


def _logprobs(logits: Tensor, picked: Tensor, rows: list[int], top: int) -> dict[int, Logprobs]:
    chosen, ids, values = (x.tolist() for x in log_probabilities(logits[rows], picked[rows], top))
    return {row: Logprobs(chosen[i], tuple(ids[i]), tuple(values[i])) for i, row in enumerate(rows)}


def uniform(seed: int, index: int) -> float:
    """Draw number `index` of a request, in [0, 1): splitmix64 of seed and index, so that preemption, batch mates and
    device change nothing. Source: Steele, Lea, Flood 2014."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53
