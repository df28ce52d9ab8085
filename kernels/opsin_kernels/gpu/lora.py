"""Low-rank additions of many adapters: a shrink to the rank and an expand from it, over tiles of rows of one slot.

Every segment of a fused linear is done in the same two launches, and ranks mix: a program whose slot, segment or rank
is not used ends at once, so that base rows cost nothing. The grid follows from the numbers of rows and slots alone; a
CUDA graph replays it with any other mix. Few rows of many inputs give too few programs: inputs are split into parts,
whose sums stay apart in memory until the expand adds them in order. So there are no atomic operations, and the same
rows give the same bits.

Method: Punica's SGMV (arXiv 2310.18547), with tensor cores for single rows too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels.gpu import forms
from opsin_kernels.gpu.attention_shapes import processors_of
from opsin_kernels.gpu.lora_shapes import Shape, shape_for, shapes_of
from opsin_kernels.lora import COLUMNS, SlotFactors
from opsin_kernels.slot_rows import SlotRows, Tiles

STEP = 4  # parts of a sum that an expand reads at once: with 8 and more a few registers are spilled
TILES = ["order_ptr", "slots_ptr", "first_ptr", "stop_ptr"]


@triton.jit(do_not_specialize=["rows", "segments"], do_not_specialize_on_alignment=TILES)
def shrink(
    x_ptr,  # [T, K], rows `x_stride` apart
    a_ptr,  # [S, G, RANK, K], dense
    ranks_ptr,  # I32 [S, G]
    order_ptr,  # I64 [T]
    slots_ptr,  # I32 [P]
    first_ptr,  # I32 [P]
    stop_ptr,  # I32 [P]
    out_ptr,  # F32 [parts, T, G, padded RANK], rows in the tiles' order
    x_stride,
    rows,  # T
    segments,  # G
    inputs,  # K
    part,  # inputs of a part, a multiple of BLOCK_K
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    first = tl.load(first_ptr + tile)
    stop = tl.load(stop_ptr + tile)
    if first < stop:
        steps: tl.constexpr = (RANK + BLOCK_R - 1) // BLOCK_R
        segment = tl.program_id(1) // steps
        lowest = (tl.program_id(1) % steps) * BLOCK_R
        factor = tl.load(slots_ptr + tile).to(tl.int64) * segments + segment
        rank = tl.load(ranks_ptr + factor)
        if lowest < rank:
            r = lowest + tl.arange(0, BLOCK_R)
            ranks = r < rank
            place = first + tl.arange(0, BLOCK_M)
            here = place < stop
            row = tl.load(order_ptr + place, mask=here, other=0)
            begin = tl.program_id(2) * part
            end = tl.minimum(begin + part, inputs)
            k = tl.arange(0, BLOCK_K)
            x_at = x_ptr + row[:, None] * x_stride + k[None, :]
            a_at = a_ptr + (factor * RANK + r[:, None]) * inputs + k[None, :]
            total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            for start in range(begin, end, BLOCK_K):
                inside = start + k < end
                x = tl.load(x_at + start, mask=here[:, None] & inside[None, :], other=0.0)
                a = tl.load(a_at + start, mask=ranks[:, None] & inside[None, :], other=0.0)
                total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
            at = (tl.program_id(2).to(tl.int64) * rows + place) * segments + segment
            # Beyond the adapter's rank are zeros, which the expand may read with the rest.
            tl.store(out_ptr + at[:, None] * (steps * BLOCK_R) + r[None, :], total, mask=here[:, None])


@triton.jit(do_not_specialize=["rows", "segments"], do_not_specialize_on_alignment=TILES)
def expand(
    shrunk_ptr,  # F32 [PARTS, T, G, padded RANK], rows in the tiles' order
    b_ptr,  # [S, RANK, N], dense
    ranks_ptr,  # I32 [S, G]
    columns_ptr,  # I32 [C, 3]: segment, first column, end
    order_ptr,  # I64 [T]
    slots_ptr,  # I32 [P]
    first_ptr,  # I32 [P]
    stop_ptr,  # I32 [P]
    out_ptr,  # [T, N], rows `out_stride` apart, added to
    out_stride,
    rows,  # T
    segments,  # G
    outputs,  # N
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,  # parts that are read at once
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNED: tl.constexpr,  # whether segments begin at multiples of 16
):
    tile = tl.program_id(0)
    first = tl.load(first_ptr + tile)
    stop = tl.load(stop_ptr + tile)
    if first < stop:
        span = columns_ptr + tl.program_id(1) * 3
        segment = tl.load(span)
        slot = tl.load(slots_ptr + tile).to(tl.int64)
        rank = tl.load(ranks_ptr + slot * segments + segment)
        if rank > 0:
            place = first + tl.arange(0, BLOCK_M)
            here = place < stop
            begin = tl.load(span + 1)
            end = tl.load(span + 2)
            if ALIGNED:
                begin = tl.multiple_of(begin, 16)
                end = tl.multiple_of(end, 16)
            n = begin + tl.arange(0, BLOCK_N)
            inside = n < end
            kind = b_ptr.dtype.element_ty
            # Of the tile's first row, in the first part; the rest lies near it, a part behind the other.
            padded: tl.constexpr = (RANK + BLOCK_R - 1) // BLOCK_R * BLOCK_R
            tile_ptr = shrunk_ptr + (first.to(tl.int64) * segments + segment) * padded
            part_size = (tl.zeros((), tl.int64) + rows) * segments * padded
            near = tl.arange(0, BLOCK_M)[:, None] * (segments * padded)
            slot_ptr = b_ptr + slot * RANK * outputs
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for start in range(0, rank, BLOCK_R):
                r = start + tl.arange(0, BLOCK_R)
                whole = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
                for several in range(0, PARTS, STEP):
                    for part in tl.static_range(STEP):
                        part_ptr = tile_ptr + (several + part) * part_size
                        whole += tl.load(part_ptr + (near + r[None, :]), mask=here[:, None], other=0.0)
                mask = (r < rank)[:, None] & inside[None, :]
                b = tl.load(slot_ptr + (r[:, None] * outputs + n[None, :]), mask=mask, other=0.0)
                total = tl.dot(whole.to(kind), b, total, input_precision="ieee")
            row = tl.load(order_ptr + place, mask=here, other=0)
            out_at = out_ptr + row[:, None] * out_stride + n[None, :]
            mask = here[:, None] & inside[None, :]
            total += tl.load(out_at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=mask)


def add_lora_slots(out: Tensor, x: Tensor, factors: SlotFactors, rows: SlotRows, shape: Shape | None = None) -> Tensor:
    """out [T, N], into it; x [T, K]. shape: None chooses.

    Sums are float32; what is shrunk is rounded to the type of b as it meets b, as the definition rounds it, and `out`
    once. Deterministic: what a row gets depends on no other row, but through the number of rows on the shape. Raises
    ValueError where a gradient is needed, and for mixed types.
    """
    a = factors.a
    if torch.is_grad_enabled() and any(t.requires_grad for t in (out, x, a, factors.b)):
        raise ValueError("the kernels of adapters in slots have no backward pass")
    if not out.dtype == x.dtype == a.dtype:
        raise ValueError(f"out {out.dtype}, x {x.dtype} and the adapters' {a.dtype} are not one type")
    if len(x):
        x, tiles = x if x.stride(1) == 1 else x.contiguous(), rows.tiles
        _, segments, rank, inputs = a.shape
        shape = shape or shape_for(len(x), tiles.block, inputs, segments, rank, 8 * x.itemsize, processors_of(x.device))
        _add(out, x, factors, tiles, shape)
        if forms.every_form():
            idle = replace(tiles, stop=tiles.first)
            for other, block in shapes_of(inputs, rank, 8 * x.itemsize):
                _add(out, x, factors, replace(idle, block=block), other)
    return out


def _add(out: Tensor, x: Tensor, factors: SlotFactors, tiles: Tiles, shape: Shape) -> None:
    _, segments, rank, inputs = factors.a.shape
    assert out.stride(1) == 1
    mix = (tiles.order, tiles.slots, tiles.first, tiles.stop)
    steps = triton.cdiv(rank, shape.block_r)
    shrunk = torch.empty(shape.parts, len(x), segments, steps * shape.block_r, device=x.device)
    shrink[(len(tiles.slots), segments * steps, shape.parts)](
        x, factors.a, factors.ranks, *mix, shrunk, x.stride(0), len(x), segments, inputs,
        triton.cdiv(inputs, shape.parts * shape.block_k) * shape.block_k, RANK=rank, BLOCK_M=tiles.block,
        BLOCK_R=shape.block_r, BLOCK_K=shape.block_k, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    expand[(len(tiles.slots), len(factors.tiles))](
        shrunk, factors.b, factors.ranks, factors.tiles, *mix, out, out.stride(0), len(x), segments,
        factors.b.shape[2], RANK=rank, PARTS=shape.parts, STEP=min(shape.parts, STEP), BLOCK_M=tiles.block,
        BLOCK_R=shape.block_r, BLOCK_N=COLUMNS, ALIGNED=all(c.stop % 16 == 0 for c in factors.columns),
        num_warps=shape.warps, num_stages=1,
    )  # fmt: skip
