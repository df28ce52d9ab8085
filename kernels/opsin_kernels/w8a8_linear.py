"""out_MN = x_MK · W_NKᵀ, both in 8 bits: x is codes and a scale a row, W codes and a scale by groups along K; both are
int8, or both float8 (e4m3). M rows, K inputs, N outputs, G groups.

The sum of a group's products of codes is exact, then a float32; it is scaled, groups are added up in float32 in their
order, and the row's scale comes last. On a GPU int8 codes are summed in int32, which is as exact up to MOST_INPUTS, and
float8 codes as the tensor cores do it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels import float_blocks
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.row_codes import RowCodes

MOST_INPUTS = 2**17  # whose products of -128 and 127 an int32 holds
LEAST_GROUP = 64  # inputs, a multiple: for smaller ones sums are scaled more often than it is worth


def w8a8_linear(rows: RowCodes, quantized: Tensor, scale: Tensor) -> Tensor:
    """rows of M, quantized I8 or F8 [N, K], scale [N, G] -> [M, N] of the rows' dtype."""
    if uses_kernels(rows.codes):
        from opsin_kernels.gpu import w8a8_linear as gpu

        return gpu.linear(rows, quantized, scale)
    return w8a8_linear_ref(rows, quantized, scale)


def w8a8_linear_ref(rows: RowCodes, quantized: Tensor, scale: Tensor) -> Tensor:
    """The definition. Products of codes and their sums are float64's, which holds them all."""
    outputs, inputs = quantized.shape
    group = inputs // scale.shape[1]
    total = torch.zeros(len(rows), outputs, device=scale.device)
    for i, factor in enumerate(scale.float().unbind(1)):
        here = slice(i * group, (i + 1) * group)
        sums = float_blocks.product(rows.codes[:, here].double(), outputs, _numbers(quantized[:, here]))
        total += sums.float() * factor
    return (total * rows.scale).to(rows.dtype)


def _numbers(codes: Tensor) -> float_blocks.Rows:
    return lambda block: codes[block].double()
