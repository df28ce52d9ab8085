"""LayerNorm, alone or of a sum, one row a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def layer_norm_rows(
    x_ptr,  # [T, N], rows `stride` apart
    delta_ptr,  # [T, N], dense; only with ADDED
    sum_ptr,  # [T, N], dense; only with ADDED
    weight_ptr,  # [N]
    bias_ptr,  # [N]
    out_ptr,  # [T, N], dense
    stride,
    eps,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ADDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < SIZE
    kind = out_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        x += tl.load(delta_ptr + row * SIZE + at, mask=inside, other=0.0).to(tl.float32)
        x = x.to(kind).to(tl.float32)  # what goes on is what is normalised
        tl.store(sum_ptr + row * SIZE + at, x.to(kind), mask=inside)
    centred = tl.where(inside, x - tl.sum(x, 0) / SIZE, 0.0)
    unit = centred * tl.rsqrt(tl.sum(centred * centred, 0) / SIZE + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * SIZE + at, (unit * weight + bias).to(kind), mask=inside)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _launch(x, None, weight, bias, eps)[1]


def add_layer_norm(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    added, out = _launch(x, delta.contiguous(), weight, bias, eps)
    assert added is not None
    return added, out


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor | None, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    added = None if delta is None else torch.empty_like(out)
    if len(rows):
        size, padded = rows.shape[-1], triton.next_power_of_2(rows.shape[-1])
        layer_norm_rows[(len(rows),)](
            rows, delta, added, weight, bias, out, rows.stride(0), eps, SIZE=size, PADDED=padded,
            ADDED=delta is not None, num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
    return added, out
