"""Cross-entropy of a chunk of rows: the library's two products, and between them one row of logits a program.

A program reads its row twice: for the sum of exponentials, the loss and the largest, then to write what the gradient of
the logits is in their own place. Logits come as float32 out of the first product whatever the weight is, and leave in
the weight's type, as the second product wants them, at the front of the same memory. So a call holds 4 · M · N bytes.

Floor: the weight twice, since no cache holds it, and 16 bytes a logit (20 with a float32 weight). 64 rows of
Qwen2-VL-7B: 2.18 GB and 0.16 GB, with 0.14 TFLOP; up to some 230 rows on an H100 the weight takes longer than the
products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu.wide_product import wide_product

STEP = 4096
# Of 150,000 probabilities most are below float16's normal numbers: they pass the second product times this power of 2.
FLOAT16_SCALE = 2.0**15


@triton.jit(do_not_specialize_on_alignment=["labels_ptr"])
def cross_entropy_rows(
    logits_ptr,  # F32 [M, N], rows `stride` apart
    labels_ptr,  # I64 [M]
    loss_ptr,  # F32 [M]
    hit_ptr,  # bool [M]
    out_ptr,  # [M, N], rows `out_stride` apart, each at the front of its row of logits; only with GRADIENT
    stride,
    out_stride,
    size,  # N
    STEP: tl.constexpr,
    SCALE: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    label = tl.load(labels_ptr + row)
    known = (label >= 0) & (label < size)
    logit = tl.load(row_ptr + label, mask=known, other=float("nan"))

    # Every place of a step has a sum of its own: one over all of them would have the threads wait for each other at
    # every step. It begins at the least number, beside which -inf leaves no NaN.
    largest = tl.full((STEP,), -3.4028234663852886e38, tl.float32)
    total = tl.zeros((STEP,), tl.float32)
    best = tl.zeros((STEP,), tl.int32) - 1
    for start in range(0, size, STEP):
        at = start + tl.arange(0, STEP)
        x = tl.load(row_ptr + at, mask=at < size, other=float("-inf"))
        best = tl.where(x > largest, at, best)
        risen = tl.maximum(largest, x)
        total = total * tl.exp(largest - risen) + tl.exp(x - risen)
        largest = risen
    most = tl.max(largest, 0)
    total = tl.sum(total * tl.exp(largest - most), 0)
    first = tl.min(tl.where(largest == most, best, size), 0)
    loss = most - logit + tl.log(total)
    tl.store(loss_ptr + row, loss)
    tl.store(hit_ptr + row, (first == label) & (tl.abs(loss) < float("inf")))

    if GRADIENT:
        total = tl.where(known, total, float("nan"))
        kind = out_ptr.dtype.element_ty
        for start in range(0, size, STEP):
            at = start + tl.arange(0, STEP)
            x = tl.load(row_ptr + at, mask=at < size, other=float("-inf"))
            share = tl.exp(x - most) / total
            share = tl.where(at == label, share - 1.0, share) * SCALE
            tl.debug_barrier()  # what is written lies where other threads of this program read
            tl.store(out_ptr + row * out_stride + at, share.to(kind), mask=at < size)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, wants_gradient: bool, step: int = STEP
) -> tuple[Tensor, Tensor | None, Tensor]:
    """x [M, H], weight [N, H], labels I64 [M] -> loss F32 [M], gradient of x [M, H] where it is wanted, hit bool [M].

    The gradient of a logit is rounded to the weight's type, by at most 2^-8 of itself in bfloat16 and 2^-11 in float16,
    like the result: measured, a row's error is 1.4e-3 and 1.6e-4 of its length at most. Deterministic where the
    library's products are.
    """
    rows, size = len(x), len(weight)
    loss = torch.empty(rows, device=x.device, dtype=torch.float32)
    hit = torch.empty(rows, device=x.device, dtype=torch.bool)
    if not rows:
        return loss, torch.empty_like(x) if wants_gradient else None, hit
    logits = wide_product(x, weight.t())
    out = logits.view(weight.dtype)[:, :size]
    scale = FLOAT16_SCALE if weight.dtype == torch.float16 else 1.0
    cross_entropy_rows[(rows,)](
        logits, labels.contiguous(), loss, hit, out, logits.stride(0), out.stride(0), size, STEP=step, SCALE=scale,
        GRADIENT=wants_gradient, num_warps=8,
    )  # fmt: skip
    return loss, wide_product(out, weight).div_(scale).to(x.dtype) if wants_gradient else None, hit
