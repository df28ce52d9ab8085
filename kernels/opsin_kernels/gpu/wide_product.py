"""The library's product of 16-bit matrices as it is summed, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a · b, F32. The library sums in float32 and would round to 16 bit, twice where it splits a long sum."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # a CPU, whose library has no such product, stands in for a device
