"""Whether products in bf16 are faster than in fp32 here.

They are 2.4x as fast on a CPU with bf16 instructions and several times slower on one without, and nothing public in
torch tells the two apart; so it is measured, in some 20 ms.
"""

from __future__ import annotations

import time

import torch

SIDE = 512  # a matrix of the size that training multiplies


def bf16_pays(device: str) -> bool:
    return device == "cuda" or _seconds(torch.bfloat16) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The best of three, so that a busy neighbour counts once at most."""
    a = torch.ones(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        torch.matmul(a, a)
        best = min(best, time.perf_counter() - began)
    return best
