"""out_THD = softmax(q_THD · k_LKD / √D + mask) · v_LKD, per sequence. T query rows, L cached rows, H heads, K KV heads.

Rows of all sequences are packed along T. Keys and values lie in pages ("blocks") of a pool [blocks, block, 2K, D], keys
first, found by a block table; a sequence's queries are its newest rows. Source: PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels.dispatch import uses_kernels


@dataclass(frozen=True)
class Bounds:
    """Sequences of one launch of the kernel, on the device: I32 starts [S + 1], the first query row of each; lengths
    [S], of keys; table [S, pages], the pages of each, None where keys are packed like the queries. longest_query,
    longest: bounds that the host knows, which shape the launch."""

    starts: Tensor
    lengths: Tensor
    table: Tensor | None
    longest_query: int
    longest: int


@dataclass
class Segments:
    """Sequences packed one behind the other, each of which sees only itself; lengths: rows of each, host integers.

    cores: how many rows at the front of each see all of it; its other rows see those alone. None: all of them do.
    """

    lengths: Sequence[int]
    cores: Sequence[int] | None = None
    _made: tuple[Bounds, Tensor | None] | None = field(default=None, init=False, repr=False, compare=False)

    def bounds(self, device: torch.device) -> tuple[Bounds, Tensor | None]:
        """As the kernel takes it, with the rows that each row sees, I32 [T, 2], where cores are given. Built once a
        forward pass, not once a layer: the copy makes the host wait."""
        if self._made is None:
            count = len(self.lengths)
            numbers = torch.tensor([*accumulate(self.lengths, initial=0), *self.lengths], dtype=torch.int32).to(device)
            longest = max(self.lengths)
            bounds = Bounds(numbers[: count + 1], numbers[count + 1 :], None, longest, longest)
            self._made = bounds, None if self.cores is None else self._ranges(self.cores).to(device)
        return self._made

    def _ranges(self, cores: Sequence[int]) -> Tensor:
        spans = zip(self.lengths, cores, strict=True)
        ends = torch.tensor([n for a, core in spans for n in [a] * core + [core] * (a - core)], dtype=torch.int32)
        return torch.stack([torch.zeros_like(ends), ends], 1)


@dataclass
class Layout:
    """Which packed rows belong to which sequence, in order; sequences of one query row (decode) stand first.

    query_lengths, kv_lengths: host integers, one a sequence; kv_lengths count the rows after this step's are written.
    block_table I64 [S, max blocks], slots I64 [T] (block · block size + offset): None without a cache (training), where
    a sequence attends to its own rows only and kv_lengths equal query_lengths.
    """

    query_lengths: Sequence[int]
    kv_lengths: Sequence[int]
    block_table: Tensor | None = None
    slots: Tensor | None = None

    @cached_property
    def decodes(self) -> int:
        """How many sequences at the front have one query row."""
        return next((i for i, n in enumerate(self.query_lengths) if n != 1), len(self.query_lengths))

    @cached_property
    def decode_rows(self) -> int:
        """The longest decode sequence: how many cached rows each of them gathers."""
        return max(self.kv_lengths[: self.decodes])

    @cached_property
    def decode_mask(self) -> Tensor | None:
        """F32 [B, 1, 1, L], added to the scores: 0 where a decode sequence's gathered row exists, else -inf; None when
        all do. Built once a step, and as numbers: from booleans each layer would make them again (20 µs)."""
        lengths = self.kv_lengths[: self.decodes]
        if min(lengths) == self.decode_rows:
            return None
        assert self.block_table is not None
        ends = torch.tensor(lengths, device=self.block_table.device)
        absent = torch.arange(self.decode_rows, device=ends.device) >= ends[:, None]
        return torch.zeros(absent.shape, device=ends.device).masked_fill_(absent, -torch.inf)[:, None, None]

    @cached_property
    def launches(self) -> list[tuple[slice, Bounds]]:
        """Query rows and bounds of each launch: those that decode and those that prefill want tiles, and parts that
        keys are split into, of their own. Built once a step."""
        assert self.block_table is not None
        count, first = len(self.query_lengths), self.decodes
        groups = [slice(0, first), slice(first, count)] if 0 < first < count else [slice(0, count)]
        numbers, table = [], self.block_table.to(torch.int32)
        for group in groups:
            numbers += [*accumulate(self.query_lengths[group], initial=0), *self.kv_lengths[group]]
        moved = torch.tensor(numbers, dtype=torch.int32).to(table.device, non_blocking=True)
        found, row, at = [], 0, 0
        for group in groups:
            queries, lengths, size = self.query_lengths[group], self.kv_lengths[group], group.stop - group.start
            starts, at = moved[at : at + size + 1], at + 2 * size + 1
            bounds = Bounds(starts, moved[at - size : at], table[group], max(queries), max(lengths))
            found.append((slice(row, row + sum(queries)), bounds))
            row += sum(queries)
        return found

    @cached_property
    def segments(self) -> Segments:
        """The sequences without a cache."""
        return Segments(self.query_lengths)

    def blocks_of(self, sequences: slice, length: int, block: int) -> Tensor:
        """I64 [n · blocks]: the blocks that hold the first `length` rows of some sequences; built once a step."""
        key = (sequences.start, sequences.stop)
        if key not in self._blocks:
            assert self.block_table is not None
            self._blocks[key] = self.block_table[sequences, : -(-length // block)].reshape(-1)
        return self._blocks[key]

    @cached_property
    def _blocks(self) -> dict[tuple[int, int], Tensor]:
        return {}


def write_kv(kv: Tensor, pool: Tensor, slots: Tensor) -> None:
    """kv [T, 2K, D], keys first, into the pool [blocks, block, 2K, D] at slots I64 [T]; in place."""
    pool.view(-1, *pool.shape[2:]).index_copy_(0, slots, kv)


def paged_attention(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """q [T, H, D]; pool [blocks, block, 2K, D] that already holds this step's rows. Returns [T, H·D]. Causal."""
    return _paged_kernel(q, pool, layout) if uses_kernels(q) else paged_attention_ref(q, pool, layout)


