"""What a step does between its products, by cpu/decode.c: one call where torch needs several, for rows of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from opsin_kernels.cpu.native import LANES, can_run, loaded
from opsin_kernels.layout import Layout

POOLS = (torch.float32, torch.int8)  # the latter with rows of `opsin_kernels.kv_rows`


def can_turn(qkv: Tensor, cos: Tensor, pool: Tensor, slots: Tensor) -> bool:
    """Rows of a slot below 0 are written nowhere."""
    fits = qkv.dtype == cos.dtype == torch.float32 and pool.dtype in POOLS and qkv.shape[-1] % (2 * LANES) == 0
    flat = qkv.is_contiguous() and pool.is_contiguous() and slots.is_contiguous() and slots.dtype == torch.int64
    return fits and flat and can_run(qkv, cos, pool, slots)


def turn_and_store(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> Tensor:
    """See `opsin_kernels.rotary.rotate_and_store`."""
    rows, count, width = qkv.shape
    pointers = (part.data_ptr() for part in (qkv, cos.contiguous(), sin.contiguous(), pool, slots))
    loaded().rotate_and_store(*pointers, rows, heads, (count - heads) // 2, width, pool.dtype == torch.int8)
    return qkv[:, :heads]


def can_attend(q: Tensor, pool: Tensor, layout: Layout) -> bool:
    """Not where lengths and pages are only known on the device (`Layout.given`)."""
    table = layout.block_table
    if layout.given is not None or table is None or table.dtype != torch.int64 or table.stride(-1) != 1:
        return False
    fits = q.dtype == torch.float32 and pool.dtype in POOLS and q.shape[-1] % LANES == 0 and pool.is_contiguous()
    return fits and q.stride(-1) == 1 and q.stride(-2) == q.shape[-1] and can_run(q, pool)


def attend(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
    """q [B, H, D], one row a sequence -> [B, H·D]; see `opsin_kernels.attention.paged_attention`."""
    batch, heads, width = q.shape
    table, lengths = layout.block_table, layout.decode_lengths
    assert table is not None
    out = torch.empty(batch, heads * width)
    pointers = (part.data_ptr() for part in (out, q, pool, table, lengths))
    sizes = (batch, table.stride(0), pool.shape[1], q.stride(0), heads, pool.shape[2] // 2, width)
    loaded().attend(*pointers, *sizes, pool.dtype == torch.int8, torch.get_num_threads())
    return out
