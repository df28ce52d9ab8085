"""What the launches of `gpu/lora.py` are specialised for, and into how many parts the inputs of a product are split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import triton

from opsin_kernels.slot_rows import BLOCK, FEW_BLOCK

PART = 512  # inputs that are worth a program of their own
PARTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Shape:
    """block_k: inputs, block_r: ranks that are multiplied at a time; parts: what the inputs are split into."""

    block_k: int
    block_r: int
    parts: int
    warps: int
    stages: int


def shape_for(rows: int, block_m: int, inputs: int, segments: int, rank: int, bits: int, processors: int) -> Shape:
    """Unmeasured: what fits every chip. block_m: rows of a tile; rank: of the slots; bits: of a number."""
    if block_m == FEW_BLOCK:
        return _shape(FEW_BLOCK, rank, bits, parts_for(inputs))
    programs = triton.cdiv(rows, block_m) * segments * triton.cdiv(rank, _block_r(rank))
    return _shape(block_m, rank, bits, parts_for(inputs, triton.cdiv(2 * processors, programs)))


def shapes_of(inputs: int, rank: int, bits: int) -> Iterator[tuple[Shape, int]]:
    """Those that `shape_for` gives for any number of rows, each with the rows of a tile."""
    most = parts_for(inputs)
    yield _shape(FEW_BLOCK, rank, bits, most), FEW_BLOCK
    for parts in PARTS[: PARTS.index(most) + 1]:
        yield _shape(BLOCK, rank, bits, parts), BLOCK


def parts_for(inputs: int, wanted: int = PARTS[-1]) -> int:
    """What inputs are split into. With few rows it follows from the inputs alone, so that a row's sums are the same in
    every such step; wanted: with many, what brings two programs to each processor."""
    wanted = min(wanted, triton.cdiv(inputs, PART))
    return next((parts for parts in PARTS if parts >= wanted), PARTS[-1])


def _shape(block_m: int, rank: int, bits: int, parts: int) -> Shape:
    block_k = (128 if block_m == FEW_BLOCK else 64) * 16 // bits
    return Shape(block_k, _block_r(rank), parts, warps=4 if block_m == FEW_BLOCK else 8, stages=4 if bits == 16 else 3)


def _block_r(rank: int) -> int:
    """At least the 16 of a tensor core; of a larger rank 32 at a time, so that a small one in a large slot is not
    multiplied with much of what it has not."""
    return min(32, max(16, triton.next_power_of_2(rank)))
