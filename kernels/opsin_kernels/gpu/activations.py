"""Gated activations over packed gate and up, a block of values a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.activations import Activation

KINDS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3}
BLOCK = 1024


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
    if KIND == 0:
        active = gate / (1 + tl.exp(-gate))
    elif KIND == 1:
        active = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    elif KIND == 2:
        # tanh(z) = 1 - 2 / (1 + e^2z)
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        active = 0.5 * gate * (2 - 2 / (1 + tl.exp(2 * inner)))
    else:
        active = gate / (1 + tl.exp(-1.702 * gate))
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + at, (active.to(kind).to(tl.float32) * up).to(kind), mask=inside)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    dense = gate_up.contiguous()
    size = dense.shape[-1] // 2
    out = torch.empty((*dense.shape[:-1], size), device=dense.device, dtype=dense.dtype)
    if out.numel():
        blocks = triton.cdiv(out.numel(), BLOCK)
        gated_values[(blocks,)](dense, out, out.numel(), SIZE=size, KIND=KINDS[activation], STEP=BLOCK, num_warps=4)
    return out
