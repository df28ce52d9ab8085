"""Logits to tokens: each sequence's own parameters and its own reproducible draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.penalties import DeviceAdjustments, LogitAdjustments, penalized
from opsin_kernels.sampling import SamplingRow, log_probabilities, most_likely, sample, settings_of
from opsin_server.engine.scheduling.sequence import Sequence
from opsin_server.ipc.messages import Logprobs

MASK = 2**64 - 1


@dataclass(frozen=True)
class SampledToken:
    token: int
    logprobs: Logprobs | None


@dataclass(frozen=True)
class SamplingInputs:
    """How a step's rows are drawn, on the device: made before the model runs, since nothing of it depends on logits.
    rows None: all are greedy."""

    rows: list[SamplingRow] | None
    settings: Tensor | None
    placed: DeviceAdjustments | None


def sampling_inputs(sequences: list[Sequence], vocabulary: int, device: torch.device) -> SamplingInputs:
    wanted = [s.sampling for s in sequences]
    placed = adjustments_of(sequences, vocabulary).to(device) if any(s.penalizes for s in wanted) else None
    if all(s.temperature == 0 for s in wanted):
        return SamplingInputs(None, None, placed)
    rows = [
        SamplingRow(p.temperature, p.top_k, p.top_p, p.min_p, uniform(p.seed, s.generated))
        for p, s in zip(wanted, sequences, strict=True)
    ]
    return SamplingInputs(rows, settings_of(rows, device) if device.type != "cpu" else None, placed)


def draw(logits: Tensor, sequences: list[Sequence], rules: SamplingInputs) -> list[SampledToken]:
    """logits [M, vocab], one row a sequence."""
    settings = [s.sampling for s in sequences]
    ruled = penalized(logits, rules.placed)
    picked = most_likely(ruled) if rules.rows is None else sample(ruled, rules.rows, rules.settings)
    asked = [i for i, s in enumerate(settings) if s.top_logprobs >= 0]
    found = _logprobs(logits, picked, asked, max(settings[i].top_logprobs for i in asked)) if asked else {}
    out = []
    for i, token in enumerate(picked.tolist()):
        known = found.get(i)
        if known is not None:
            top = settings[i].top_logprobs
            known = Logprobs(known.chosen, known.ids[:top], known.values[:top])
        out.append(SampledToken(token, known))
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


def adjustments_of(sequences: list[Sequence], vocabulary: int) -> LogitAdjustments:
    """For the logits of one row a sequence. Made anew from the tokens at every step: nothing has to follow a
    preemption, and only requests that ask for it pay (about 50 µs for a thousand tokens).

    As the OpenAI API defines them: frequency counts a token in the answer so far, presence asks whether it is there.
    The repetition penalty also looks at the prompt, as in transformers.
    """
    places = LogitAdjustments()
    for row, sequence in enumerate(sequences):
        rules = sequence.sampling
        if not rules.penalizes:
            continue
        bias = dict(rules.logit_bias)
        counts: Counter[int] = Counter()
        if rules.frequency_penalty or rules.presence_penalty:
            counts.update(sequence.tokens[sequence.prompt_length :])
        seen = set(sequence.tokens) if rules.repetition_penalty != 1 else set()
        for token in bias.keys() | counts.keys() | seen:
            if token < vocabulary:  # (image placeholders may lie past what can be drawn)
                count = counts[token]
                shift = count * rules.frequency_penalty + (count > 0) * rules.presence_penalty - bias.get(token, 0.0)
                places.rows.append(row)
                places.tokens.append(token)
                places.factors.append(rules.repetition_penalty if token in seen else 1.0)
                places.shifts.append(shift)
    return places
