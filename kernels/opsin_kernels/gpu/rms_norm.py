"""RMSNorm, alone or of a sum, also as codes of 8 bits, one row a program; its backward, some rows a program."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from opsin_kernels.gpu import forms
from opsin_kernels.gpu.codes import FORMS, scale_for, scaled_codes
from opsin_kernels.gpu.row_codes import empty_codes
from opsin_kernels.kv_rows import LARGEST
from opsin_kernels.row_codes import RowCodes, RowForm

PROGRAMS = 256  # of a backward pass: each leaves one row of the weight's gradient to be summed


@triton.jit
def rms_norm_rows(
    x_ptr,  # [T, N], rows `stride` apart
    delta_ptr,  # [T, N], dense; only with ADDED
    sum_ptr,  # [T, N], dense; only with ADDED
    weight_ptr,  # [N]
    floor_ptr,  # F32 [], epsilon
    out_ptr,  # [T, N], dense; only with KEEP
    codes_ptr,  # U8 [T, N], dense; only with FORM
    scale_ptr,  # F32 [T]; only with FORM
    stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROUNDED: tl.constexpr,  # whether the quotient is rounded before it meets the weight
    ADDED: tl.constexpr,
    ONE_PLUS: tl.constexpr,  # the factor is 1 + weight
    KEEP: tl.constexpr = True,
    FORM: tl.constexpr = "",  # of the codes that the norm is wanted in, too
    LARGEST: tl.constexpr = 0.0,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < SIZE
    x = tl.load(x_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    kind = x_ptr.dtype.element_ty
    if ADDED:
        x += tl.load(delta_ptr + row * SIZE + at, mask=inside, other=0.0).to(tl.float32)
        x = x.to(kind).to(tl.float32)  # what goes on is what is normalised
        tl.store(sum_ptr + row * SIZE + at, x.to(kind), mask=inside)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ONE_PLUS:
        weight += 1.0
    scaled = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + tl.load(floor_ptr))
    if ROUNDED:
        scaled = scaled.to(kind).to(tl.float32)
    normed = (scaled * weight).to(kind)
    if KEEP:
        tl.store(out_ptr + row * SIZE + at, normed, mask=inside)
    if FORM != "":
        numbers = normed.to(tl.float32)
        scale = scale_for(tl.max(tl.abs(numbers), 0), LARGEST)
        tl.store(codes_ptr + row * SIZE + at, scaled_codes(numbers, scale, FORM, LARGEST), mask=inside)
        tl.store(scale_ptr + row, scale)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_rows_backward(
    x_ptr,  # [T, N], rows `stride` apart: what was normalised
    grad_ptr,  # [T, N], dense: of the output
    straight_ptr,  # [T, N], dense: of the sum itself; only with ADDED
    weight_ptr,  # [N]
    floor_ptr,  # F32 [], epsilon
    x_grad_ptr,  # [T, N], dense
    weight_grad_ptr,  # F32 [programs, N], one part a program; only with WEIGHTED
    stride,
    rows,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ADDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ONE_PLUS: tl.constexpr,
):
    at = tl.arange(0, PADDED)
    inside = at < SIZE
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ONE_PLUS:
        weight += 1.0
    floor = tl.load(floor_ptr)
    weight_grad = tl.zeros((PADDED,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        wide = tl.zeros((), tl.int64) + row
        x = tl.load(x_ptr + wide * stride + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + wide * SIZE + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + floor)
        unit = x * scale
        turned = grad * weight
        x_grad = scale * (turned - unit * (tl.sum(turned * unit, 0) / SIZE))
        if ADDED:
            x_grad += tl.load(straight_ptr + wide * SIZE + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_grad_ptr + wide * SIZE + at, x_grad.to(x_grad_ptr.dtype.element_ty), mask=inside)
        if WEIGHTED:
            weight_grad += grad * unit
    if WEIGHTED:
        tl.store(weight_grad_ptr + tl.program_id(0) * SIZE + at, weight_grad, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, floor: Tensor, one_plus: bool = False) -> Tensor:
    """x [..., N]; differentiable."""
    rows = x.reshape(-1, x.shape[-1])
    return _norm(rows, None, weight, floor, one_plus)[1].view(x.shape)


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor, one_plus: bool = False
) -> tuple[Tensor, Tensor]:
    """x and delta [..., N]; differentiable."""
    size = x.shape[-1]
    added, out = _norm(x.reshape(-1, size), delta.reshape(-1, size), weight, floor, one_plus)
    return added.view(x.shape), out.view(x.shape)


def norm_codes(
    x: Tensor, delta: Tensor | None, weight: Tensor, floor: Tensor, form: RowForm
) -> tuple[Tensor | None, RowCodes]:
    """x and delta [T, N] -> (their sum, its norm as codes), or (None, the norm of x)."""
    if forms.every_form():  # (rows with adapters, which want them as they are)
        _codes(x[:1], None if delta is None else delta[:1], weight, floor, RowForm(form.kind, not form.keep))
    return _codes(x, delta, weight, floor, form)


def _codes(
    x: Tensor, delta: Tensor | None, weight: Tensor, floor: Tensor, form: RowForm
) -> tuple[Tensor | None, RowCodes]:
    rows, size = x if x.stride(-1) == 1 else x.contiguous(), x.shape[1]
    added = None if delta is None else torch.empty(x.shape, device=x.device, dtype=x.dtype)
    out = empty_codes(x, size, form)
    if len(rows):
        padded = triton.next_power_of_2(size)
        rms_norm_rows[(len(rows),)](
            rows, None if delta is None else delta.contiguous(), added, weight, floor, out.values,
            out.codes.view(torch.uint8), out.scale, rows.stride(0), SIZE=size, PADDED=padded,
            ROUNDED=x.dtype != torch.float32, ADDED=delta is not None, ONE_PLUS=False, KEEP=form.keep,
            FORM=FORMS[form.kind], LARGEST=LARGEST[form.kind], num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
    return added, out


def _norm(x: Tensor, delta: Tensor | None, weight: Tensor, floor: Tensor, one_plus: bool) -> tuple[Any, Tensor]:
    inputs = (x, weight) if delta is None else (x, delta, weight)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        found: tuple[Any, Tensor] = Normed.apply(x, delta, weight, floor, one_plus)  # type: ignore[no-untyped-call]
        return found
    return _forward(x, delta, weight, floor, one_plus)


class Normed(torch.autograd.Function):
    """(x + delta, its norm), or (None, the norm of x)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, floor: Tensor, one_plus: bool
    ) -> tuple[Any, Tensor]:
        added, out = _forward(x, delta, weight, floor, one_plus)
        ctx.one_plus = one_plus
        ctx.save_for_backward(x if added is None else added, weight, floor)
        ctx.set_materialize_grads(False)
        return added, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, straight: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, floor = ctx.saved_tensors
        wants_delta, wants_weight = ctx.needs_input_grad[1:3]
        if grad is None:
            return straight, straight if wants_delta else None, None, None, None
        x_grad, weight_grad = _backward(x, grad, straight, weight, floor, wants_weight, ctx.one_plus)
        return x_grad, x_grad if wants_delta else None, weight_grad, None, None


