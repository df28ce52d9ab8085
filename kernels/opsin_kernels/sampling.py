"""token_B ~ filtered softmax(logits_BV / temperature_B). B rows, V vocabulary.

Filters in this order, each on what the former left: top-k, top-p, min-p (relative to the largest). A row's draw depends
on its own logits, parameters and uniform number only, so the rows beside it change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.transfer import on_device


@dataclass(frozen=True)
class SamplingRow:
    """One row's parameters. temperature 0: greedy. top_k 0, top_p 1, min_p 0: off. uniform: its draw in [0, 1)."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


def settings_of(rows: Sequence[SamplingRow], device: torch.device) -> Tensor:
    """F64 [B, 5] for the kernel: temperature, top-k, top-p, min-p, uniform."""
    return on_device([(r.temperature, r.top_k, r.top_p, r.min_p, r.uniform) for r in rows], torch.float64, device)


def sample(logits: Tensor, rows: Sequence[SamplingRow], settings: Tensor | None = None) -> Tensor:
    """logits [B, V] -> token ids I64 [B]. settings: the rows on the device, where they are there already."""
    if uses_kernels(logits):
        from opsin_kernels.gpu import sampling as gpu

        return gpu.draw(logits, settings_of(rows, logits.device) if settings is None else settings)
    return sample_ref(logits, rows)


def sample_ref(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The definition of `sample`."""
    picked = logits.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        picked[index] = _draw(logits[index].float(), [rows[i] for i in drawn])
    return picked


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    probabilities = (logits / column([r.temperature for r in rows])).softmax(-1)
    if any(r.top_k or r.top_p < 1 for r in rows):
        probabilities = _nucleus(probabilities, rows)
    if any(r.min_p for r in rows):
        floor = column([r.min_p for r in rows]) * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    # Inverse distribution in vocabulary order: no sort. float64, or a vocabulary's worth of rounding moves the edges.
    cumulative = probabilities.double().cumsum(-1)
    target = (
        torch.tensor([r.uniform for r in rows], dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    )
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _nucleus(probabilities: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Keeps each row's top_k tokens, and of those the smallest set that reaches top_p (at least one token)."""
    vocabulary = probabilities.shape[-1]
    ordered, index = probabilities.sort(stable=True, dim=-1, descending=True)
    keep_k = torch.tensor([r.top_k or vocabulary for r in rows], device=probabilities.device)[:, None]
    ordered = ordered.masked_fill(torch.arange(vocabulary, device=ordered.device) >= keep_k, 0)
    top_p = torch.tensor([r.top_p for r in rows], device=ordered.device)[:, None]
    before = (ordered.cumsum(-1) - ordered) / ordered.sum(-1, keepdim=True)
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1), 0)
    return torch.zeros_like(probabilities).scatter_(-1, index, ordered)


def log_probabilities(logits: Tensor, chosen: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the model's own distribution (before temperature): the chosen ids' [B], the `top` ids and values [B, top]."""
    logged = logits.float().log_softmax(-1)
    values, ids = logged.topk(top, -1) if top else (logged[:, :0], chosen[:, None][:, :0])
    return logged.gather(-1, chosen[:, None]).squeeze(-1), ids, values
