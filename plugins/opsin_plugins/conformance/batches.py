"""Prompts through a model as the server runs them: packed, with or without a paged pool of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.layout import Layout
from opsin_plugins.blocks import inputs
from opsin_plugins.blocks.adapter_slots import AdapterSlots
from opsin_plugins.blocks.decoder import ModelInputs
from opsin_plugins.blocks.fusion import CrossInputs, Visual
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.slot_lora import Run, SlotLora
from opsin_plugins.spec import I32, Expanded, RopeSpec, Span, VisibleImages, VisualItem
from opsin_plugins.spec.visual_items import visible_images

BLOCK = 4


@dataclass(frozen=True)
class Prompt:
    """sizes: (height, width) of its pictures as they came. blocks: of the pool, where there is one."""

    expanded: Expanded
    items: Sequence[VisualItem]
    positions: I32
    delta: int
    rope: RopeSpec
    sizes: Sequence[tuple[int, int]] = ()
    blocks: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.expanded.ids)

    @property
    def ids(self) -> Tensor:
        return torch.from_numpy(self.expanded.ids).long()

    @property
    def spans(self) -> Sequence[Span]:
        return self.expanded.spans

    @property
    def visible(self) -> Sequence[VisibleImages]:
        return visible_images(self.expanded.visible)

    @property
    def stretch(self) -> int:
        return self.rope.stretch(len(self))

    def ids_of(self, start: int, stop: int) -> I32:
        return self.expanded.ids[start:stop]

    def positions_of(self, start: int, stop: int) -> I32:
        return self.positions[:, start:stop]


@dataclass(frozen=True)
class Adapters:
    """Adapters on the device, and which slot each prompt has; 0: the base model."""

    slots: AdapterSlots
    of_prompts: Sequence[int]

    def lora(self, prompts: Sequence[int], rows: Sequence[int]) -> Lora:
        """rows: of each of these prompts, by number; or of each of their pictures."""
        return SlotLora(self.slots, tuple(Run(self.of_prompts[p], n) for p, n in zip(prompts, rows, strict=True)))


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` - 1 of one prompt; tokens: the visual tokens of each of its pictures."""

    number: int
    sequence: Prompt
    tokens: Sequence[Tensor]
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Pool:
    """Keys and values in blocks that lie in no order, and hold numbers that nobody wrote."""

    def __init__(self, model: Model, prompts: Sequence[Prompt]) -> None:
        spec, generator = model.spec.decoder, torch.Generator().manual_seed(0)
        most = max(-(-len(p) // BLOCK) for p in prompts)
        table = torch.randperm(len(prompts) * most, generator=generator).view(len(prompts), most)
        self.prompts = [replace(p, blocks=row) for p, row in zip(prompts, table.tolist(), strict=True)]
        shape = (table.numel(), BLOCK, 2 * spec.kv_heads, spec.head_dim)
        self.layers = [torch.randn(shape, generator=generator) for _ in range(spec.own_layers)]


def encode(model: Model, items: Sequence[VisualItem], lora: Lora | None = None) -> list[Tensor]:
    """The visual tokens of each picture, all in one call."""
    if not items:
        return []
    return model.encode(pixels_of(items), items, orders_of(items), lora)


def pixels_of(items: Sequence[VisualItem]) -> Tensor:
    """U8 [N, C·p·p]."""
    return torch.from_numpy(np.concatenate([i.pixels for i in items]))


def orders_of(items: Sequence[VisualItem]) -> list[Tensor | None]:
    return [None if i.arrange is None else torch.from_numpy(i.arrange).long() for i in items]


def whole(model: Model, prompts: Sequence[Prompt], adapters: Adapters | None = None) -> list[Tensor]:
    """Logits [T, vocab] of each prompt; all in one batch without a pool, as training runs them."""
    tokens = _encoded(model, prompts, adapters)
    pieces = [Piece(i, p, tokens[i], 0, len(p)) for i, p in enumerate(prompts)]
    return _step(model, pieces, None, adapters)


def paged(model: Model, prompts: Sequence[Prompt], chunk: int, adapters: Adapters | None = None) -> list[Tensor]:
    """The same, `chunk` rows of each prompt a step, as serving runs them."""
    tokens, pool = _encoded(model, prompts, adapters), Pool(model, prompts)
    found: list[list[Tensor]] = [[] for _ in prompts]
    for start in range(0, max(len(p) for p in prompts), chunk):
        pieces = [
            Piece(i, p, tokens[i], start, min(start + chunk, len(p)))
            for i, p in enumerate(pool.prompts)
            if start < len(p)
        ]
        pieces.sort(key=lambda piece: piece.length > 1)  # single rows stand first, see Layout
        for piece, logits in zip(pieces, _step(model, pieces, pool, adapters), strict=True):
            found[piece.number].append(logits)
    return [torch.cat(parts) for parts in found]


def _encoded(model: Model, prompts: Sequence[Prompt], adapters: Adapters | None) -> list[list[Tensor]]:
    owners = [number for number, p in enumerate(prompts) for _ in p.items]
    lora = None if adapters is None else adapters.lora(owners, [0] * len(owners))
    rest = iter(encode(model, [item for p in prompts for item in p.items], lora))
    return [[next(rest) for _ in p.items] for p in prompts]


def _step(model: Model, pieces: Sequence[Piece], pool: Pool | None, adapters: Adapters | None) -> list[Tensor]:
    rows = model_inputs(model, pieces, pool, adapters)
    layers = None if pool is None else pool.layers
    states = model(inputs.token_ids(pieces), rows, layers, visual(pieces))
    return list(model.logits(states, rows.output_lora).split([p.length for p in pieces]))


def model_inputs(
    model: Model, pieces: Sequence[Piece], pool: Pool | None = None, adapters: Adapters | None = None
) -> ModelInputs:
    decoder, lengths = model.spec.decoder, [p.length for p in pieces]
    layout = Layout(lengths, lengths)
    if pool is not None:
        table, indexes = inputs.block_table(pieces, BLOCK), inputs.kv_indexes(pieces, BLOCK)
        layout = Layout(lengths, [p.stop for p in pieces], table, indexes)
    lora = None if adapters is None else adapters.lora([p.number for p in pieces], lengths)
    return ModelInputs(
        inputs.positions(pieces),
        layout,
        lora,
        None if model.spec.cross is None else _cross_inputs(model, pieces, lora, adapters, stored=pool is not None),
        inputs.rotary_frequencies(pieces, decoder.rope, decoder.head_dim),
    )


def visual(pieces: Sequence[Piece]) -> Visual | None:
    places = inputs.visual_places(pieces)
    if not places:
        return None
    tokens = [pieces[p.part].tokens[p.item][p.first : p.first + len(p.rows)] for p in places]
    return Visual(torch.cat(tokens), torch.cat([p.rows for p in places]))


def _cross_inputs(
    model: Model, pieces: Sequence[Piece], lora: Lora | None, adapters: Adapters | None, stored: bool
) -> CrossInputs | None:
    """stored: keys and values are made beforehand, as serving keeps them; else by each layer itself."""
    found = inputs.cross_inputs(pieces, lora, torch.device("cpu"), _slots(pieces))
    if found is None:
        return None
    states = [tokens for piece in pieces for tokens in piece.tokens]
    owners = [piece.number for piece in pieces for _ in piece.tokens]
    of_states = None if adapters is None else adapters.lora(owners, [len(tokens) for tokens in states])
    if not stored:
        return replace(found, states=torch.cat(states), lora_of_states=of_states)
    assert model.fusion is not None
    return replace(found, pool=model.fusion.keys_values(torch.cat(states), of_states))


def _slots(pieces: Sequence[Piece]) -> Callable[[int, int, int], Tensor]:
    """The visual tokens of all pieces lie behind each other."""
    ends = iter(np.cumsum([0, *(len(tokens) for piece in pieces for tokens in piece.tokens)]).tolist())
    starts = [[next(ends) for _ in piece.tokens] for piece in pieces]
    return lambda piece, item, tokens: torch.arange(starts[piece][item], starts[piece][item] + tokens)
