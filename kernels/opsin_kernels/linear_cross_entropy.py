"""loss_M = logsumexp_N(x_MH · W_NHᵀ) - (x_MH · W_NHᵀ)[label_M]. M rows that carry a label, H width, N vocabulary.

W, the head, is frozen. So nothing but x has a gradient, (softmax_MN - onehot_MN) · W_NH, which is made together with
the loss: nothing of M × N values outlives a call. Rows without a label are the caller's to leave out beforehand.
Logits, exponentials and sums are float32 for 16-bit weights as well: rounded to bfloat16, logits that spread by 5 put
up to 6e-2 into a row's loss, and as much of it into its gradient.

Source: gradients in the forward pass, arXiv 2410.10989 (Liger); running sums of exponentials, arXiv 1805.02867.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opsin_kernels.dispatch import uses_kernels

BLOCK = 2048  # tokens of the vocabulary that the definition looks at together
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PackedHead:
    """A weight [N, H] in codes or in 16 bits, of which a block at a time is float32, for rows in float32 on a CPU.
    rows: I64 [n] -> these of its rows, F32 [n, H]."""

    shape: tuple[int, int]
    rows: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return self.shape[0]


Head = Tensor | PackedHead


def linear_cross_entropy(x: Tensor, weight: Head, labels: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, H], weight [N, H], labels I64 [M] -> the loss F32 [M] in nats, and whether the label is the most likely
    token (the first of equally likely ones), bool [M]. Differentiable in x, once.

    Where x needs no gradient none is made, which saves a third of the time on CPUs. Raises ValueError for other shapes,
    for a weight that is quantized and no `PackedHead`, of another type than x or that needs a gradient, and for labels
    outside of the vocabulary, -100 among them, where they lie on a CPU. A device is not waited for: there such a row's
    loss and gradient are NaN, as are, anywhere, those of a row whose largest logit is no finite number. It is no hit.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        found: tuple[Tensor, Tensor] = LinearCrossEntropy.apply(x, weight, labels)  # type: ignore[no-untyped-call]
        return found
    loss, _, hit = _run(x, weight, labels, wants_gradient=False)
    return loss, hit


def linear_cross_entropy_with_gradient(x: Tensor, weight: Head, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its gradient [M, H] of x in the type of x, one row's loss to one row of x, and the hits; for who walks
    backwards without autograd. Raises like `linear_cross_entropy`."""
    loss, gradient, hit = _run(x, weight, labels, wants_gradient=True)
    assert gradient is not None
    return loss, gradient, hit


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Head, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient, hit = linear_cross_entropy_with_gradient(x, weight, labels)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(hit)
        return loss, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[:, None]).to(gradient.dtype), None, None


def _run(x: Tensor, weight: Head, labels: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    _check(x, weight, labels)
    with torch.no_grad():
        if uses_kernels(x):
            from opsin_kernels.gpu import linear_cross_entropy as gpu

            assert isinstance(weight, Tensor)
            return gpu.linear_cross_entropy(x, weight, labels, wants_gradient)
        return linear_cross_entropy_ref(x, weight, labels, wants_gradient)


def _check(x: Tensor, weight: Head, labels: Tensor) -> None:
    if x.dim() != 2 or len(weight.shape) != 2 or x.shape[1] != weight.shape[1] or labels.shape != x.shape[:1]:
        shapes = f"x {list(x.shape)}, weight {list(weight.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"{shapes} are not [M, H], [N, H] and [M]")
    if isinstance(weight, PackedHead):
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(f"x {x.dtype} on {x.device.type}: a packed head is for float32 on a CPU")
    else:
        _check_dense(x, weight)
    if labels.dtype != torch.int64:
        raise ValueError(f"labels {labels.dtype} are not int64")
    if labels.device.type == "cpu" and len(labels):
        least, most = (int(label) for label in labels.aminmax())
        if least < 0 or most >= len(weight):
            raise ValueError(f"label {least if least < 0 else most} is none of the {len(weight)} tokens")


def _check_dense(x: Tensor, weight: Tensor) -> None:
    if x.dtype != weight.dtype or x.dtype not in DTYPES:
        raise ValueError(f"x {x.dtype} and weight {weight.dtype}: a head is dense, and of the rows' own type")
    if weight.requires_grad:
        raise ValueError("the weight needs a gradient, and a frozen head gets none")


def linear_cross_entropy_ref(
    x: Tensor, weight: Head, labels: Tensor, wants_gradient: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The definition of `linear_cross_entropy_with_gradient`; gradient None where it is not wanted.

    It goes through the vocabulary once, in blocks: sums are of exponentials relative to the largest logit so far, and
    fade when a larger one comes. Its largest tensors are F32 [M, BLOCK] and F32 [M, H], and F32 [BLOCK, H] where the
    weight is of 16 bit. Blocks also save time, since a block of the weight still lies in the cache for the second
    product: 64 rows, 576 → 49152, 67 ms against 74 with whole rows of logits. Larger ones save more there, but widened
    blocks of wide models would pass 32 MiB, beyond which every allocation maps fresh pages: for 64 rows
    2048 is within 6 % of the best from a width of 192 to 3584.
    """
    wide, at, width = x.float(), labels[:, None], len(weight)
    largest = wide.new_full((len(x), 1), torch.finfo(torch.float32).min)
    logit, total = torch.zeros_like(largest), torch.zeros_like(largest)
    best = torch.full_like(at, -1)
    gradient = torch.zeros_like(wide) if wants_gradient else None
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        block = _block(weight, start, stop)
        logits = wide @ block.t()
        here, place = logits.max(-1, keepdim=True)
        picked = logits.gather(-1, (at - start).clamp(0, stop - start - 1))
        logit = torch.where((at >= start) & (at < stop), picked, logit)
        best = torch.where(here > largest, place + start, best)
        risen = torch.maximum(largest, here)
        fade, weights = (largest - risen).exp_(), logits.sub_(risen).exp_()
        total = total * fade + weights.sum(-1, keepdim=True)
        if gradient is not None:
            gradient.mul_(fade).addmm_(weights, block)
        largest = risen
    loss = (largest - logit + total.log()).squeeze(-1)
    hit = (best == at).squeeze(-1) & loss.isfinite()
    if gradient is not None:
        gradient = gradient.div_(total).sub_(_rows(weight, labels)).to(x.dtype)
    return loss, gradient, hit


def _block(weight: Head, start: int, stop: int) -> Tensor:
    """F32 [stop - start, H]."""
    return weight.rows(torch.arange(start, stop)) if isinstance(weight, PackedHead) else weight[start:stop].float()


def _rows(weight: Head, ids: Tensor) -> Tensor:
    return weight.rows(ids) if isinstance(weight, PackedHead) else weight[ids]
