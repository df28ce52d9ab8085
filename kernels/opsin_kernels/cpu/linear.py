"""x · Wᵀ by cpu/linear.c, where there is a library for this processor; else the definitions count."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
from torch import Tensor

from opsin_kernels.cpu.native import LANES, can_run, loaded

Form = Literal["int4", "int8", "fp8", "table4"]
PARTS = {"int4": 2, "table4": 2}  # of a group, each in its own bits of the same bytes


class _Weight(ctypes.Structure):
    """weight_t of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "offset", "table")),
        *((name, ctypes.c_int64) for name in ("n", "k", "group", "half")),
    )


class NativeWeight:
    """Of a weight as `opsin_kernels` has it for a form: what C needs of it, looked up once. It is that of these very
    tensors; what they hold may change."""

    def __init__(
        self, form: Form, codes: Tensor, scale: Tensor, offset: Tensor | None = None, table: Tensor | None = None
    ) -> None:
        outputs, groups = scale.shape
        packed = codes.shape[1] * (2 if PARTS.get(form) else 1)
        self.fits = packed // groups // PARTS.get(form, 1) % LANES == 0 and can_run(codes, scale)
        self._outputs = outputs
        self._tensors = (codes, scale, offset, table)
        if not self.fits:
            return
        pointers = (None if part is None else part.data_ptr() for part in self._tensors)
        self._struct = _Weight(*pointers, outputs, packed, packed // groups, scale.dtype == torch.float16)
        self._address = ctypes.addressof(self._struct)
        self._function = getattr(loaded(), f"linear_{form}")

    def product(self, x: Tensor) -> Tensor:
        """x [M, K] of any float type, computed in float32 -> x · Wᵀ [M, N] of its type. Its row sums do not depend on
        M."""
        rows = x.float().contiguous()
        out = torch.empty(len(x), self._outputs, dtype=torch.float32)
        if not self._function(out.data_ptr(), rows.data_ptr(), len(x), self._address, torch.get_num_threads()):
            raise MemoryError("there is no memory for the rows of a weight")
        return out if x.dtype == torch.float32 else out.to(x.dtype)


def native_product(
    form: Form, x: Tensor, codes: Tensor, scale: Tensor, offset: Tensor | None = None, table: Tensor | None = None
) -> Tensor | None:
    """x · Wᵀ in C; None: the definition counts."""
    if not can_run(x):
        return None
    weight = NativeWeight(form, codes, scale, offset, table)
    return weight.product(x) if weight.fits else None
