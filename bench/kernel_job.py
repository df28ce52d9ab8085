"""What a measured operation is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Job:
    """One operation at one size. make: fresh inputs; run, define: the kernel and its definition; others: what else does
    it, by name. captured: whether a CUDA graph can hold them. written: which inputs are results too."""

    name: str
    make: Callable[[], tuple]
    run: Call
    define: Call
    others: Mapping[str, Call]
    bytes: float
    flops: float = 0.0
    captured: bool = True
    uncaptured: frozenset[str] = frozenset()  # of the others
    written: tuple[int, ...] = ()
