"""token_B ~ filtered softmax(logits_BV / temperature_B). B rows, V vocabulary.

Filters in this order, each on what the former left: top-k, top-p, min-p (relative to the largest). Each leaves the most
likely token at least. A row's draw depends on its own logits, parameters and uniform number only, so the rows beside it
change nothing.

NaN is no number: it is never drawn. A row whose largest logit is infinite has no distribution and is greedy; a row
without any number gives token 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.cpu import sampling as cpu
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.gpu import COLDEST
from opsin_kernels.transfer import on_device

BELOW_ONE = 1 - 2.0**-24  # the float32 before 1; of weights relative to the largest, 1 is kept for what equals it
LAST_UNIFORM = 1 - 2.0**-53


@dataclass(frozen=True)
class SamplingRow:
    """One row's parameters. temperature below COLDEST: greedy. top_k 0, top_p 1, min_p 0: off. uniform: its draw in
    [0, 1)."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


def settings_of(rows: Sequence[SamplingRow], device: torch.device) -> Tensor:
    """F64 [B, 5] for the kernels: temperature, top-k, top-p, min-p, uniform."""
    return on_device([(r.temperature, r.top_k, r.top_p, r.min_p, r.uniform) for r in rows], torch.float64, device)


def sample(logits: Tensor, rows: Sequence[SamplingRow] | None, settings: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """logits [B, V] -> token ids I64 [B], and the largest logit of each row [B], which is NaN beside a NaN.

    rows None: all are greedy. settings: the rows on a GPU, where they are there already."""
    if cpu.can_draw(logits):
        return cpu.draw(logits, None if rows is None else settings_of(rows, logits.device))
    if rows is not None and uses_kernels(logits):
        from opsin_kernels.gpu import sampling as gpu

        return gpu.draw(logits, settings_of(rows, logits.device) if settings is None else settings), logits.amax(-1)
    return sample_ref(logits, rows), logits.amax(-1)


def _with_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [B, V] with a finite largest in each row, and where it is, [B, 1]."""
    best = logits.argmax(-1, keepdim=True)  # (a NaN where there is one)
    if logits.gather(-1, best).isfinite().all():
        return logits, best
    logits = _numbers(logits)
    best = logits.argmax(-1, keepdim=True)
    alone = torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    return torch.where(logits.gather(-1, best).isfinite(), logits, alone), best


def _numbers(logits: Tensor) -> Tensor:
    return logits.masked_fill(logits.isnan(), -torch.inf)


def sample_ref(logits: Tensor, rows: Sequence[SamplingRow] | None) -> Tensor:
    """The definition of the tokens that `sample` draws."""
    rows = rows or ()
    logits, best = _with_largest(logits)
    picked = best.squeeze(-1)
    drawn = [i for i, row in enumerate(rows) if row.temperature >= COLDEST]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        weights = _weights(logits[index].float(), best[index], [rows[i].temperature for i in drawn])
        picked[index] = _draw(weights, [rows[i] for i in drawn])
    return picked


def _weights(logits: Tensor, best: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Relative to the largest, whose weight is 1. logits F32 [B, V], overwritten; best [B, 1]: where the largest is."""
    largest = logits.gather(-1, best)
    equal = logits == largest
    weights = logits.sub_(largest).div_(torch.tensor(temperatures, device=logits.device)[:, None]).exp_()
    # What is less weighs less, whatever rounding would say, so that no filter puts it before the largest.
    return weights.clamp_(max=BELOW_ONE).masked_fill_(equal, 1.0)


def _draw(weights: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    if any(r.top_k > 0 or r.top_p < 1 for r in rows):
        weights = _nucleus(weights, rows)
    if any(r.min_p for r in rows):
        floor = torch.tensor([r.min_p for r in rows], device=weights.device)[:, None]
        weights = weights.masked_fill(weights < floor, 0)
    # Inverse distribution in vocabulary order: no sort. float64, or a vocabulary's worth of rounding moves the edges.
    cumulative = weights.double().cumsum(-1)
    uniform = [[min(r.uniform, LAST_UNIFORM)] for r in rows]
    target = torch.tensor(uniform, dtype=torch.float64, device=weights.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _nucleus(weights: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Keeps each row's top_k tokens, and of those the smallest set that reaches top_p (at least one token)."""
    vocabulary = weights.shape[-1]
    ordered, index = weights.sort(stable=True, dim=-1, descending=True)
    keep_k = torch.tensor([r.top_k if r.top_k > 0 else vocabulary for r in rows], device=weights.device)[:, None]
    ordered = ordered.masked_fill(torch.arange(vocabulary, device=ordered.device) >= keep_k, 0)
    top_p = torch.tensor([r.top_p for r in rows], device=ordered.device)[:, None]
    reached = ordered.cumsum(-1)
    dropped = (reached - ordered >= top_p * reached[:, -1:]) & (top_p < 1)
    dropped[:, 0] = False  # (a top_p that is 0 in float32)
    return torch.zeros_like(weights).scatter_(-1, index, ordered.masked_fill(dropped, 0))


def log_probabilities(logits: Tensor, chosen: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the model's own distribution (before temperature): the chosen ids' [B], the `top` ids and values [B, top].
    -inf where a row has no distribution."""
    logged = _numbers(logits.float()).log_softmax(-1)
    logged = _numbers(logged)
    values, ids = logged.topk(top, -1) if top else (logged[:, :0], chosen[:, None][:, :0])
    return logged.gather(-1, chosen[:, None]).squeeze(-1), ids, values
