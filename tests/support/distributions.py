"""What a sampler may draw, written out without tensors."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from opsin_kernels.sampling import SamplingRow


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
    mass = sum(p[i] for i in kept)
    return [p[i] / mass if i in kept else 0.0 for i in range(len(p))]


rows = st.builds(
    SamplingRow,
    temperature=st.floats(0.3, 2),
    top_k=st.sampled_from([0, 1, 2, 3, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.1, 0.6]),
    uniform=st.floats(0.001, 0.999),
)
