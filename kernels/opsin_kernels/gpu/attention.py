"""Attention over pages, one kernel for prefill and decode. Method: PagedAttention (arXiv 2309.06180), FlashAttention-2
(arXiv 2307.08691), splitting keys over programs for decode (Flash-Decoding, Dao et al. 2023).

T query rows, S sequences, H heads in groups of G = H / K, L cached rows, D head size. The query heads that share a key
head are packed into the rows of one tile: row m of a tile is query m // G, head m % G. D is taken as two powers of two
(80 = 64 + 16), so that no multiplication is spent on padding to 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from opsin_kernels import kv_rows
from opsin_kernels.gpu import attention_shapes as shapes
from opsin_kernels.gpu import forms
from opsin_kernels.gpu.attention_shapes import Shape
from opsin_kernels.gpu.codes import FORMS, numbers_of, reads_e4m3
from opsin_kernels.layout import Bounds

# What differs from step to step must not be compiled into the kernel, or serving would stop to compile it again.
NUMBERS = ["table_ptr", "starts_ptr", "lengths_ptr", "ranges_ptr"]
LOG2_E = 1.4426950408889634


@triton.jit
def _sequence_of(starts_ptr, sequences, block, BLOCK_Q: tl.constexpr):
    """Which sequence a tile of queries belongs to: the last whose first tile is not behind it. Tiles of sequence s
    begin at starts[s] // BLOCK_Q + s, which leaves room for every ragged end."""
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        first = tl.load(starts_ptr + middle) // BLOCK_Q + middle
        if first <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _place_of(starts_ptr, sequences, block, BLOCK_Q: tl.constexpr, SINGLE: tl.constexpr):
    """The sequence of a block of queries, its first query row, and the block's first query within it."""
    if SINGLE:
        sequence = block
        start = tl.load(starts_ptr + sequence)
        first = 0
    else:
        sequence = _sequence_of(starts_ptr, sequences, block, BLOCK_Q)
        start = tl.load(starts_ptr + sequence)
        first = (block - (start // BLOCK_Q + sequence)) * BLOCK_Q
    return sequence, start, first


@triton.jit
def _visible(
    ranges_ptr, row, alive, position, length, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, RANGED: tl.constexpr
):
    """Which cached rows each query sees: lo to hi - 1; none where it is not alive."""
    if RANGED:
        lo = tl.load(ranges_ptr + 2 * row, mask=alive, other=0)
        hi = tl.load(ranges_ptr + 2 * row + 1, mask=alive, other=0)
    else:
        hi = tl.where(alive, position + 1 if CAUSAL else length, 0)
        lo = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else tl.zeros_like(position)
    return lo, hi


@triton.jit
def _slots_of(table_ptr, table_stride, sequence, start, j, there, PAGE: tl.constexpr):
    """Where the rows j of a sequence lie among all cached rows."""
    if PAGE:
        page = tl.load(table_ptr + sequence.to(tl.int64) * table_stride + j // PAGE, mask=there, other=0)
        slot = page.to(tl.int64) * PAGE + j % PAGE
    else:
        slot = (start + j).to(tl.int64)
    return slot


@triton.jit
def _online_softmax(scores, top, total):
    """The weights of further scores, what to shrink earlier sums by, and the new maximum and sum of each row."""
    highest = tl.maximum(top, tl.max(scores, 1))
    anchor = tl.where(highest == -float("inf"), 0.0, highest)  # a row that sees nothing yet
    weights = tl.exp2(scores - anchor[:, None])
    shrink = tl.exp2(top - anchor)
    return weights, shrink, highest, total * shrink + tl.sum(weights, 1)


@triton.jit
def _capped(scores, softcap):
    """softcap · tanh(s / softcap), through 2^x, then in the units of 2^x itself."""
    scores = softcap * (1 - 2 / (1 + tl.exp2(scores / softcap * 2.8853900817779268)))
    return scores * 1.4426950408889634


@triton.jit
def _numbers(found, FORM: tl.constexpr, HARDWARE: tl.constexpr):
    """What was loaded of keys or values."""
    return numbers_of(found, None, FORM, HARDWARE) if FORM != "" else found


@triton.jit(do_not_specialize=["sequences", "rows", "table_stride"], do_not_specialize_on_alignment=NUMBERS)
def attend(
    q_ptr,  # [T, H, D], rows `q_stride` apart
    k_ptr,  # [P, K, D], rows `kv_stride` apart, heads WIDTH; with FORM U8, the codes of `kv_rows`
    v_ptr,  # the same
    out_ptr,  # [T, H, D]; with SPLIT float32 [parts, T, H, D]
    norm_ptr,  # F32 [parts, T, H], the logarithm of each part's sum; only with SPLIT
    table_ptr,  # I32 [S, table_stride], the pages of each sequence; only with PAGE
    starts_ptr,  # I32 [S + 1], first query row of each sequence
    lengths_ptr,  # I32 [S], cached rows with this step's
    ranges_ptr,  # I32 [T, 2], rows lo to hi - 1 that a query sees; only with RANGED
    k_scale_ptr,  # F32 [P, K], a quarter of `kv_stride` and WIDTH apart: what codes are times; only with FORM
    v_scale_ptr,  # the same
    sequences,
    rows,  # T
    q_stride,
    kv_stride,
    table_stride,
    scale,  # of the scores, times log2(e); with CAPPED without
    softcap,  # only with CAPPED
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,  # D
    WIDTH: tl.constexpr,  # bytes of a row's head; numbers, without FORM
    LOW: tl.constexpr,
    HIGH: tl.constexpr,  # 0 when D is a power of two
    PAGE: tl.constexpr,  # rows of a page; 0: keys and values lie packed like the queries
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,  # whether the keys are split into parts, as many as the grid's third axis has programs
    WINDOW: tl.constexpr,  # 0: the whole context
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    RANGED: tl.constexpr,
    FORM: tl.constexpr,  # of codes; "": numbers of some float type
    HARDWARE: tl.constexpr,
    SINGLE: tl.constexpr,  # every sequence has one query at most: a tile each
):
    group: tl.constexpr = HEADS // KV_HEADS
    block_q: tl.constexpr = BLOCK_M // group
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    sequence, start, first = _place_of(starts_ptr, sequences, block, block_q, SINGLE)
    count = tl.load(starts_ptr + sequence + 1) - start
    if first >= count:
        return
    length = tl.load(lengths_ptr + sequence)

    m = tl.arange(0, BLOCK_M)
    query = first + m // group
    head = kv_head * group + m % group
    alive = (query < count) & (m < block_q * group)
    row = (start + query).to(tl.int64)
    position = length - count + query
    lo, hi = _visible(ranges_ptr, row, alive, position, length, WINDOW, CAUSAL, RANGED)
    # The tile's own range of keys: a window starts late, a causal tile ends early.
    begin = tl.min(tl.where(alive & (lo < hi), lo, length))
    end = tl.minimum(tl.max(hi), length)
    if SPLIT:
        share = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), tl.num_programs(2)), TILE) * TILE
        begin = begin + part * share
        end = tl.minimum(end, begin + share)

    d_low = tl.arange(0, LOW)
    q_base = q_ptr + row * q_stride + head * SIZE
    q_low = tl.load(q_base[:, None] + d_low[None, :], mask=alive[:, None] & (d_low < SIZE)[None, :], other=0.0)
    if HIGH:
        d_high = LOW + tl.arange(0, HIGH)
        wide = alive[:, None] & (d_high < SIZE)[None, :]
        q_high = tl.load(q_base[:, None] + d_high[None, :], mask=wide, other=0.0)
        acc_high = tl.zeros([BLOCK_M, HIGH], tl.float32)
    acc_low = tl.zeros([BLOCK_M, LOW], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    for at in range(begin, end, TILE):
        j = at + tl.arange(0, TILE)
        there = j < end
        slot = _slots_of(table_ptr, table_stride, sequence, start, j, there, PAGE)
        k_base = k_ptr + slot * kv_stride + kv_head * WIDTH
        k_low = tl.load(k_base[None, :] + d_low[:, None], mask=there[None, :] & (d_low < SIZE)[:, None], other=0)
        scores = tl.dot(q_low, _numbers(k_low, FORM, HARDWARE).to(q_low.dtype), input_precision="ieee")
        if HIGH:
            tall = there[None, :] & (d_high < SIZE)[:, None]
            k_high = tl.load(k_base[None, :] + d_high[:, None], mask=tall, other=0)
            scores = tl.dot(q_high, _numbers(k_high, FORM, HARDWARE).to(q_high.dtype), scores, input_precision="ieee")
        scores = scores * scale
        if FORM != "":
            factors = slot * (kv_stride // 4) + kv_head * (WIDTH // 4)
            scores = scores * tl.load(k_scale_ptr + factors, mask=there, other=0.0)[None, :]
        if CAPPED:
            scores = _capped(scores, softcap)
        seen = (j[None, :] >= lo[:, None]) & (j[None, :] < hi[:, None]) & there[None, :]
        scores = tl.where(seen, scores, -float("inf"))
        weights, shrink, top, total = _online_softmax(scores, top, total)
        if FORM != "":
            weights = weights * tl.load(v_scale_ptr + factors, mask=there, other=0.0)[None, :]
        v_base = v_ptr + slot * kv_stride + kv_head * WIDTH
        v_low = tl.load(v_base[:, None] + d_low[None, :], mask=there[:, None] & (d_low < SIZE)[None, :], other=0)
        v_low = _numbers(v_low, FORM, HARDWARE).to(q_low.dtype)
        weights = weights.to(q_low.dtype)
        acc_low = tl.dot(weights, v_low, acc_low * shrink[:, None], input_precision="ieee")
        if HIGH:
            flat = there[:, None] & (d_high < SIZE)[None, :]
            v_high = tl.load(v_base[:, None] + d_high[None, :], mask=flat, other=0)
            v_high = _numbers(v_high, FORM, HARDWARE).to(q_low.dtype)
            acc_high = tl.dot(weights, v_high, acc_high * shrink[:, None], input_precision="ieee")

    whole = tl.where(total > 0, total, 1.0)
    out_row = (row * HEADS + head) * SIZE
    if SPLIT:
        places = part.to(tl.int64) * rows * HEADS + row * HEADS + head
        out_row = places * SIZE
        tl.store(norm_ptr + places, top + tl.log2(whole), mask=alive)  # -inf where nothing was seen
    kind = out_ptr.dtype.element_ty
    keep = alive[:, None] & (d_low < SIZE)[None, :]
    tl.store(out_ptr + out_row[:, None] + d_low[None, :], (acc_low / whole[:, None]).to(kind), mask=keep)
    if HIGH:
        high_out = (acc_high / whole[:, None]).to(kind)
        tl.store(out_ptr + out_row[:, None] + d_high[None, :], high_out, mask=alive[:, None] & (d_high < SIZE)[None, :])


@triton.jit(do_not_specialize=["rows", "parts"])
def merge(
    parts_ptr,  # F32 [parts, T, H, D]
    norm_ptr,  # F32 [parts, T, H]
    out_ptr,  # [T, H, D]
    rows,  # T · H
    parts,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,  # the power of two that holds D
    MOST: tl.constexpr,  # parts at most: one compiled kernel for any number; those that are not there read nothing
    STEP: tl.constexpr,  # parts that are added up at once
):
    """One program a row and head: the parts of its keys, each weighted by its share of the sum."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, PADDED)
    every = tl.arange(0, MOST)
    norms = tl.load(norm_ptr + every.to(tl.int64) * rows + row, mask=every < parts, other=-float("inf"))
    top = tl.max(norms, 0)
    top = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(tl.exp2(norms - top), 0)
    acc = tl.zeros([PADDED], tl.float32)
    for start in range(0, parts, STEP):
        part = start + tl.arange(0, STEP)
        place = part.to(tl.int64) * rows + row
        weights = tl.exp2(tl.load(norm_ptr + place, mask=part < parts, other=-float("inf")) - top)
        found = (part < parts)[:, None] & (d < SIZE)[None, :]
        values = tl.load(parts_ptr + place[:, None] * SIZE + d[None, :], mask=found, other=0.0)
        acc += tl.sum(values * weights[:, None], 0)
    out = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * SIZE + d, out.to(out_ptr.dtype.element_ty), mask=d < SIZE)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Bounds,
    page: int,
    *,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    ranges: Tensor | None = None,
    scale: float | None = None,
    splits: int | None = None,
    shape: Shape | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """q [T, H, D]; k, v [P, K, D] with equal row strides and dense heads, or in 8 bits [P, K, D + 4] with rows of
    `kv_rows` -> [T, H, D]. ranges I32 [T, 2]. splits and shape: None chooses. out: where the result goes, dense.

    Accumulates in float32; rounds once at the end (and the weights to v's type before their product). Deterministic.
    """
    rows, heads, size = q.shape
    out = torch.empty((rows, heads, size), device=q.device, dtype=q.dtype) if out is None else out
    if shape is None:
        name, bits = shapes.name_of(q.device), 8 * k.element_size()
        shape = shapes.shape_for(heads, k.shape[1], size, page, bounds.longest_query, bits=bits, device=name)
    sequences, single = len(bounds.lengths), bounds.longest_query == 1
    if splits is None:
        tiles = sequences if single else rows // shape.block_q + sequences
        splits = shapes.splits_for(tiles * shape.kv_heads, bounds.longest, shapes.processors_of(q.device), shape.tile)
    width = size + (kv_rows.SCALE_BYTES if k.dtype in kv_rows.LARGEST else 0)
    dense = q.stride(1) == size and k.stride(1) == v.stride(1) == k.shape[2] == width and k.stride(0) == v.stride(0)
    if not dense or splits > shapes.MAX_SPLITS:
        raise ValueError(f"heads must be dense, rows of k and v equally far apart, parts at most {shapes.MAX_SPLITS}")
    call = Call(q, k, v, bounds, out, page, causal, window, float(softcap), ranges, scale or size**-0.5)
    if forms.every_form():
        for other, one in shapes.shapes_of(
            heads, k.shape[1], size, page, 8 * k.element_size(), shapes.name_of(q.device)
        ):
            for parts in (1, 2):
                _launch(call, other, parts, one)
    _launch(call, shape, splits, single)
    return out


@dataclass(frozen=True)
class Call:
    """What `attention` was called with."""

    q: Tensor
    k: Tensor
    v: Tensor
    bounds: Bounds
    out: Tensor
    page: int
    causal: bool
    window: int
    softcap: float
    ranges: Tensor | None
    scale: float


def _launch(call: Call, shape: Shape, splits: int, single: bool) -> None:
    q, k, v, bounds, out = call.q, call.k, call.v, call.bounds, call.out
    form = FORMS.get(k.dtype, "")
    rows, heads, size = q.shape
    sequences, table = len(bounds.lengths), bounds.table
    tiles = sequences if single else rows // shape.block_q + sequences
    parts = out if splits == 1 else torch.empty((splits, rows, heads, size), device=q.device, dtype=torch.float32)
    norms = out if splits == 1 else torch.empty((splits, rows, heads), device=q.device, dtype=torch.float32)
    low, high = halves(size)
    attend[(tiles, shape.kv_heads, splits)](
        q, *(x.view(torch.uint8) if form else x for x in (k, v)), parts, norms, table, bounds.starts, bounds.lengths,
        call.ranges, *(kv_rows.scales_of(x) if form else None for x in (k, v)), sequences, rows, q.stride(0),
        k.stride(0), 0 if table is None else table.stride(0), call.scale * (1.0 if call.softcap else LOG2_E),
        call.softcap or 1.0, HEADS=heads, KV_HEADS=shape.kv_heads, SIZE=size, WIDTH=k.shape[2], LOW=low, HIGH=high,
        PAGE=call.page, BLOCK_M=shape.block_m, TILE=shape.tile, SPLIT=splits > 1, WINDOW=call.window,
        CAUSAL=call.causal, CAPPED=call.softcap > 0, RANGED=call.ranges is not None, FORM=form,
        HARDWARE=form == "fp8" and reads_e4m3(), SINGLE=single, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    if splits > 1:
        padded = triton.next_power_of_2(size)
        merge[(rows * heads,)](
            parts,
            norms,
            out,
            rows * heads,
            splits,
            SIZE=size,
            PADDED=padded,
            MOST=shapes.MAX_SPLITS,
            STEP=32,
            num_warps=4,
        )


def halves(size: int) -> tuple[int, int]:
    """A head size as two powers of two, each at least 16 (a tensor core's): 80 -> 64 + 16, 128 -> 128 + 0."""
    low = max(16, 1 << (size.bit_length() - 1))
    rest = size - low
    return low, 0 if rest <= 0 else max(16, triton.next_power_of_2(rest))
