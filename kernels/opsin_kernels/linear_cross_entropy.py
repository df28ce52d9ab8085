"""loss_M = logsumexp_N(x_MH · W_NHᵀ) - (x_MH · W_NHᵀ)[label_M]. M rows, H values, N words."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy_with_gradient(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, H], weight [N, H], labels I64 [M] -> the loss F32 [M], its gradient by x [M, H], and bool [M]: whether the
    label is the likeliest word."""
    logits = (x @ weight.t()).float()
    lines = torch.arange(len(x), device=x.device)
    hit = logits.argmax(1) == labels
    chosen = logits[lines, labels]
    total = logits.logsumexp(1)
    logits.sub_(total[:, None]).exp_()
    logits[lines, labels] -= 1
    return total - chosen, logits.to(x.dtype) @ weight, hit
