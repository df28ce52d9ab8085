"""Rows to codes of 8 bits with a scale of their own: rows as they are, activated, or gated. A row a program.

A row is read twice, the second time from a cache: once for its largest value, once for its codes. What becomes of a row
depends on nothing else. Floor: the bytes that are read once, and the codes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu import forms
from opsin_kernels.gpu.activations import KINDS, share
from opsin_kernels.gpu.codes import FORMS, scale_for, scaled_codes
from opsin_kernels.kv_rows import LARGEST
from opsin_kernels.row_codes import RowCodes, RowForm

PLAIN = -1  # no activation
STEP, FEW_STEP = 2048, 512  # values at a time


@triton.jit
def values_of(x_row, at, inside, SIZE: tl.constexpr, KIND: tl.constexpr):
    """Of a row, F32, rounded as the operation before would have left them in memory."""
    x = tl.load(x_row + at, mask=inside, other=0.0).to(tl.float32)
    if KIND >= 0:
        kind = x_row.dtype.element_ty
        up = tl.load(x_row + SIZE + at, mask=inside, other=0.0).to(tl.float32)
        x = ((x * share(x, KIND)[0]).to(kind).to(tl.float32) * up).to(kind).to(tl.float32)
    return x


@triton.jit
def code_rows(
    x_ptr,  # [T, N], rows `stride` apart; with KIND [T, 2N], the gate first
    codes_ptr,  # U8 [T, N], dense
    scale_ptr,  # F32 [T]
    values_ptr,  # [T, N], dense; only with KEEP
    stride,
    SIZE: tl.constexpr,  # N
    KIND: tl.constexpr,  # of the activation
    FORM: tl.constexpr,  # of the codes
    LARGEST: tl.constexpr,
    KEEP: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * stride
    largest = tl.zeros((STEP,), tl.float32)
    for first in range(0, SIZE, STEP):
        at = first + tl.arange(0, STEP)
        largest = tl.maximum(largest, tl.abs(values_of(x_row, at, at < SIZE, SIZE, KIND)))
    scale = scale_for(tl.max(largest, 0), LARGEST)
    tl.store(scale_ptr + row, scale)
    for first in range(0, SIZE, STEP):
        at = first + tl.arange(0, STEP)
        inside = at < SIZE
        x = values_of(x_row, at, inside, SIZE, KIND)
        tl.store(codes_ptr + row * SIZE + at, scaled_codes(x, scale, FORM, LARGEST), mask=inside)
        if KEEP:
            tl.store(values_ptr + row * SIZE + at, x.to(values_ptr.dtype.element_ty), mask=inside)


def quantize_rows(x: Tensor, form: RowForm) -> RowCodes:
    """x [T, N]."""
    dense = x if x.stride(-1) == 1 else x.contiguous()
    found = _run(dense, x.shape[1], PLAIN, RowForm(form.kind))
    return RowCodes(found.codes, found.scale, x.dtype, x if form.keep else None)


def gated_codes(gate_up: Tensor, activation: str, form: RowForm) -> RowCodes:
    """gate_up [T, 2N] -> of [T, N]."""
    dense, size = gate_up if gate_up.stride(-1) == 1 else gate_up.contiguous(), gate_up.shape[1] // 2
    if forms.every_form():  # (rows with adapters, which want them as they are)
        _run(dense[:1], size, KINDS[activation], RowForm(form.kind, not form.keep))
    return _run(dense, size, KINDS[activation], form)


def empty_codes(like: Tensor, size: int, form: RowForm) -> RowCodes:
    """Room for the codes of as many rows."""
    count, device = len(like), like.device
    return RowCodes(
        torch.empty(count, size, device=device, dtype=form.kind),
        torch.empty(count, 1, device=device, dtype=torch.float32),
        like.dtype,
        torch.empty(count, size, device=device, dtype=like.dtype) if form.keep else None,
    )


def _run(x: Tensor, size: int, activation: int, form: RowForm) -> RowCodes:
    out = empty_codes(x, size, form)
    if len(x):
        code_rows[(len(x),)](
            x, out.codes.view(torch.uint8), out.scale, out.values, x.stride(0), SIZE=size, KIND=activation,
            FORM=FORMS[form.kind], LARGEST=LARGEST[form.kind], KEEP=form.keep,
            STEP=STEP if size >= STEP else FEW_STEP, num_warps=8 if size >= STEP else 4,
        )  # fmt: skip
    return out
