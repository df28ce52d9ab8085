"""The attention kernel against its definition in plain words: one row after another, in float32."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from opsin_kernels import kv_rows
from opsin_kernels.gpu import attention as gpu
from opsin_kernels.gpu.attention_shapes import splits_for
from opsin_kernels.layout import Bounds

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A GPU's powers of two and quotients are good to two units in the last place; TF32 would be off by 1e-3.
TOLERANCES = {torch.float32: 2e-6 if INTERPRETED else 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass
class Case:
    """Sequences of `queries` new rows behind a prefix, `lengths` rows in all, in pages of `page` rows (0: packed)."""

    heads: int
    kv_heads: int
    size: int
    page: int
    queries: list[int]
    lengths: list[int]
    window: int = 0
    softcap: float = 0.0
    splits: int | None = 1
    causal: bool = True
    ranges: list[tuple[int, int]] | None = None
    dtype: torch.dtype = torch.float32


CASES = {
    "decode": Case(6, 3, 32, 4, [1, 1, 1], [5, 4, 17]),
    "decode, one key and exact pages": Case(4, 2, 64, 8, [1, 1, 1], [1, 8, 16]),
    "decode, split": Case(6, 3, 32, 4, [1, 1], [5, 170], splits=3),
    "decode, more parts than tiles": Case(2, 1, 16, 4, [1], [70], splits=5),
    "decode, many parts": Case(2, 1, 16, 4, [1], [2300], splits=36),
    "decode, parts chosen": Case(2, 1, 16, 16, [1], [700], splits=None),
    "seven heads a group": Case(7, 1, 128, 8, [1, 3], [33, 40]),
    "prefill behind a prefix": Case(4, 2, 80, 4, [7, 1, 3], [9, 1, 20]),
    "an empty sequence, a long one": Case(4, 4, 24, 16, [5, 0, 70], [5, 3, 90]),
    "head size 40": Case(2, 2, 40, 4, [3], [6]),
    "head size 112": Case(2, 1, 112, 4, [1, 2], [6, 9]),
    "a head size below a tensor core's": Case(2, 2, 8, 4, [3], [6]),
    "window": Case(4, 2, 32, 4, [1, 30], [100, 40], window=8),
    "window of a split decode": Case(4, 2, 32, 4, [1], [300], window=130, splits=2),
    "softcap": Case(2, 1, 64, 8, [1, 30], [100, 40], softcap=5.0),
    "packed, both ways": Case(3, 3, 80, 0, [5, 70, 1], [5, 70, 1], causal=False),
    "packed, around cores": Case(
        3, 3, 80, 0, [5, 2], [5, 2], causal=False, ranges=[(0, 5), (0, 5), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1)]
    ),
    "packed, causal": Case(4, 2, 16, 0, [5, 20], [5, 20]),
    "ranges": Case(4, 2, 32, 4, [2, 1], [12, 9], causal=False, ranges=[(0, 3), (3, 12), (9, 9)]),
    "bidirectional span": Case(2, 2, 32, 4, [5], [8], ranges=[(0, 4), (0, 7), (0, 7), (0, 7), (0, 8)]),
    "half precision": Case(4, 2, 80, 4, [1, 9], [100, 40], splits=2, dtype=torch.float16),
    "bfloat16": Case(7, 1, 80, 4, [1, 9], [100, 40], splits=2, dtype=torch.bfloat16),
    "bfloat16, softcap": Case(4, 2, 64, 8, [1, 3], [33, 40], softcap=5.0, dtype=torch.bfloat16),
    "bfloat16, packed": Case(3, 3, 72, 0, [5, 70], [5, 70], causal=False, dtype=torch.bfloat16),
}


def definition(q: Tensor, k: Tensor, v: Tensor, case: Case, length: int, count: int, first: int) -> Tensor:
    """q [n, H, D], k and v [L, K, D] of one sequence; `first`: its first packed row."""
    rows = []
    group = case.heads // case.kv_heads
    for i in range(count):
        position = length - count + i
        lo, hi = 0, position + 1 if case.causal else length
        if case.window:
            lo = max(0, position + 1 - case.window)
        if case.ranges is not None:
            lo, hi = case.ranges[first + i]
        if hi <= lo:
            rows.append(torch.zeros(case.heads, case.size))
            continue
        keys, values = (x[lo:hi].float().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hd,lhd->hl", q[i].float(), keys) * case.size**-0.5
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        rows.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), values))
    return torch.stack(rows) if rows else torch.zeros(0, case.heads, case.size)


def stored(keys: list[Tensor], values: list[Tensor], case: Case) -> tuple[Tensor, Tensor, Tensor | None]:
    """All rows as the kernel finds them. What no sequence owns is NaN: a stray read shows."""
    if not case.page:
        return torch.cat(keys), torch.cat(values), None
    pages = [-(-length // case.page) for length in case.lengths]
    pool = torch.full((sum(pages) + 3, case.page, 2 * case.kv_heads, case.size), torch.nan, dtype=case.dtype)
    table = torch.full((len(pages), max(pages)), 10**6, dtype=torch.int32)
    order = iter(torch.randperm(len(pool)).tolist())
    for s, (k, v) in enumerate(zip(keys, values, strict=True)):
        for i in range(pages[s]):
            table[s, i] = block = next(order)
            part = slice(i * case.page, min((i + 1) * case.page, len(k)))
            pool[block, : part.stop - part.start] = torch.cat([k[part], v[part]], 1)
    rows = pool.view(-1, 2 * case.kv_heads, case.size)
    return rows[:, : case.kv_heads], rows[:, case.kv_heads :], table


@pytest.mark.parametrize("name", CASES)
def test_attention_is_its_definition(name: str) -> None:
    torch.manual_seed(len(name))
    case = CASES[name]
    keys, values = ([torch.randn(n, case.kv_heads, case.size).to(case.dtype) for n in case.lengths] for _ in range(2))
    q = torch.randn(sum(case.queries), case.heads, case.size).to(case.dtype)
    k, v, table = stored(keys, values, case)
    starts = [0, *accumulate(case.queries)]
    batch = Bounds(
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(case.lengths, dtype=torch.int32),
        table,
        max(case.queries),
        max(case.lengths),
    )
    ranges = None if case.ranges is None else torch.tensor(case.ranges, dtype=torch.int32)
    out = gpu.attention(
        q, k, v, batch, case.page,
        causal=case.causal, window=case.window, softcap=case.softcap, ranges=ranges, splits=case.splits,
    )  # fmt: skip
    parts = [
        definition(q[starts[s] : starts[s + 1]], keys[s], values[s], case, case.lengths[s], n, starts[s])
        for s, n in enumerate(case.queries)
    ]
    error = (out.float() - torch.cat(parts)).abs().max()
    assert error < TOLERANCES[case.dtype], error


@pytest.mark.parametrize("heads", [1, 8, 32])
def test_the_number_of_parts_falls_off_no_cliff(heads: int) -> None:
    """One sequence more never needs fewer programs, and a long context is never left to few."""
    for longest in (100, 1000, 10000, 100000):
        programs = [batch * heads * splits_for(batch * heads, longest, 132, 64) for batch in range(1, 257)]
        assert all(b >= 0.5 * a for a, b in pairwise(programs))
        assert max(splits_for(1, longest, 132, 64), 1) <= max(1, longest // 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", kv_rows.LARGEST)
@pytest.mark.parametrize("queries", [[1, 1], [3, 1]])
@pytest.mark.parametrize("splits", [1, 2])
def test_rows_in_8_bits_are_what_they_mean(
    queries: list[int], splits: int, kind: torch.dtype, dtype: torch.dtype
) -> None:
    """The kernel against itself on the same numbers written out. Where no sequence has rows, scales are NaN."""
    torch.manual_seed(1)
    lengths, heads = [70, 9], 2
    q = torch.randn(sum(queries), 4, 80).to(dtype)
    starts = torch.tensor([0, *accumulate(queries)], dtype=torch.int32)
    table = torch.arange(36, dtype=torch.int32).view(2, 18)
    bounds = Bounds(starts, torch.tensor(lengths, dtype=torch.int32), table, max(queries), 70)
    small = kv_rows.quantize(torch.randn(2, 72, 2 * heads, 80), kind)
    for rows, length in zip(small, lengths, strict=True):
        kv_rows.scales_of(rows[length:])[:] = torch.nan
    small = small.flatten(0, 1)
    wide = kv_rows.dequantize(small, torch.float32 if dtype == torch.float32 else dtype)
    ours, theirs = (
        gpu.attention(q, pool[:, :heads], pool[:, heads:], bounds, 4, splits=splits) for pool in (small, wide)
    )
    assert (ours - theirs).float().abs().max() < (2e-5 if dtype == torch.float32 else 2e-2)
    assert ours.abs().max() > 0.1


def test_rows_of_another_width_are_refused() -> None:
    q, pool, bounds = torch.randn(1, 2, 16), torch.zeros(4, 2, 16, dtype=torch.int8), torch.ones(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="heads must be dense"):
        gpu.attention(q, pool[:, :1], pool[:, 1:], Bounds(bounds, bounds[:1], bounds[None], 1, 1), 4, splits=1)
