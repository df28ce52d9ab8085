"""Gated activations over packed gate and up, a block of values a program."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from opsin_kernels.activations import Activation

KINDS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3}
BLOCK = 1024


@triton.jit
def share(gate, KIND: tl.constexpr):
    """What part of a gate passes, and that part's slope: every one of these activations is gate · part(gate)."""
    if KIND == 1:
        part = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
        slope = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    elif KIND == 2:
        # 0.5 (1 + tanh(z)) = sigmoid(2z)
        part = 1 / (1 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
        slope = part * (1 - part) * 1.5957691216057308 * (1 + 0.134145 * gate * gate)
    else:
        steep: tl.constexpr = 1.0 if KIND == 0 else 1.702
        part = 1 / (1 + tl.exp(-steep * gate))
        slope = part * (1 - part) * steep
    return part, slope


@triton.jit
def gated_values(
    x_ptr,  # [T, 2N], dense
    out_ptr,  # [T, N]
    count,  # T · N
    SIZE: tl.constexpr,  # N
    KIND: tl.constexpr,
    STEP: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    inside = at < count
    row = at // SIZE
    place = x_ptr + row * (2 * SIZE) + at % SIZE
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + SIZE, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    active = (gate * share(gate, KIND)[0]).to(kind).to(tl.float32)
    tl.store(out_ptr + at, (active * up).to(kind), mask=inside)


@triton.jit
def gated_values_backward(
    x_ptr,  # [T, 2N], dense
    grad_ptr,  # [T, N], dense: of the output
    out_ptr,  # [T, 2N]
    count,  # T · N
    SIZE: tl.constexpr,  # N
    KIND: tl.constexpr,
    STEP: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    inside = at < count
    place = (at // SIZE) * (2 * SIZE) + at % SIZE
    gate = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + place + SIZE, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    part, slope = share(gate, KIND)
    tl.store(out_ptr + place, (grad * up * (part + gate * slope)).to(kind), mask=inside)
    tl.store(out_ptr + place + SIZE, (grad * gate * part).to(kind), mask=inside)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """gate_up [..., 2N] -> [..., N]; differentiable."""
    dense = gate_up.contiguous()
    if torch.is_grad_enabled() and gate_up.requires_grad:
        out: Tensor = Gated.apply(dense, activation)  # type: ignore[no-untyped-call]
        return out
    return _forward(dense, activation)


class Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(dense)
        ctx.activation = activation
        return _forward(dense, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (dense,) = ctx.saved_tensors
        out = torch.empty_like(dense)
        if grad.numel():
            gated_values_backward[(triton.cdiv(grad.numel(), BLOCK),)](
                dense, grad.contiguous(), out, grad.numel(), SIZE=grad.shape[-1], KIND=KINDS[ctx.activation],
                STEP=BLOCK, num_warps=4,
            )  # fmt: skip
        return out, None


def _forward(dense: Tensor, activation: Activation) -> Tensor:
    size = dense.shape[-1] // 2
    out = torch.empty((*dense.shape[:-1], size), device=dense.device, dtype=dense.dtype)
    if out.numel():
        blocks = triton.cdiv(out.numel(), BLOCK)
        gated_values[(blocks,)](dense, out, out.numel(), SIZE=size, KIND=KINDS[activation], STEP=BLOCK, num_warps=4)
    return out
