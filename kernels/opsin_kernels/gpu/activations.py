"""Activations, alone or gating over packed gate and up: a block of values a program.

In 16 bit an activation is rounded once, at its end; the definition of quick-GELU, made of single operations, rounds
after each."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3}
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
def activate(
    x_ptr,  # [T, 2N], dense; without GATED [T, N]
    out_ptr,  # [T, N]
    count,  # T · N
    SIZE: tl.constexpr,  # N
    KIND: tl.constexpr,
    STEP: tl.constexpr,
    GATED: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    inside = at < count
    place = (at // SIZE) * (2 * SIZE) + at % SIZE if GATED else at
    gate = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    active = gate * share(gate, KIND)[0]
    if GATED:
        up = tl.load(x_ptr + place + SIZE, mask=inside, other=0.0).to(tl.float32)
        active = active.to(kind).to(tl.float32) * up
    tl.store(out_ptr + at, active.to(kind), mask=inside)


@triton.jit
def activate_backward(
    x_ptr,  # [T, 2N], dense; without GATED [T, N]
    grad_ptr,  # [T, N], dense: of the output
    out_ptr,  # like x
    count,  # T · N
    SIZE: tl.constexpr,  # N
    KIND: tl.constexpr,
    STEP: tl.constexpr,
    GATED: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    inside = at < count
    place = (at // SIZE) * (2 * SIZE) + at % SIZE if GATED else at
    gate = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    part, slope = share(gate, KIND)
    if GATED:
        tl.store(out_ptr + place + SIZE, (grad * gate * part).to(kind), mask=inside)
        grad *= tl.load(x_ptr + place + SIZE, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, (grad * (part + gate * slope)).to(kind), mask=inside)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up [..., 2N] -> [..., N]; differentiable."""
    return _run(gate_up.contiguous(), activation, True)


def activated(x: Tensor, activation: str) -> Tensor:
    """x [..., N] -> [..., N]; differentiable."""
    return _run(x.contiguous(), activation, False)


def _run(dense: Tensor, activation: str, gates: bool) -> Tensor:
    if torch.is_grad_enabled() and dense.requires_grad:
        out: Tensor = Activated.apply(dense, activation, gates)  # type: ignore[no-untyped-call]
        return out
    return _forward(dense, activation, gates)


class Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, activation: str, gates: bool) -> Tensor:
        ctx.save_for_backward(dense)
        ctx.activation, ctx.gates = activation, gates
        return _forward(dense, activation, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (dense,) = ctx.saved_tensors
        out = torch.empty_like(dense)
        if grad.numel():
            activate_backward[(triton.cdiv(grad.numel(), BLOCK),)](
                dense, grad.contiguous(), out, grad.numel(), SIZE=grad.shape[-1], KIND=KINDS[ctx.activation],
                STEP=BLOCK, GATED=ctx.gates, num_warps=4,
            )  # fmt: skip
        return out, None, None


def _forward(dense: Tensor, activation: str, gates: bool) -> Tensor:
    size = dense.shape[-1] // 2 if gates else dense.shape[-1]
    out = torch.empty((*dense.shape[:-1], size), device=dense.device, dtype=dense.dtype)
    if out.numel():
        activate[(triton.cdiv(out.numel(), BLOCK),)](
            dense, out, out.numel(), SIZE=size, KIND=KINDS[activation], STEP=BLOCK, GATED=gates, num_warps=4
        )
    return out
