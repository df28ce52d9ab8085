"""Paged attention against plain attention over each sequence's own rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.attention import packed_attention, paged_attention, write_kv
from opsin_kernels.layout import Layout, Segments


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Queries are the newest rows. Written out, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(groups, 1)) / q.shape[-1] ** 0.5
    if causal:
        rows, total = scores.shape[1:]
        late = torch.arange(total)[None] > torch.arange(rows)[:, None] + total - rows
        scores = scores.masked_fill(late, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.repeat_interleave(groups, 1)).float()


sequence = st.tuples(st.integers(1, 9), st.integers(0, 40))  # queries, rows before them


@given(
    st.lists(sequence, min_size=1, max_size=5), st.sampled_from([(4, 2, 8), (3, 3, 20), (6, 1, 5)]), st.integers(1, 7)
)
@settings(max_examples=60, deadline=None)
def test_paged_attention_equals_its_definition(parts, shape, block) -> None:
    parts = sorted(parts, key=lambda p: p[0] != 1)  # decode rows first
    heads, kv_heads, width = shape
    generator = torch.Generator().manual_seed(len(parts))
    counts = [-(-(n + before) // block) for n, before in parts]
    numbers = torch.randperm(sum(counts) + 3, generator=generator)
    # Rows that nobody wrote are large, so that reading one shows.
    pool = torch.full((len(numbers), block, 2 * kv_heads, width), 50.0)
    table, at = torch.zeros(len(parts), max(counts), dtype=torch.int64), 0
    queries, wanted, slots = [], [], []
    for i, ((n, before), count) in enumerate(zip(parts, counts, strict=True)):
        table[i, :count] = numbers[at : at + count]
        at += count
        total = n + before
        k, v = (torch.randn(total, kv_heads, width, generator=generator) for _ in range(2))
        places = table[i, torch.arange(total) // block] * block + torch.arange(total) % block
        write_kv(torch.cat((k, v), 1), pool, places)
        q = torch.randn(n, heads, width, generator=generator)
        queries.append(q)
        slots.append(places[before:])
        wanted.append(plain(q, k, v, causal=True))
    layout = Layout([n for n, _ in parts], [n + b for n, b in parts], table, torch.cat(slots))
    out = paged_attention(torch.cat(queries), pool, layout)
    assert (out - torch.cat(wanted).flatten(1)).abs().max() < 1e-5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [3, 7, 7, 1, 2]])
def test_packed_sequences_do_not_see_each_other(lengths: list[int], causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), h, 12) for h in (4, 2, 2))
    out = packed_attention(q, k, v, Segments(lengths), causal=causal)
    for a, b, c, d in zip(*(x.split(lengths) for x in (q, k, v, out)), strict=True):
        assert (plain(a, b, c, causal) - d).abs().max() < 1e-5


def test_rows_behind_a_core_see_the_core_alone() -> None:
    torch.manual_seed(0)
    lengths, cores = [5, 3, 4], [2, 3, 1]
    q, k, v = (torch.randn(12, h, 12) for h in (4, 2, 2))
    segments = Segments(lengths, cores)
    out = packed_attention(q, k, v, segments, causal=False)
    for a, b, c, d, core in zip(*(x.split(lengths) for x in (q, k, v, out)), cores, strict=True):
        wanted = torch.cat([plain(a[:core], b, c, False), plain(a[core:], b[:core], c[:core], False)])
        assert (wanted - d).abs().max() < 1e-5
    _, ranges = segments.bounds(q.device)
    assert ranges.tolist() == [[0, n] for n in (5, 5, 2, 2, 2, 3, 3, 3, 4, 1, 1, 1)]