def _forward(
    x: Tensor, delta: Tensor | None, weight: Tensor, floor: Tensor, one_plus: bool
) -> tuple[Tensor | None, Tensor]:
    rows = x if x.stride(-1) == 1 else x.contiguous()
    added = None if delta is None else torch.empty(x.shape, device=x.device, dtype=x.dtype)
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    if len(rows):
        size, padded = rows.shape[-1], triton.next_power_of_2(rows.shape[-1])
        rms_norm_rows[(len(rows),)](
            rows, None if delta is None else delta.contiguous(), added, weight, floor, out, None, None, rows.stride(0),
            SIZE=size, PADDED=padded, ROUNDED=x.dtype != torch.float32 and not one_plus, ADDED=delta is not None,
            ONE_PLUS=one_plus, num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
    return added, out


def _backward(
    x: Tensor, grad: Tensor, straight: Tensor | None, weight: Tensor, floor: Tensor, weighted: bool, one_plus: bool
) -> tuple[Tensor, Tensor | None]:
    rows = x if x.stride(-1) == 1 else x.contiguous()
    x_grad = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    programs, size = min(len(rows), PROGRAMS), rows.shape[-1]
    parts = torch.empty(programs, size, device=x.device) if weighted else None  # (each program writes its row)
    if programs:
        padded = triton.next_power_of_2(size)
        rms_norm_rows_backward[(programs,)](
            rows, grad.contiguous(), None if straight is None else straight.contiguous(), weight, floor, x_grad, parts,
            rows.stride(0), len(rows), SIZE=size, PADDED=padded, ADDED=straight is not None, WEIGHTED=weighted,
            ONE_PLUS=one_plus, num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
    return x_grad, None if parts is None else parts.sum(0).to(weight.dtype)
