"""What the families share about prompts: placeholders at full length, and position ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opsin_plugins.spec import I32, Expanded, Span, SpecError, VisualItem


def repeat_placeholder(ids: Sequence[int], items: Sequence[VisualItem], placeholder: int) -> Expanded:
    """Every placeholder id becomes as many as its image has visual tokens. Raises SpecError on unequal counts."""
    return write_images(ids, items, placeholder, lambda item: ([placeholder] * item.tokens, None))


Written = tuple[Sequence[int], tuple[bool, ...] | None]  # ids, and which of them are visual rows (None: all)


def write_images(
    ids: Sequence[int], items: Sequence[VisualItem], placeholder: int, write: Callable[[VisualItem], Written]
) -> Expanded:
    """Every placeholder id becomes what is written for its image. Raises SpecError on unequal counts."""
    array = np.asarray(ids, np.int32)
    places = np.flatnonzero(array == placeholder)
    if len(places) != len(items):
        raise SpecError(f"the chat template wrote {len(places)} image placeholders for {len(items)} images")
    parts, spans, at, length = [], [], 0, 0
    for number, (place, item) in enumerate(zip(places, items, strict=True)):
        written, visual = write(item)
        parts += [array[at:place], np.asarray(written, np.int32)]
        length += int(place) - at
        spans.append(Span(length, len(written), number, visual))
        at, length = int(place) + 1, length + len(written)
    return Expanded(np.concatenate([*parts, array[at:]]), tuple(spans))


def rows_with_breaks(rows: int, columns: int, placeholder: int, row_end: int, image_end: int) -> Written:
    """Each row of visual tokens ends with a token of its own, the last with another. Source: arXiv 2410.07073."""
    ids = np.full((rows, columns + 1), placeholder, np.int32)
    ids[:, -1] = row_end
    ids[-1, -1] = image_end
    visual = np.ones((rows, columns + 1), bool)
    visual[:, -1] = False
    return ids.ravel().tolist(), tuple(visual.ravel().tolist())


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
