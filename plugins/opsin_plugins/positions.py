"""What the families share about prompts: placeholders at full length, and position ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opsin_plugins.spec import I32, Expanded, Span, SpecError, VisualItem


def repeat_placeholder(ids: Sequence[int], items: Sequence[VisualItem], placeholder: int) -> Expanded:
    """Every placeholder id becomes as many as its image has visual tokens. Raises SpecError on unequal counts."""
    array = np.asarray(ids, np.int32)
    places = np.flatnonzero(array == placeholder)
    if len(places) != len(items):
        raise SpecError(f"the chat template wrote {len(places)} image placeholders for {len(items)} images")
    counts = np.ones(len(array), np.int64)
    counts[places] = [item.rows for item in items]
    starts = np.cumsum(counts) - counts
    spans = tuple(Span(int(starts[at]), item.rows, i) for i, (at, item) in enumerate(zip(places, items, strict=True)))
    return Expanded(np.repeat(array, counts), spans)


def line(length: int) -> tuple[I32, int]:
    """Ordinary positions: I32 [1, T], delta 0."""
    return np.arange(length, dtype=np.int32)[None], 0


def mrope(expanded: Expanded, items: Sequence[VisualItem], merge: int) -> tuple[I32, int]:
    """M-RoPE positions I32 [3, T] (time, row, column) and the delta of what follows.

    Text advances all axes; an image at s gives t = s, h = s + row, w = s + column of the merged grid, and what
    follows starts at s + max(rows, columns). Source: the Qwen2-VL paper, §2.1.
    """
    total = len(expanded.ids)
    out = np.empty((3, total), np.int32)
    at = position = 0
    for span in expanded.spans:
        text = span.start - at
        out[:, at : span.start] = position + np.arange(text)
        position += text
        frames, rows, columns = (g // m for g, m in zip(items[span.item].grid, (1, merge, merge), strict=True))
        axes = np.indices((frames, rows, columns)).reshape(3, -1)
        out[:, span.start : span.start + span.length] = position + axes
        position += max(rows, columns)
        at = span.start + span.length
    out[:, at:] = position + np.arange(total - at)
    return out, position + (total - at) - total
