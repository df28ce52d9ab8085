"""What a sampler may draw, written out without tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from torch import Tensor

from opsin_kernels.cpu import native
from opsin_kernels.sampling import SamplingRow, sample, sample_ref


def allowed(logits: list[float], row: SamplingRow) -> list[float]:
    """The filtered distribution, written out without tensors."""
    top = max(logits)
    p = [math.exp((x - top) / row.temperature) for x in logits]
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if row.top_k:
        order = order[: row.top_k]
    total, kept, seen = sum(p[i] for i in order), [], 0.0
    for i in order:
        if row.top_p < 1 and seen >= row.top_p:
            break
        kept.append(i)
        seen += p[i] / total
    largest = max(p[i] for i in kept)
    kept = [i for i in kept if p[i] >= row.min_p * largest]
    mass, found = sum(p[i] for i in kept), [0.0] * len(p)
    for i in kept:
        found[i] = p[i] / mass
    return found


def check_draw(logits: list[float], row: SamplingRow, token: int, rounding: float = 1e-5) -> None:
    """The token is where the uniform number falls, by the inverse of the filtered distribution."""
    expected = allowed(logits, row)
    below = sum(expected[:token])
    assert expected[token] > 0
    assert below - rounding <= row.uniform <= below + expected[token] + rounding


Drawing = Callable[[Tensor, Sequence[SamplingRow]], Tensor]


def dispatched(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """By C, where numbers are of 32 bits."""
    if isinstance(found := native.native(), str):
        pytest.skip(found)
    return sample(logits, rows)[0]


each_drawing = pytest.mark.parametrize("draw", [dispatched, sample_ref], ids=["C", "definition"])

rows = st.builds(
    SamplingRow,
    temperature=st.floats(0.3, 2),
    top_k=st.sampled_from([0, 1, 2, 3, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.1, 0.6]),
    uniform=st.floats(0.001, 0.999),
)


# Settings and logits at the edge of float32: some are 0, 1 or infinite in it.
edge_rows = st.builds(
    SamplingRow,
    temperature=st.sampled_from([0.0, 5e-324, 1e-46, 1e-45, 1e-38, 1e-31, 1e-30, 1e-20, 1e-7, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 2**31 - 1]),
    top_p=st.sampled_from([5e-324, 1e-46, 1e-38, 1e-8, 0.5, 1 - 2.0**-24, 1 - 2.0**-53, 1.0]),
    min_p=st.sampled_from([0.0, 5e-324, 1e-46, 1e-8, 0.5, 1 - 2.0**-24, 1 - 2.0**-53, 1.0]),
    uniform=st.sampled_from([0.0, 5e-324, 2.0**-53, 0.3, 1 - 2.0**-24, 1 - 2.0**-53]),
)
NEAR = [0.0, 1e-45, 0.1, 0.1 + 2.0**-27, 1.0, 1.0 + 2.0**-23, 30.0, -30.0, 3e38, -3e38]
finite = st.one_of(st.sampled_from(NEAR), st.floats(-1e4, 1e4, width=32))
edge_logits = st.lists(st.one_of(finite, st.just(-math.inf)), min_size=1, max_size=40).filter(lambda x: max(x) > -1e39)
broken_logits = st.lists(st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf])), min_size=1, max_size=40)


def check_edge(logits: list[float], row: SamplingRow, token: int) -> None:
    """logits: numbers or -inf, one a number at least. A token that is there is drawn, and the most likely one where a
    filter leaves no other. Where a filter ends, the rounding of float32 may take one that is nearly as likely."""
    assert 0 <= token < len(logits)
    top = max(logits)
    if row.temperature < 1e-30 or row.top_k == 1 or row.top_p <= 1e-8 or row.min_p >= 1 - 2.0**-53:
        assert logits[token] == top
        return
    kept = allowed(logits, replace(row, top_p=min(1.0, row.top_p * 1.001)))
    least = min(p for p in kept if p > 0)
    weights = [math.exp((x - top) / row.temperature) for x in logits]
    assert weights[token] >= 0.3 * least * sum(w for w, p in zip(weights, kept, strict=True) if p > 0)
    assert weights[token] > 0


def check_broken(logits: list[float], row: SamplingRow, token: int) -> None:
    """NaN is never drawn, infinity always."""
    numbers = [x for x in logits if x == x]
    if not numbers or max(numbers) == -math.inf:
        assert token == 0
    elif max(numbers) == math.inf:
        assert token == logits.index(math.inf)
    else:
        check_edge([x if x == x else -math.inf for x in logits], row, token)
