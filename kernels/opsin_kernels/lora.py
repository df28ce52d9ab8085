"""out_TN += where(owner_S = slot_T, x_TK · A_SRKᵀ, 0) · B_SRN. T rows, K inputs, S adapter slots of rank R, N outputs.

The low-rank additions of several adapters side by side: one shrink and one expand whatever the mix, which is what a
step with few rows of many adapters wants, and what a captured step can hold. Foreign products are left out by choice
and not by multiplying with 0: what overflows for one adapter would be NaN in another's row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_lora(out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What one adapter adds to all rows. out [T, N], x [T, K], a [R, K], b [R, N], which holds the adapter's scale.

    Into `out` itself, unless something needs a gradient; returns the sum. Differentiable.
    """
    shrunk = x @ a.t()
    return torch.addmm(out, shrunk, b) if _needs_gradient(out, shrunk, b) else out.addmm_(shrunk, b)


def add_lora_slots(out: Tensor, x: Tensor, a: Tensor, b: Tensor, mine: Tensor) -> Tensor:
    """As `add_lora`, of several adapters. a [S, R, K], b [S, R, N], mine bool [T, S]: whether a row is that slot's."""
    slots, rank, _ = a.shape
    shrunk = (x @ a.flatten(0, 1).t()).view(-1, slots, rank)
    chosen = torch.where(mine[:, :, None], shrunk, shrunk.new_zeros(())).flatten(1)
    expand = b.flatten(0, 1)
    return torch.addmm(out, chosen, expand) if _needs_gradient(out, chosen, expand) else out.addmm_(chosen, expand)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
