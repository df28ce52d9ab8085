"""Prompts through a model as the server runs them: packed, with or without a paged pool of keys and values.

The server's own batches are made by code of its own; this one is written against the contract, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.cross_attention import CrossRun, CrossRuns
from opsin_kernels.layout import Layout
from opsin_plugins.blocks.decoder import ModelInputs
from opsin_plugins.blocks.fusion import CrossInputs, Visual
from opsin_plugins.blocks.model import Model
from opsin_plugins.rope import frequencies
from opsin_plugins.spec import I32, Expanded, RopeSpec, VisualItem

BLOCK = 4


@dataclass(frozen=True)
class Prompt:
    expanded: Expanded
    items: Sequence[VisualItem]
    positions: I32
    delta: int

    def __len__(self) -> int:
        return len(self.expanded.ids)


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` - 1 of one prompt; tokens: the visual tokens of each of its pictures."""

    number: int
    prompt: Prompt
    tokens: Sequence[Tensor]
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Cache:
    """A pool whose blocks lie in no order, and hold numbers that nobody wrote."""

    def __init__(self, model: Model, prompts: Sequence[Prompt]) -> None:
        spec, generator = model.spec.decoder, torch.Generator().manual_seed(0)
        most = max(-(-len(p) // BLOCK) for p in prompts)
        self.table = torch.randperm(len(prompts) * most, generator=generator).view(len(prompts), most)
        shape = (self.table.numel(), BLOCK, 2 * spec.kv_heads, spec.head_dim)
        self.pool = [torch.randn(shape, generator=generator) for _ in range(spec.own_layers)]

    def layout(self, pieces: Sequence[Piece]) -> Layout:
        slots = []
        for piece in pieces:
            places = torch.arange(piece.start, piece.stop)
            slots.append(self.table[piece.number][places // BLOCK] * BLOCK + places % BLOCK)
        table = self.table[[piece.number for piece in pieces]]
        return Layout([p.length for p in pieces], [p.stop for p in pieces], table, torch.cat(slots))


def encode(model: Model, items: Sequence[VisualItem]) -> list[Tensor]:
    """The visual tokens of each picture, all in one call."""
    if not items:
        return []
    orders = [None if i.arrange is None else torch.from_numpy(i.arrange).long() for i in items]
    return model.encode(torch.from_numpy(np.concatenate([i.pixels for i in items])), items, orders)


def whole(model: Model, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Logits [T, vocab] of each prompt; all in one batch without a pool, as training runs them."""
    tokens = _encoded(model, prompts)
    pieces = [Piece(i, p, tokens[i], 0, len(p)) for i, p in enumerate(prompts)]
    return _step(model, pieces, None)


def paged(model: Model, prompts: Sequence[Prompt], chunk: int) -> list[Tensor]:
    """The same, `chunk` rows of each prompt a step, as serving runs them."""
    tokens, cache = _encoded(model, prompts), Cache(model, prompts)
    found: list[list[Tensor]] = [[] for _ in prompts]
    for start in range(0, max(len(p) for p in prompts), chunk):
        pieces = [
            Piece(i, p, tokens[i], start, min(start + chunk, len(p))) for i, p in enumerate(prompts) if start < len(p)
        ]
        pieces.sort(key=lambda piece: piece.length > 1)  # single rows stand first, see Layout
        for piece, logits in zip(pieces, _step(model, pieces, cache), strict=True):
            found[piece.number].append(logits)
    return [torch.cat(parts) for parts in found]


def _encoded(model: Model, prompts: Sequence[Prompt]) -> list[list[Tensor]]:
    rest = iter(encode(model, [item for p in prompts for item in p.items]))
    return [[next(rest) for _ in p.items] for p in prompts]


def _step(model: Model, pieces: Sequence[Piece], cache: Cache | None) -> list[Tensor]:
    decoder, lengths = model.spec.decoder, [p.length for p in pieces]
    ids = np.concatenate([p.prompt.expanded.ids[p.start : p.stop] for p in pieces])
    positions = np.concatenate([p.prompt.positions[:, p.start : p.stop] for p in pieces], 1)
    layout = Layout(lengths, lengths) if cache is None else cache.layout(pieces)
    rows = ModelInputs(torch.from_numpy(positions).long(), layout)
    rows.cross = None if model.spec.cross is None else _cross_inputs(model, pieces, stored=cache is not None)
    rows.frequencies = _stretched(pieces, decoder.rope, decoder.head_dim)
    states = model(torch.from_numpy(ids).long(), rows, None if cache is None else cache.pool, _visual(pieces))
    return list(model.logits(states).split(lengths))


def _visual(pieces: Sequence[Piece]) -> Visual | None:
    tokens, rows, first = [], [], 0
    for piece in pieces:
        for span in piece.prompt.expanded.spans:
            marks = np.ones(span.length, bool) if span.visual_mask is None else np.asarray(span.visual_mask)
            places = torch.from_numpy(span.start + np.flatnonzero(marks))
            here = (places >= piece.start) & (places < piece.stop)
            if here.any():
                tokens.append(piece.tokens[span.item][here])
                rows.append(places[here] - piece.start + first)
        first += piece.length
    return Visual(torch.cat(tokens), torch.cat(rows)) if rows else None


def _cross_inputs(model: Model, pieces: Sequence[Piece], stored: bool) -> CrossInputs | None:
    """stored: keys and values are made beforehand, as serving keeps them; else by each layer itself."""
    runs: list[CrossRun] = []
    rows: list[int] = []
    before: list[bool] = []
    states: list[Tensor] = []
    row = first = 0
    for piece in pieces:
        starts = np.cumsum([first, *(len(t) for t in piece.tokens)])
        first = int(starts[-1])
        states += piece.tokens
        seen = piece.prompt.expanded.visible
        ranges = [(0, 0)] * piece.length if seen is None else [(lo, hi) for lo, hi in seen[piece.start : piece.stop]]
        for (lo, hi), group in groupby(ranges):
            count = len(list(group))
            if lo != hi:
                hidden = [item.hidden if lo >= 0 else 0 for item in piece.prompt.items]
                slots = [torch.arange(starts[i], starts[i + 1] - hidden[i]) for i in range(max(lo, 0), hi)]
                runs.append(CrossRun(count, torch.cat(slots)))
                rows += range(row, row + count)
                before += [bool(lo < 0)] * count
            row += count
    if not runs:
        return None
    inputs = CrossInputs(CrossRuns(runs), torch.tensor(rows), torch.tensor(before) if any(before) else None)
    if stored:
        assert model.fusion is not None
        inputs.pool = model.fusion.keys_values(torch.cat(states))
    else:
        inputs.states = torch.cat(states)
    return inputs


def _stretched(pieces: Sequence[Piece], rope: RopeSpec, head_dim: int) -> Tensor | None:
    factors = [rope.stretch(len(p.prompt)) for p in pieces]
    if all(factor == 1 for factor in factors):
        return None
    parts = [np.tile(frequencies(rope, head_dim, f), (p.length, 1)) for f, p in zip(factors, pieces, strict=True)]
    return torch.from_numpy(np.concatenate(parts))
