"""Activations in 8 bits: each row of x is codes and a float32 scale of its own, found anew in every step.

scale_T = max|x_T| / largest; codes_TK = x_TK / scale_T, rounded to nearest, ties to even. largest: 127 of int8, 448 of
float8 (e4m3). What a row becomes depends on no other row. T rows, K values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin_kernels import fp8_linear, int8_linear
from opsin_kernels.dispatch import uses_kernels

QUANTIZERS: Mapping[torch.dtype, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    torch.int8: int8_linear.quantize_rows,
    torch.float8_e4m3fn: fp8_linear.quantize_rows,
}


@dataclass(frozen=True)
class RowForm:
    """How a product wants its rows: as codes of kind I8 or F8, and with keep as they are, too."""

    kind: torch.dtype
    keep: bool = False


@dataclass(frozen=True)
class RowCodes:
    """codes I8 or F8 [T, K], scale F32 [T, 1]. dtype: of the rows, and of what is made of them. values [T, K]: the rows
    as they are, where somebody wants them."""

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype
    values: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def dequantized(self) -> Tensor:
        """The rows that are meant."""
        return (self.codes.float() * self.scale).to(self.dtype)


def quantize_rows(x: Tensor, kind: torch.dtype) -> RowCodes:
    """x [T, K]."""
    if uses_kernels(x):
        from opsin_kernels.gpu import row_codes as gpu

        return gpu.quantize_rows(x, RowForm(kind))
    return quantize_rows_ref(x, RowForm(kind))


def quantize_rows_ref(x: Tensor, form: RowForm) -> RowCodes:
    """The definition."""
    return RowCodes(*QUANTIZERS[form.kind](x), x.dtype, x if form.keep else None)
