"""What the launches of `gpu/w8a8_linear.py` are specialised for, and into how many parts a row's sum is split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import triton

BUCKETS = (16, 32, 64, 128)  # rows of x that a tile holds; more rows than the last are several tiles of it
MANY_ROWS = BUCKETS[-1]  # more of them are the library's, where it multiplies them
STEP = 128  # inputs (256 spill on sm_120)
LEAST_STEPS = 4  # of a part
MOST_PARTS = 16


@dataclass(frozen=True)
class Shape:
    """block_m: rows of x, block_n: of the weight; step: inputs at a time."""

    block_m: int
    block_n: int
    step: int
    warps: int
    stages: int


def shape_for(rows: int, span: int) -> Shape:
    """Unmeasured: what fits every chip. span: inputs of a group; 0: the whole row."""
    block_m = next((size for size in BUCKETS if rows <= size), BUCKETS[-1])
    step = max(32, min(STEP, triton.next_power_of_2(span))) if span else STEP
    wide = block_m == BUCKETS[-1]
    return Shape(block_m, 128 if wide else 64, step, 8 if wide else 4, 3 if wide else 4)


def shapes_of(span: int) -> Iterator[Shape]:
    """Those that `shape_for` gives for any number of rows."""
    for rows in BUCKETS:
        yield shape_for(rows, span)


def steps_of(inputs: int, span: int, step: int) -> int:
    """How many steps a row takes; none reaches from one group into the next."""
    return triton.cdiv(inputs, step) if not span else inputs // span * triton.cdiv(span, step)


def parts_for(outputs: int, rows: int, steps: int, shape: Shape, processors: int) -> int:
    """What brings two programs to each processor, of a launch with one tile of rows. It follows from the weight and the
    bucket, so that a row's sums are the same whatever rows stand beside it in one."""
    if rows > MANY_ROWS:
        return 1
    wanted = triton.cdiv(2 * processors, triton.cdiv(outputs, shape.block_n))
    return max(1, min(wanted, steps // LEAST_STEPS, MOST_PARTS))
