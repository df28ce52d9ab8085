"""Logits to tokens: each sequence's own parameters and its own reproducible draw."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.bitmask import forbid_
from opsin_kernels.penalties import DeviceAdjustments, LogitAdjustments, penalized
from opsin_kernels.sampling import SamplingRow, log_probabilities, sample, settings_of
from opsin_kernels.transfer import moved
from opsin_server.engine.running.masks import Masks, unwanted_ends
from opsin_server.engine.scheduling.plan import Chunk
from opsin_server.ipc.messages import Logprobs

MASK = 2**64 - 1


@dataclass(frozen=True)
class SampledToken:
    """token None: the row's logits were not numbers, or its grammar has failed, which `refused` says."""

    token: int | None
    logprobs: Logprobs | None
    refused: str = ""


class DrawnTokens:
    """What a step drew, on its way from the device. ids I64 [M], on the device, are numbers of the vocabulary in any
    case; `read` waits for them, and not for what has been launched since.

    largest: of each row's logits [M]; where that is no number, or infinite, nothing was drawn."""

    def __init__(self, ids: Tensor, largest: Tensor, logprobs: dict[int, Logprobs]) -> None:
        self.ids, self._largest, self._logprobs = ids, largest, logprobs
        self.refused: dict[int, str] = {}  # rows whose grammar has failed
        self._copied: torch.cuda.Event | None = None
        if ids.device.type == "cuda":
            self._host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
            self._host.copy_(torch.where(largest.isfinite(), ids, -1), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[SampledToken]:
        tokens: list[int | None]
        if self._copied is not None:
            self._copied.synchronize()
            tokens = [None if token < 0 else token for token in self._host.tolist()]
        else:
            pairs = zip(self.ids.tolist(), self._largest.tolist(), strict=True)
            tokens = [token if math.isfinite(largest) else None for token, largest in pairs]
        return [
            SampledToken(None if row in self.refused else token, self._logprobs.get(row), self.refused.get(row, ""))
            for row, token in enumerate(tokens)
        ]


@dataclass(frozen=True)
class SamplingInputs:
    """How a step's rows are drawn, on the device: made before the model runs, since nothing of it depends on logits.
    rows None: all are greedy, on a device without kernels."""

    rows: list[SamplingRow] | None
    settings: Tensor | None
    placed: DeviceAdjustments | None


def needs_tokens(chunks: list[Chunk]) -> bool:
    """Whether something that these chunks draw, or the next draws after them, is computed on the host from tokens."""
    if any(chunk.sequence.guide is not None for chunk in chunks):
        return True
    wanted = (chunk.sequence.sampling for chunk in chunks)
    return any(sampling.penalizes or sampling.top_logprobs >= 0 for sampling in wanted)


def sampling_inputs(chunks: list[Chunk], vocabulary: int, device: torch.device) -> SamplingInputs:
    """chunks: those that draw a token, in the order of the logits."""
    wanted = [chunk.sequence.sampling for chunk in chunks]
    adjusted = any(s.penalizes for s in wanted) or any(c.draw < c.sequence.min_tokens for c in chunks)
    placed = adjustments_of(chunks, vocabulary).to(device) if adjusted else None
    if device.type == "cpu" and all(s.temperature == 0 for s in wanted):
        return SamplingInputs(None, None, placed)
    rows = [
        SamplingRow(s.temperature, s.top_k, s.top_p, s.min_p, uniform(s.seed, chunk.draw))
        for s, chunk in zip(wanted, chunks, strict=True)
    ]
    return SamplingInputs(rows, settings_of(rows, device) if device.type != "cpu" else None, placed)


def draw(logits: Tensor, chunks: list[Chunk], rules: SamplingInputs, masks: Masks | None = None) -> DrawnTokens:
    """logits [M, vocab], one row a chunk; those of masked steps are changed where nobody wants log probabilities."""
    ruled = penalized(logits, rules.placed)
    if masks is not None:
        if ruled is logits and any(c.sequence.sampling.top_logprobs >= 0 for c in chunks):
            ruled = logits.clone()
        forbid_(ruled, moved(masks.words, logits.device))
    picked, largest = sample(ruled, rules.rows, rules.settings)
    return DrawnTokens(picked, largest, _logprobs(logits, picked, chunks))


def _logprobs(logits: Tensor, picked: Tensor, chunks: list[Chunk]) -> dict[int, Logprobs]:
    tops = {row: top for row, c in enumerate(chunks) if (top := c.sequence.sampling.top_logprobs) >= 0}
    if not tops:
        return {}
    rows = list(tops)
    chosen, ids, values = (x.tolist() for x in log_probabilities(logits[rows], picked[rows], max(tops.values())))
    return {
        row: Logprobs(chosen[i], tuple(ids[i][: tops[row]]), tuple(values[i][: tops[row]]))
        for i, row in enumerate(rows)
    }


def uniform(seed: int, index: int) -> float:
    """Draw number `index` of a request, in [0, 1): splitmix64 of seed and index, so that preemption, batch mates and
    device change nothing. Source: Steele, Lea, Flood 2014."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def adjustments_of(chunks: list[Chunk], vocabulary: int) -> LogitAdjustments:
    """For the logits of one row a sequence. Made anew from the tokens at every step: nothing has to follow a
    preemption, and only requests that ask for it pay (about 50 µs for a thousand tokens).

    As the OpenAI API defines them: frequency counts a token in the answer so far, presence asks whether it is there.
    The repetition penalty also looks at the prompt, as in transformers.
    """
    places = LogitAdjustments()
    for row, chunk in enumerate(chunks):
        sequence = chunk.sequence
        rules = sequence.sampling
        banned = () if sequence.guide is not None else unwanted_ends(chunk)  # (a grammar's mask knows them)
        if not (rules.penalizes or banned):
            continue
        bias = dict(rules.logit_bias) | dict.fromkeys(banned, -math.inf)
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
