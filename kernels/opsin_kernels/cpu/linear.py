"""x · Wᵀ by cpu/linear.c, where there is a library for this processor; else the definitions count."""

from __future__ import annotations

import ctypes
from typing import Literal, get_args

import torch
from torch import Tensor

from opsin_kernels.cpu.native import LANES, can_run, loaded

Form = Literal["int4", "int8", "fp8", "table4", "float32", "bfloat16", "float16"]
NUMBERS: dict[Form, int] = {name: i for i, name in enumerate(get_args(Form))}  # of the enum in linear.h
PLAIN: dict[torch.dtype, Form] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
PARTS = {"int4": 2, "table4": 2}  # of a group, each in its own bits of the same bytes


class _Weight(ctypes.Structure):
    """weight_t of linear.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "offset", "table")),
        *((name, ctypes.c_int64) for name in ("n", "k", "group", "half", "form")),
    )


class NativeWeight:
    """Of a weight as `opsin_kernels` has it for a form (of floats: [N, K], without scales): what C needs of it, looked
    up once. It is that of these very tensors; what they hold may change.

    address: of its weight_t, where it fits.
    """

    def __init__(
        self,
        form: Form,
        codes: Tensor,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
        table: Tensor | None = None,
    ) -> None:
        outputs, inputs = codes.shape[0], codes.shape[1] * PARTS.get(form, 1)
        group = inputs if scale is None else inputs // scale.shape[1]
        whole = group // PARTS.get(form, 1) % LANES == 0 and codes.is_contiguous()
        self.fits = whole and outputs > 0 and inputs > 0 and can_run(codes, codes if scale is None else scale)
        self._outputs = outputs
        self._tensors = (codes, scale, offset, table)
        if not self.fits:
            return
        pointers = (None if part is None else part.data_ptr() for part in self._tensors)
        half = scale is not None and scale.dtype == torch.float16
        self._struct = _Weight(*pointers, outputs, inputs, group, half, NUMBERS[form])
        self.address = ctypes.addressof(self._struct)
        self._function = loaded().linear

    def product(self, x: Tensor) -> Tensor:
        """x [M, K] of any float type, computed in float32 -> x · Wᵀ [M, N] of its type. Its row sums do not depend on
        M."""
        rows = x.float().contiguous()
        out = torch.empty(len(x), self._outputs, dtype=torch.float32)
        if not self._function(out.data_ptr(), rows.data_ptr(), len(x), self.address, torch.get_num_threads()):
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
