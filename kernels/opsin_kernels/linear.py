"""out_MN = x_MK · W_NKᵀ + b_N. M rows, K inputs, N outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = range(2, 17)  # rows of a decode step with company


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K], weight [N, K], bias [N] -> [M, N]; differentiable.

    On a CPU a widening product with a few rows runs as W · xᵀ: the BLAS then streams the weight, which lies in memory
    and not in the cache, instead of packing it (8 rows, 576 → 3072: 1.4 ms against 1.9; 4 rows, 576 → 49152: 29 ms
    against 62).
    """
    outputs, inputs = weight.shape
    if x.shape[0] in FEW and outputs >= 2 * inputs and weight.device.type == "cpu":
        out = torch.mm(weight, x.t()).t().contiguous()
        return out if bias is None else out + bias
    return F.linear(x, weight, bias)
