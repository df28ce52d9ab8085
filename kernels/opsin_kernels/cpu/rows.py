"""What happens to rows between products, by cpu/rows.c: one call where torch needs several, for rows of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels.cpu.native import LANES, can_run, differentiates, loaded


def can_take(*rows: Tensor) -> bool:
    """Whole vectors, of which nobody asks for a gradient. Others are the definitions'."""
    fits = all(x.dtype == torch.float32 and x.shape[-1] % LANES == 0 for x in rows)
    return fits and not differentiates(*rows) and can_run(*rows)


def rms_norm(x: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
    """See `opsin_kernels.rms_norm`."""
    x, width = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    pointers = (part.data_ptr() for part in (out, x, weight))
    loaded().rms_norm(*pointers, x.numel() // width, width, floor.data_ptr())
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """The sum, and its norm."""
    x, delta, width = x.contiguous(), delta.contiguous(), x.shape[-1]
    out, added = torch.empty_like(x), torch.empty_like(x)
    pointers = (part.data_ptr() for part in (out, added, x, delta, weight))
    loaded().add_rms_norm(*pointers, x.numel() // width, width, floor.data_ptr())
    return added, out


def silu_gated(gate_up: Tensor) -> Tensor:
    """See `opsin_kernels.activations.gated`."""
    gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
    out = torch.empty(*gate_up.shape[:-1], width)
    loaded().silu_gated(out.data_ptr(), gate_up.data_ptr(), out.numel() // max(1, width), width)
    return out


def can_forbid(logits: Tensor, mask: Tensor) -> bool:
    """Rows of any width."""
    dense = logits.dtype == torch.float32 and logits.dim() == 2 and logits.stride(1) == 1 and mask.is_contiguous()
    return dense and not differentiates(logits) and can_run(logits, mask)


def forbid_(logits: Tensor, mask: Tensor) -> None:
    """See `opsin_kernels.bitmask`."""
    (count, width), words = logits.shape, mask.shape[1]
    loaded().forbid(logits.data_ptr(), mask.data_ptr(), count, width, logits.stride(0), words)
