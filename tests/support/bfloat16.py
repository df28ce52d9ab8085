"""bfloat16 in Triton's interpreter, which holds it as raw 16-bit integers: it cuts where it should round, and
multiplies the integers. With this, kernels that compute in float32 between a load and a store are right in bfloat16.
Arithmetic on bfloat16 values themselves stays wrong: the kernels do none, and a result that needs it would show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Convert, Dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16's bits as uint16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    cut = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), cut)


def convert(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    if source == tl.float32 and target == tl.bfloat16:
        return rounded(values)
    return Convert(values, source, target, rounding)


def dot(self: Any, a: Any, b: Any, c: Any, *options: Any) -> Any:
    wide = [
        interpreter.TensorHandle(Convert(x.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)
        if x.dtype.scalar == tl.bfloat16
        else x
        for x in (a, b)
    ]
    return Dot(self, *wide, c, *options)


@contextmanager
def right() -> Iterator[None]:
    interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = convert, dot
    try:
        yield
    finally:
        interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = Convert, Dot
