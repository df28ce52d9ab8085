"""What the model is given, from parts of sequences: the one place where prompts become packed rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.cross_attention import CrossRun, CrossRuns
from opsin_kernels.transfer import on_device
from opsin_plugins.blocks.fusion import CrossInputs
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.rope import frequencies
from opsin_plugins.spec import I32, RopeSpec, Span, VisibleImages


class Item(Protocol):
    """A visual item, or what crossed the door of it."""

    @property
    def tokens(self) -> int: ...

    @property
    def hidden(self) -> int: ...


class SequenceOfTokens(Protocol):
    """A prompt, and its answer so far. stretch: of the rotary frequencies, see RopeSpec."""

    @property
    def spans(self) -> Sequence[Span]: ...

    @property
    def items(self) -> Sequence[Item]: ...

    @property
    def visible(self) -> Sequence[VisibleImages]: ...

    @property
    def stretch(self) -> int: ...

    @property
    def blocks(self) -> Sequence[int]:
        """Of the pool of keys and values, as far as it has any."""

    def ids_of(self, start: int, stop: int) -> Sequence[int] | I32: ...

    def positions_of(self, start: int, stop: int) -> I32:
        """I32 [A, stop - start]."""


class Part(Protocol):
    """Tokens start to stop - 1 of a sequence, which are computed together."""

    @property
    def sequence(self) -> SequenceOfTokens: ...

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...


def token_ids(parts: Sequence[Part]) -> Tensor:
    """I64 [T]."""
    return torch.from_numpy(np.concatenate([np.asarray(p.sequence.ids_of(p.start, p.stop), np.int64) for p in parts]))


def positions(parts: Sequence[Part]) -> Tensor:
    """I64 [A, T]."""
    return torch.from_numpy(np.concatenate([p.sequence.positions_of(p.start, p.stop) for p in parts], 1)).long()


def kv_indexes(parts: Sequence[Part], block_size: int) -> Tensor:
    """I64 [T]: where each row's keys and values lie, block · block size + offset."""
    found = []
    for part in parts:
        places = np.arange(part.start, part.stop)
        blocks = np.asarray(part.sequence.blocks, np.int64)
        found.append(blocks[places // block_size] * block_size + places % block_size)
    return torch.from_numpy(np.concatenate(found))


def block_table(parts: Sequence[Part], block_size: int) -> Tensor:
    """I64 [S, blocks of the longest]: those that hold a sequence's tokens up to the part's end; 0 behind them."""
    counts = [-(-part.stop // block_size) for part in parts]
    table = np.zeros((len(parts), max(counts)), np.int64)
    for line, part, count in zip(table, parts, counts, strict=True):
        line[:count] = part.sequence.blocks[:count]
    return torch.from_numpy(table)


@dataclass(frozen=True)
class VisualPlaces:
    """rows I64 [n] of the batch take visual tokens `first` and following of an item of part number `part`."""

    part: int
    item: int
    first: int
    rows: Tensor


def visual_places(parts: Sequence[Part]) -> list[VisualPlaces]:
    """Where visual tokens stand in the prompt itself, in order."""
    found, row = [], 0
    for number, part in enumerate(parts):
        for span in part.sequence.spans:
            begin, end = max(span.start, part.start), min(span.start + span.length, part.stop)
            if begin >= end:
                continue
            places, done = np.arange(begin, end), begin - span.start
            if span.visual_mask is not None:
                marks = np.asarray(span.visual_mask)
                places, done = places[marks[done : end - span.start]], int(marks[:done].sum())
            if len(places):
                found.append(VisualPlaces(number, span.item, done, torch.from_numpy(places + (row - part.start))))
        row += part.stop - part.start
    return found


def cross_inputs(
    parts: Sequence[Part],
    lora: Lora | None,
    device: torch.device,
    slots_of: Callable[[int, int, int], Tensor],
) -> CrossInputs | None:
    """What the rows attend to outside of their sequences, as far as the prompts say it; None: no row sees anything.

    lora: of all rows, a run each part. slots_of(part, item, tokens): where the first visual tokens of an item of a part
    lie, I64 [tokens].
    """
    runs: list[CrossRun] = []
    rows: list[int] = []
    before: list[bool] = []
    counts = []
    row = 0
    for number, part in enumerate(parts):
        known = len(rows)
        items = part.sequence.items
        for first, count, seen in _seen(part):
            # Hidden tokens are there only for rows before all images.
            kept = [
                (i, items[i].tokens - (items[i].hidden if seen.lo >= 0 else 0)) for i in range(max(seen.lo, 0), seen.hi)
            ]
            slots = [slots_of(number, item, tokens) for item, tokens in kept]
            runs.append(CrossRun(count, slots[0] if len(slots) == 1 else torch.cat(slots)))
            rows += range(row + first, row + first + count)
            before += [seen.lo < 0] * count
        counts.append(len(rows) - known)
        row += part.stop - part.start
    if not runs:
        return None
    every = len(rows) == row
    return CrossInputs(
        CrossRuns(runs),
        rows=None if every else on_device(rows, torch.int64, device),
        before=on_device(before, torch.bool, device) if any(before) else None,
        lora=lora if lora is None or every else lora.resized(counts),
    )


def _seen(part: Part) -> Iterator[tuple[int, int, VisibleImages]]:
    """Rows of a part that see something: the first of them within the part, how many, and what they see."""
    visible = part.sequence.visible
    for i, seen in enumerate(visible):
        stop = visible[i + 1].start if i + 1 < len(visible) else part.stop
        begin, end = max(seen.start, part.start), min(stop, part.stop)
        if begin < end and seen.lo != seen.hi:
            yield begin - part.start, end - begin, seen


def rotary_frequencies(parts: Sequence[Part], rope: RopeSpec, head_dim: int) -> Tensor | None:
    """F32 [T, D/2], each row's own; None when no sequence is stretched."""
    if all(part.sequence.stretch == 1 for part in parts):
        return None
    own = (frequencies(rope, head_dim, part.sequence.stretch) for part in parts)
    shape = (head_dim // 2,)
    return torch.from_numpy(
        np.concatenate([np.broadcast_to(f, (p.stop - p.start, *shape)) for f, p in zip(own, parts, strict=True)])
    )