def paged_attention_ref(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """The definition of `paged_attention`."""
    decodes = layout.decodes
    if decodes == len(layout.query_lengths):
        return _decode(q, pool, layout)
    parts, at = [_decode(q[:decodes], pool, layout)] if decodes else [], decodes
    for i in range(decodes, len(layout.query_lengths)):
        length = layout.query_lengths[i]
        parts.append(_attend_one(q[at : at + length], *_gather(pool, layout, slice(i, i + 1), layout.kv_lengths[i])))
        at += length
    return torch.cat(parts)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, causal: bool) -> Tensor:
    """q [T, H, D], k and v [T, K, D] of sequences packed one behind the other; each sees only itself. Differentiable.
    causal: not with cores."""
    if uses_kernels(q) and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        return _packed_kernel(q, k, v, segments, causal=causal)
    return packed_attention_ref(q, k, v, segments, causal=causal)


def packed_attention_ref(q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, causal: bool) -> Tensor:
    """The definition of `packed_attention`. Runs of equal lengths (the tiles of one picture size) are one call."""
    if segments.cores is not None:
        return _around_cores(q, k, v, segments)
    parts, at, i, lengths = [], 0, 0, segments.lengths
    while i < len(lengths):
        same = 1
        while i + same < len(lengths) and lengths[i + same] == lengths[i]:
            same += 1
        rows, shape = slice(at, at + same * lengths[i]), (same, lengths[i])
        parts.append(_batched(*(x[rows].view(*shape, *x.shape[1:]) for x in (q, k, v)), causal=causal).flatten(0, 1))
        at, i = at + same * lengths[i], i + same
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _around_cores(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    assert segments.cores is not None
    parts, split = [], [x.split(list(segments.lengths)) for x in (q, k, v)]
    for queries, keys, values, core in zip(*split, segments.cores, strict=True):
        parts.append(_batched(queries[None, :core], keys[None], values[None], causal=False)[0])
        if core < len(queries):
            parts.append(_batched(queries[None, core:], keys[None, :core], values[None, :core], causal=False)[0])
    return torch.cat(parts)


def _paged_kernel(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    from opsin_kernels.gpu import attention as gpu

    rows, heads = pool.view(-1, *pool.shape[2:]), pool.shape[2] // 2
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    for part, bounds in layout.launches:
        gpu.attention(q[part], rows[:, :heads], rows[:, heads:], bounds, pool.shape[1], out=out[part])
    return out.flatten(1)


def _packed_kernel(q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, causal: bool) -> Tensor:
    from opsin_kernels.gpu import attention as gpu

    if not segments.lengths:
        return torch.empty_like(q)
    q, k, v = (x if x.stride(-1) == 1 and x.stride(1) == x.shape[2] else x.contiguous() for x in (q, k, v))
    if k.stride(0) != v.stride(0):
        k, v = k.contiguous(), v.contiguous()
    bounds, ranges = segments.bounds(q.device)
    return gpu.attention(q, k, v, bounds, 0, causal=causal, ranges=ranges)


def _batched(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """q [B, L, H, D], k and v [B, L, K, D] -> [B, L, H, D]."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, 2) if groups > 1 else x for x in (k, v))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal)
    return out.transpose(1, 2)


def _gather(pool: Tensor, layout: Layout, sequences: slice, length: int) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of some sequences: views [B, K, length, D] of one copy."""
    _, block, heads, width = pool.shape
    blocks = layout.blocks_of(sequences, length, block)
    rows = pool.index_select(0, blocks).view(sequences.stop - sequences.start, -1, heads, width)
    k, v = rows[:, :length].transpose(1, 2).chunk(2, 1)
    return k, v


def _decode(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """q [B, H, D], one row a sequence. The query group folded into the query length is 3.4x faster."""
    batch, heads, width = q.shape
    k, v = _gather(pool, layout, slice(0, batch), layout.decode_rows)
    grouped = q.view(batch, k.shape[1], heads // k.shape[1], width)
    mask = layout.decode_mask
    if mask is not None:
        mask = mask.to(q.dtype).expand(-1, -1, grouped.shape[2], -1)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(batch, heads * width)


def _attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [T, H, D] are the newest rows of k, v [1, K, L, D]. Returns [T, H·D]."""
    rows, total = q.shape[0], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    mask = None
    if rows != total:
        mask = torch.ones(rows, total, dtype=torch.bool, device=q.device).tril(total - rows)
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None)
    return out[0].transpose(0, 1).reshape(rows, -1)
