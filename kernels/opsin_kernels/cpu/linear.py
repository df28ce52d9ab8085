"""x · Wᵀ by cpu/linear.c, where there is a library for this processor; else the definitions count."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from opsin_kernels.cpu.build import NoCompilerError, build, library_name
from opsin_kernels.dispatch import forced

Form = Literal["int4", "int8", "fp8", "table4"]
PARTS = {"int4": 2, "table4": 2}  # of a group, each in its own bits of the same bytes
LANES = 16  # inputs of a part of a group are a multiple of it, on whatever processor
HERE = Path(__file__).parent


class _Weight(ctypes.Structure):
    """weight_t of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "offset", "table")),
        *((name, ctypes.c_int64) for name in ("n", "k", "group", "half")),
    )


@cache
def library() -> ctypes.CDLL | str:
    """Or why there is none, in a sentence."""
    if forced() == "torch":
        return "OPSIN_KERNELS=torch asks for the definitions"
    level = torch.backends.cpu.get_cpu_capability()
    level = level if level in ("AVX512", "AVX2") else "DEFAULT"
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opsin"
    ready = HERE / library_name(level)
    try:
        found = ready if ready.is_file() else build(level, HERE if os.access(HERE, os.W_OK) else cached)
        loaded = ctypes.CDLL(str(found))
    except (NoCompilerError, OSError, RuntimeError) as error:
        return str(error)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    for form in ("int4", "int8", "fp8", "table4"):
        function = getattr(loaded, f"linear_{form}")
        function.argtypes, function.restype = (pointer, pointer, count, pointer, count, count), ctypes.c_int
    return loaded


def can_multiply(form: Form, x: Tensor, groups: int) -> bool:
    """x [M, K] with a weight of so many groups. (A tensor of a fake mode, which has no memory, is of another class.)"""
    size = x.shape[1] // groups // PARTS.get(form, 1)
    return x.is_cpu and type(x) is Tensor and size % LANES == 0 and not isinstance(library(), str)


def multiply(
    form: Form, x: Tensor, codes: Tensor, scale: Tensor, offset: Tensor | None = None, table: Tensor | None = None
) -> Tensor:
    """x [M, K] of any float type, computed in float32 -> [M, N] of its type. Of a weight as `opsin_kernels` has them
    for the form; its row sums do not depend on M."""
    loaded = library()
    assert not isinstance(loaded, str)
    rows, (outputs, groups), (count, inputs) = x.float().contiguous(), scale.shape, x.shape
    parts = (codes, scale, offset, table)
    places = (None if part is None else part.data_ptr() for part in parts)
    half = scale.dtype == torch.float16
    weight = _Weight(*places, outputs, inputs, inputs // groups, half)
    out = torch.empty(count, outputs)
    done = getattr(loaded, f"linear_{form}")(
        out.data_ptr(), rows.data_ptr(), count, ctypes.addressof(weight), 0, outputs
    )
    if not done:
        raise MemoryError("there is no memory for the rows of a weight")
    return out if x.dtype == torch.float32 else out.to(x.dtype)
