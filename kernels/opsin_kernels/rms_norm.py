"""out_TN = x_TN / rms(x_T) · w_N. T rows, N values. Source: arXiv 1910.07467 (RMSNorm), as Llama rounds it.

In 16 bit the quotient is rounded before it meets the weight, as Llama's descendants do. With one_plus, as Gemma does,
the factor is 1 + w and everything is rounded once, at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opsin_kernels.cpu import rows as cpu
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.row_codes import RowCodes, RowForm, quantize_rows_ref


def rms_norm(x: Tensor, weight: Tensor, floor: Tensor, one_plus: bool = False) -> Tensor:
    """x [..., N], weight [N], floor: epsilon, F32 [] -> [..., N]; differentiable. Accumulates in float32."""
    if uses_kernels(x):
        from opsin_kernels.gpu import rms_norm as gpu

        return gpu.rms_norm(x, weight, floor, one_plus)
    if not one_plus and cpu.can_take(x, weight):
        return cpu.rms_norm(x, weight, floor)
    return rms_norm_ref(x, weight, floor, one_plus)


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor, one_plus: bool = False
) -> tuple[Tensor, Tensor]:
    """x and delta [T, N] -> their sum, and its norm; differentiable. One pass over memory instead of two on a GPU."""
    if uses_kernels(x):
        from opsin_kernels.gpu import rms_norm as gpu

        return gpu.add_rms_norm(x, delta, weight, floor, one_plus)
    if not one_plus and cpu.can_take(x, delta, weight):
        return cpu.add_rms_norm(x, delta, weight, floor)
    added = x + delta
    return added, rms_norm_ref(added, weight, floor, one_plus)


def rms_norm_codes(x: Tensor, weight: Tensor, floor: Tensor, form: RowForm) -> RowCodes:
    """x [T, N] -> its norm in 8 bits, row by row, for a product with a weight in 8 bits. No gradient."""
    if uses_kernels(x):
        from opsin_kernels.gpu import rms_norm as gpu

        return gpu.norm_codes(x, None, weight, floor, form)[1]
    return quantize_rows_ref(rms_norm(x, weight, floor), form)


def add_rms_norm_codes(
    x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor, form: RowForm
) -> tuple[Tensor, RowCodes]:
    """x and delta [T, N] -> their sum, and its norm in 8 bits. No gradient."""
    if uses_kernels(x):
        from opsin_kernels.gpu import rms_norm as gpu

        added, codes = gpu.norm_codes(x, delta, weight, floor, form)
        assert added is not None
        return added, codes
    added, normed = add_rms_norm(x, delta, weight, floor)
    return added, quantize_rows_ref(normed, form)


def rms_norm_ref(x: Tensor, weight: Tensor, floor: Tensor, one_plus: bool = False) -> Tensor:
    """The definition of `rms_norm`."""
    if torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad:
        out: Tensor = _FrozenRMSNorm.apply(x, weight, floor, one_plus)  # type: ignore[no-untyped-call]
        return out
    return _normed(x, _scale(x.float(), floor), weight, one_plus)


def _normed(x: Tensor, scale: Tensor, weight: Tensor, one_plus: bool) -> Tensor:
    if x.dtype == torch.float32:
        return x * scale * (1.0 + weight if one_plus else weight)
    if one_plus:
        return (x.float() * scale * (1.0 + weight.float())).to(x.dtype)
    return (x.float() * scale).to(x.dtype) * weight


def _scale(x: Tensor, floor: Tensor) -> Tensor:
    """1 / rms [..., 1]. Through the vector norm: 11 µs for a row of 192, against 16 for F.rms_norm."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(floor, norm, norm, value=1 / x.shape[-1]).rsqrt()


class _FrozenRMSNorm(torch.autograd.Function):
    """Keeps x and a number a row, where autograd would keep x three times and take twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, floor: Tensor, one_plus: bool) -> Tensor:
        scale = _scale(x.float(), floor)
        ctx.one_plus = one_plus
        ctx.save_for_backward(x, scale, weight)
        return _normed(x, scale, weight, one_plus)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, weight = ctx.saved_tensors
        wide, factor = x.float(), weight.float() + 1.0 if ctx.one_plus else weight.float()
        scaled = gradient.float() * factor
        along = torch.linalg.vecdot(scaled, wide).unsqueeze(-1) * scale.pow(3)
        return torch.addcmul(scaled * scale, wide, along, value=-1 / x.shape[-1]).to(x.dtype), None, None, None
