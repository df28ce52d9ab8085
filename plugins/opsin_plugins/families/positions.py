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
    ids: Sequence[int],
    items: Sequence[VisualItem],
    placeholder: int,
    write: Callable[[VisualItem], Written],
    of_videos: int | None = None,
) -> Expanded:
    """Every placeholder id becomes what is written for its image, or its video. of_videos: their placeholder, which is
    an id like any other where there are none. Raises SpecError on unequal counts."""
    array = np.asarray(ids, np.int32)
    moving = [item.video is not None for item in items]
    placeholders = [placeholder] if of_videos is None or not any(moving) else [placeholder, of_videos]
    places = np.flatnonzero(np.isin(array, placeholders))
    if [int(array[place]) != placeholder for place in places] != moving:
        written = int(np.count_nonzero(array[places] == placeholder))
        videos = f" and {len(places) - written} of videos for {sum(moving)} videos" if any(moving) else ""
        images = len(items) - sum(moving)
        raise SpecError(f"the chat template wrote {written} image placeholders for {images} images{videos}")
    parts, spans, at, length = [], [], 0, 0
    for number, (place, item) in enumerate(zip(places, items, strict=True)):
        row, visual = write(item)
        parts += [array[at:place], np.asarray(row, np.int32)]
        length += int(place) - at
        spans.append(Span(length, len(row), number, visual))
        at, length = int(place) + 1, length + len(row)
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


def mrope(expanded: Expanded, items: Sequence[VisualItem], merge: int, ticks_per_second: float = 0) -> tuple[I32, int]:
    """M-RoPE positions I32 [3, T] (time, row, column) and the delta of what follows the prompt.

    Text advances all axes; an image at s gives t = s, h = s + row, w = s + column of the merged grid, and what
    follows starts at s + max(rows, columns). Of a video the time axis takes steps, after which text goes on from the
    same place, and what follows the prompt from the largest position of all. Sources: the Qwen2-VL paper, §2.1;
    transformers' get_rope_index.
    """
    total = len(expanded.ids)
    out = np.empty((3, total), np.int32)
    at = position = 0
    for span in expanded.spans:
        for start, ticks in _runs(span, items[span.item], ticks_per_second):
            text = start - at
            out[:, at:start] = position + np.arange(text)
            position += text
            rows, columns = (g // merge for g in items[span.item].grid[1:])
            axes = np.indices((len(ticks), rows, columns)).reshape(3, -1)
            axes[0] = ticks[axes[0]]
            at = start + axes.shape[1]
            out[:, start:at] = position + axes
            position += max(rows, columns)
    out[:, at:] = position + np.arange(total - at)
    return out, int(out.max(initial=-1)) + 1 - total


def _runs(span: Span, item: VisualItem, ticks_per_second: float) -> list[tuple[int, I32]]:
    """Visual tokens that stand behind each other: where they begin, and the steps in time of their patches. Where a
    video's span has other tokens in between, each of its patches in time begins anew."""
    if span.visual_mask is not None:
        marks = np.flatnonzero(np.diff(np.asarray(span.visual_mask, np.int8), prepend=0) == 1)
        return [(span.start + int(mark), np.zeros(1, np.int32)) for mark in marks]
    ticks = np.arange(item.grid[0], dtype=np.float32)
    if item.video is not None and ticks_per_second:
        seconds = np.float32(item.patch_rows / item.video.sampled_fps)
        ticks *= np.float32(ticks_per_second) * seconds  # (in float32, as transformers does it)
    return [(span.start, ticks.astype(np.int32))]
