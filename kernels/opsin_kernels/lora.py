"""out_TN += x_TK · A_RKᵀ · B_RN, with the A and B of each row's adapter. T rows, K inputs, rank R, N outputs.
Source: arXiv 2106.09685 (LoRA); many adapters in one batch: arXiv 2310.18547 (Punica).

S adapters lie in slots. One shrink and one expand do all of them whatever the mix, which is what a step with few rows
of many adapters wants, and what a captured step can hold. What is foreign is left out by choice and not by multiplying
with 0: what overflows for one adapter would be NaN in another's row.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.slot_rows import SlotRows

COLUMNS = 128  # outputs that a program of the expand kernel writes


@dataclass(frozen=True)
class SlotFactors:
    """One linear's factors of all slots. a [S, G, R, K] of its G segments; b [S, R, N], which holds the adapters'
    scales, the segments' columns one behind the other; both dense.

    ranks I32 [S, G]: how many of the R rows an adapter has for a segment, 0 where it leaves it alone; the others are
    zeros. columns: where each segment stands. tiles I32 [C, 3]: the same cut into pieces (`column_tiles`).
    """

    a: Tensor
    b: Tensor
    ranks: Tensor
    columns: Sequence[slice]
    tiles: Tensor


@dataclass(frozen=True)
class SideBySide:
    """One linear's factors of some adapters, without what their slots have beyond their ranks. a [C, K]; segments: the
    columns of each that any of them changes, its rows of a, and its b [rows, columns]; owners I64 [C]: the slot that a
    row of a belongs to; key: the same, to look up what depends on nothing else. slots: which they are."""

    a: Tensor
    segments: Sequence[tuple[slice, slice, Tensor]]
    owners: Tensor
    key: bytes
    slots: Set[int]


def column_tiles(columns: Sequence[slice]) -> list[tuple[int, int, int]]:
    """Segment, first column and end of each piece of at most COLUMNS columns."""
    return [
        (segment, first, min(first + COLUMNS, span.stop))
        for segment, span in enumerate(columns)
        for first in range(span.start, span.stop, COLUMNS)
    ]


def add_lora(out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What one adapter adds to all rows. out [T, N], x [T, K], a [R, K], b [R, N], which holds the adapter's scale.

    Into `out` itself, unless something needs a gradient; returns the sum. Differentiable.
    """
    shrunk = x @ a.t()
    return torch.addmm(out, shrunk, b) if _needs_gradient(out, shrunk, b) else out.addmm_(shrunk, b)


def add_lora_slots(out: Tensor, x: Tensor, factors: SlotFactors, rows: SlotRows) -> Tensor:
    """What adapters add to their rows: out [T, N], x [T, K] -> the sum, into `out` itself.

    The definition is differentiable; kernels raise ValueError where something needs a gradient.
    """
    if uses_kernels(x):
        from opsin_kernels.gpu import lora as gpu

        return gpu.add_lora_slots(out, x, factors, rows)
    return add_lora_slots_ref(out, x, factors, rows)


def add_lora_slots_ref(out: Tensor, x: Tensor, factors: SlotFactors, rows: SlotRows) -> Tensor:
    """The definition of `add_lora_slots`: slots side by side, all but the row's own left out in between."""
    for segment, columns in enumerate(factors.columns):
        a, b = factors.a[:, segment], factors.b[:, :, columns].flatten(0, 1)
        shrunk = (x @ a.flatten(0, 1).t()).view(-1, *a.shape[:2])
        chosen = torch.where(rows.mine[:, :, None], shrunk, shrunk.new_zeros(())).flatten(1)
        before = out[:, columns]
        if _needs_gradient(before, chosen, b):
            out = torch.slice_scatter(out, torch.addmm(before, chosen, b), 1, columns.start, columns.stop)
        else:
            before.addmm_(chosen, b)
    return out


def add_lora_beside(out: Tensor, x: Tensor, factors: SideBySide, foreign: Tensor) -> None:
    """The same without kernels, for adapters that have been laid side by side: one shrink for all of them and one
    expand a segment, of nothing but what they have. foreign bool [T, C]: which rows of `factors.a` belong to another
    adapter than a row's. Into `out`; not differentiable."""
    shrunk = (x @ factors.a.t()).masked_fill_(foreign, 0)
    for columns, lines, b in factors.segments:
        out[:, columns].addmm_(shrunk[:, lines], b)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
