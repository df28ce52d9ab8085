"""Which implementation of the operations runs. Chosen by OPSIN_KERNELS, settled once, never silently."""

from __future__ import annotations

import os

IMPLEMENTATIONS = ("torch",)


def implementation() -> str:
    """The implementation in use: "torch", the definitions themselves, on every device.

    Raises ValueError for a value of OPSIN_KERNELS that names something else: a fallback nobody asked for is an error.
    """
    wanted = os.environ.get("OPSIN_KERNELS", "torch")
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(
            f"OPSIN_KERNELS={wanted!r}: this version has {', '.join(IMPLEMENTATIONS)} (the torch definitions)"
        )
    return wanted
