"""What the launches of `gpu/quantized_linear.py` are specialised for, and into how many parts a row's sum is split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import triton

from opsin_kernels.gpu.codes import Weight, groups_of_a_step, steps_of

BUCKETS = (16, 32, 64, 128)  # rows of x that a tile holds; a launch has one tile of them
MANY_ROWS = 128  # from as many on the weight becomes floats, a block at a time, for the library's product
OWN_STEP = 32  # bytes of a group that is worth steps of its own
LEAST_STEPS = 4  # of a part
MOST_PARTS = 16


@dataclass(frozen=True)
class Shape:
    """block_m: rows of x, block_n: of the weight; step: bytes of a row at a time, of `many` groups. tiled: whether
    weights are scaled, and else the sums of their groups."""

    block_m: int
    block_n: int
    step: int
    many: int
    tiled: bool
    warps: int
    stages: int


def shape_for(weight: Weight, rows: int, bits: int) -> Shape:
    """Unmeasured: what fits every chip. bits: of a number of x."""
    block_m = next(size for size in BUCKETS if rows <= size)
    inputs = 128 if block_m == 16 else 64  # (128 spill on sm_100 with tiles of 32)
    step = max(16, inputs * 16 // bits // weight.parts)
    tiled = weight.parts > 1 or weight.offset is not None or 0 < weight.span < OWN_STEP
    if 0 < weight.span < step and (not tiled or step % weight.span):
        step = max(16, triton.next_power_of_2(weight.span))
    many = groups_of_a_step(weight.span, step)
    block_n = 64 if bits == 16 else 32  # (64 of float32 spill on sm_90)
    warps, stages = 8 if block_m == 128 else 4, 4 if block_m <= 32 else 3
    return Shape(block_m, block_n, step, many, tiled or many > 1, warps, stages)


def shapes_of(weight: Weight, bits: int) -> Iterator[Shape]:
    """Those that `shape_for` gives for any number of rows below MANY_ROWS."""
    for rows in BUCKETS:
        yield shape_for(weight, rows, bits)


def parts_for(weight: Weight, shape: Shape, processors: int) -> int:
    """What brings two programs to each processor. It follows from the weight and the bucket, so that a row's sums are
    the same whatever rows stand beside it in one."""
    wanted = triton.cdiv(2 * processors, triton.cdiv(weight.outputs, shape.block_n))
    return max(1, min(wanted, steps_of(weight, shape.step, shape.many) // LEAST_STEPS, MOST_PARTS))
