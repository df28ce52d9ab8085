"""Which implementation of the operations runs: by OPSIN_KERNELS or by the device, settled once, never silently."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Implementation = Literal["torch", "triton", "interpret"]
if os.environ.get("OPSIN_KERNELS") == "interpret" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when it is imported: this module must come first
IMPLEMENTATIONS: tuple[Implementation, ...] = ("torch", "triton", "interpret")


@cache
def forced() -> Implementation | None:
    """What OPSIN_KERNELS says: "torch", the definitions themselves; "triton", the kernels; "interpret", the kernels
    under Triton's interpreter, on a CPU. None: kernels on a CUDA device, definitions elsewhere.

    Raises ValueError for a value that names something else: a fallback nobody asked for is an error.
    """
    wanted = os.environ.get("OPSIN_KERNELS")
    if wanted is None:
        return None
    for known in IMPLEMENTATIONS:
        if wanted == known:
            if known == "interpret" and os.environ.get("TRITON_INTERPRET") != "1":
                raise ValueError(
                    "OPSIN_KERNELS=interpret came too late: Triton was imported without TRITON_INTERPRET=1"
                )
            return known
    raise ValueError(f"OPSIN_KERNELS={wanted!r} is not one of {', '.join(IMPLEMENTATIONS)}")


def implementation(device_type: str = "cpu") -> Implementation:
    """What runs on a device. Raises ValueError where that cannot be."""
    wanted = forced()
    if wanted is None:
        return "triton" if device_type == "cuda" else "torch"
    if wanted == "triton" and device_type != "cuda":
        raise ValueError(f"OPSIN_KERNELS=triton needs a CUDA device, not {device_type} (interpret runs on a CPU)")
    if wanted == "interpret" and device_type == "cuda":
        raise ValueError("OPSIN_KERNELS=interpret runs on a CPU: give --device cpu")
    return wanted


INTERPRETED = os.environ.get("OPSIN_KERNELS") == "interpret"


def uses_kernels(tensor: Tensor) -> bool:
    """Whether an operation on this tensor runs as a Triton kernel. (Asked thirty times a step of a small model on a
    CPU, where it must cost nothing: 0.1 µs.)"""
    return (tensor.is_cuda and implementation("cuda") == "triton") or INTERPRETED
