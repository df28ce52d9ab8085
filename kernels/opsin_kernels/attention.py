"""out_THD = softmax(q_THD · k_LKD / √D + mask) · v_LKD, per sequence. T query rows, L cached rows, H heads, K KV heads.

Rows of all sequences are packed along T. Keys and values lie in pages ("blocks") of a pool [blocks, block, 2K, D], keys
first, found by a block table; a sequence's queries are its newest rows. Source: PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_kernels import kv_rows
from opsin_kernels.cpu import decode
from opsin_kernels.dispatch import uses_kernels
from opsin_kernels.layout import Layout, Segments


def write_kv(kv: Tensor, pool: Tensor, slots: Tensor) -> None:
    """kv [T, 2K, D], keys first, into the pool [blocks, block, 2K, D] at slots I64 [T]; in place. One of 8 bits has
    rows of `kv_rows`."""
    if pool.dtype in kv_rows.LARGEST:
        kv, pool = kv_rows.quantize(kv, pool.dtype).view(torch.int8), pool.view(torch.int8)
    pool.view(-1, *pool.shape[2:]).index_copy_(0, slots, kv)


def paged_attention(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """q [T, H, D]; pool [blocks, block, 2K, D] (or with rows of `kv_rows`) that already holds this step's rows. Returns
    [T, H·D]. Causal."""
    if uses_kernels(q):
        return _paged_kernel(q, pool, layout)
    return _paged(q, pool, layout, decode.attend if decode.can_attend(q, pool, layout) else _decode)


def paged_attention_ref(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """The definition of `paged_attention`."""
    return _paged(q, pool, layout, _decode)


def _paged(q: Tensor, pool: Tensor, layout: Layout, attend: Callable[[Tensor, Tensor, Layout], Tensor]) -> Tensor:
    """attend: to sequences of one query row."""
    decodes = layout.decodes
    if decodes == len(layout.query_lengths):
        return attend(q, pool, layout)
    parts, at = [attend(q[:decodes], pool, layout)] if decodes else [], decodes
    for i in range(decodes, len(layout.query_lengths)):
        length = layout.query_lengths[i]
        parts.append(
            _attend_one(q[at : at + length], *_gather(pool, layout, slice(i, i + 1), layout.kv_lengths[i], q.dtype))
        )
        at += length
    return torch.cat(parts)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, causal: bool) -> Tensor:
    """q [T, H, D], k and v [T, K, D] of sequences packed one behind the other; each sees only itself. Differentiable.
    causal: not with cores."""
    if uses_kernels(q) and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
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


def _gather(pool: Tensor, layout: Layout, sequences: slice, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of some sequences: views [B, K, length, D] of one copy. dtype: of a pool of
    8 bits."""
    _, block, heads, width = pool.shape
    blocks = layout.blocks_of(sequences, length, block)
    small = pool.dtype in kv_rows.LARGEST  # (not all of torch takes every such type: rows are moved as bytes)
    rows = (pool.view(torch.int8) if small else pool).index_select(0, blocks)
    rows = rows.view(sequences.stop - sequences.start, -1, heads, width)
    rows = kv_rows.dequantize(rows.view(pool.dtype), dtype) if small else rows
    k, v = rows[:, :length].transpose(1, 2).chunk(2, 1)
    return k, v


def _decode(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """q [B, H, D], one row a sequence. The query group folded into the query length is 3.4x faster."""
    batch, heads, width = q.shape
    k, v = _gather(pool, layout, slice(0, batch), layout.decode_rows, q.dtype)
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
