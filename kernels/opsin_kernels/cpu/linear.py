"""x · Wᵀ by cpu/linear.c, where there is a library for this processor; else the definitions count."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
from torch import Tensor

from opsin_kernels.cpu.library import LANES, can_run, loaded

Form = Literal["int4", "int8", "fp8", "table4"]
PARTS = {"int4": 2, "table4": 2}  # of a group, each in its own bits of the same bytes


class _Weight(ctypes.Structure):
    """weight_t of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "offset", "table")),
        *((name, ctypes.c_int64) for name in ("n", "k", "group", "half")),
    )


def can_multiply(form: Form, x: Tensor, groups: int) -> bool:
    """x [M, K] with a weight of so many groups."""
    return x.shape[1] // groups // PARTS.get(form, 1) % LANES == 0 and can_run(x)


def multiply(
    form: Form, x: Tensor, codes: Tensor, scale: Tensor, offset: Tensor | None = None, table: Tensor | None = None
) -> Tensor:
    """x [M, K] of any float type, computed in float32 -> [M, N] of its type. Of a weight as `opsin_kernels` has them
    for the form; its row sums do not depend on M."""
    rows, (outputs, groups), (count, inputs) = x.float().contiguous(), scale.shape, x.shape
    weight = _Weight(
        codes.data_ptr(),
        scale.data_ptr(),
        None if offset is None else offset.data_ptr(),
        None if table is None else table.data_ptr(),
        outputs,
        inputs,
        inputs // groups,
        scale.dtype == torch.float16,
    )
    out = torch.empty(count, outputs, dtype=torch.float32)
    function = getattr(loaded(), f"linear_{form}")
    if not function(out.data_ptr(), rows.data_ptr(), count, ctypes.addressof(weight), torch.get_num_threads()):
        raise MemoryError("there is no memory for the rows of a weight")
    return out if x.dtype == torch.float32 else out.to(x.dtype)
