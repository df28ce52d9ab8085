"""Products with a weight that is a float only for a moment, a block of its rows at a time: what quantized formats are
defined by. M rows of x, K inputs, N outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**22  # weights that are a float at a time

Rows = Callable[[slice], Tensor]
"""Of a weight's rows: the numbers that they stand for, [n, K]."""


def product(x: Tensor, outputs: int, rows: Rows) -> Tensor:
    """x [M, K] -> x · Wᵀ [M, N]."""
    return torch.cat([F.linear(x, rows(block)) for block in _blocks(outputs, x.shape[1])], -1)


def input_gradient(gradient: Tensor, inputs: int, rows: Rows) -> Tensor:
    """gradient [M, N] -> that of x [M, K]. Nothing of the float weight is kept between forward and backward."""
    out = gradient.new_zeros(len(gradient), inputs)
    for block in _blocks(gradient.shape[1], inputs):
        out.addmm_(gradient[:, block], rows(block))
    return out


def _blocks(outputs: int, inputs: int) -> list[slice]:
    size = max(1, BLOCK // inputs)
    return [slice(start, min(start + size, outputs)) for start in range(0, outputs, size)]
