"""Rows of training data as the model is given them: packed behind each other, each of which sees itself alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.layout import Layout
from opsin_kernels.transfer import moved
from opsin_plugins.blocks import inputs
from opsin_plugins.blocks.decoder import ModelInputs
from opsin_plugins.blocks.fusion import CrossInputs, Visual
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.stages import Stage
from opsin_plugins.spec import I32, ModelSpec, RopeSpec, Span, VisibleImages
from opsin_server.ipc.item import Item
from opsin_server.ipc.training_rows import TrainingRow


@dataclass(frozen=True)
class RowPart:
    """A row, whole: a part of a sequence as `blocks.inputs` packs them."""

    row: TrainingRow
    rope: RopeSpec
    blocks: Sequence[int] = ()

    @property
    def sequence(self) -> RowPart:
        return self

    @property
    def start(self) -> int:
        return 0

    @property
    def stop(self) -> int:
        return len(self.row.ids)

    @property
    def spans(self) -> Sequence[Span]:
        return self.row.spans

    @property
    def items(self) -> Sequence[Item]:
        return self.row.items

    @property
    def visible(self) -> Sequence[VisibleImages]:
        return self.row.visible

    @property
    def stretch(self) -> int:
        return self.rope.stretch(self.stop)

    def ids_of(self, start: int, stop: int) -> I32:
        return self.row.ids[start:stop]

    def positions_of(self, start: int, stop: int) -> I32:
        return self.row.positions[:, start:stop]


@dataclass(frozen=True)
class MicroBatch:
    """rows: as they lie. items: their pictures, each once. ids I64 [T]; targets I64 [M]: the labelled tokens; counts:
    how many of them each row has. inputs: which rows are asked for, without adapters or visual tokens. places: of each
    placeholder, which visual token of all `items` it takes, I64, and its row; None: no placeholder is there."""

    rows: Sequence[TrainingRow]
    items: Sequence[Item]
    ids: Tensor
    targets: Tensor
    counts: Sequence[int]
    inputs: ModelInputs
    places: tuple[Tensor, Tensor] | None

    def given(self, lora: Lora | None) -> ModelInputs:
        """With the adapter of all its rows."""
        cross = self.inputs.cross
        if cross is not None and lora is not None:
            cross = replace(cross, lora=lora, lora_of_states=lora)
        return replace(self.inputs, lora=lora, lora_of_wanted=lora, cross=cross)

    @property
    def visual(self) -> Visual | None:
        """Of whose tokens the stages know only the rows."""
        return None if self.places is None else Visual(torch.empty(0), self.places[1])

    @property
    def takes(self) -> Stage | None:
        """From the visual tokens of all `items` behind each other to what the decoder's stages take; None: nothing."""
        if self.places is not None:
            chosen = self.places[0]
            return Stage("chosen", ("tokens",), ("tokens",), lambda tokens: (tokens.index_select(0, chosen),))
        if self.inputs.cross is not None:
            return Stage("states", ("tokens",), ("states",), lambda tokens: (tokens,))
        return None


def collate(rows: Sequence[TrainingRow], spec: ModelSpec, device: torch.device) -> MicroBatch:
    """Packs whole rows."""
    parts = [RowPart(row, spec.decoder.rope) for row in rows]
    items = list({item.digest: item for row in rows for item in row.items}.values())
    offsets = dict(
        zip((item.digest for item in items), np.cumsum([0, *(i.tokens for i in items)]).tolist(), strict=False)
    )
    lengths = [part.stop for part in parts]
    starts = np.cumsum([0, *lengths])
    labelled = [np.flatnonzero(row.labels) for row in rows]
    wanted = np.concatenate([start + found - 1 for start, found in zip(starts, labelled, strict=False)])
    targets = np.concatenate([row.ids[found] for row, found in zip(rows, labelled, strict=True)])
    frequencies = None
    if spec.decoder.rope.ntk_from:
        frequencies = inputs.rotary_frequencies(parts, spec.decoder.rope, spec.decoder.head_dim)
    given = ModelInputs(
        positions=moved(inputs.positions(parts), device),
        layout=Layout(lengths, lengths),
        cross=None if spec.cross is None else _cross(parts, offsets, device),
        frequencies=None if frequencies is None else moved(frequencies, device),
        wanted=moved(torch.from_numpy(wanted), device),
    )
    return MicroBatch(
        rows=rows,
        items=items,
        ids=moved(inputs.token_ids(parts), device),
        targets=moved(torch.from_numpy(targets.astype(np.int64)), device),
        counts=[len(found) for found in labelled],
        inputs=given,
        places=_places(parts, offsets, device),
    )


def _places(
    parts: Sequence[RowPart], offsets: Mapping[bytes, int], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    found = inputs.visual_places(parts)
    if not found:
        return None
    tokens = []
    for place in found:
        first = offsets[parts[place.part].items[place.item].digest] + place.first
        tokens.append(torch.arange(first, first + len(place.rows)))
    return moved(torch.cat(tokens), device), moved(torch.cat([place.rows for place in found]), device)


def _cross(parts: Sequence[RowPart], offsets: Mapping[bytes, int], device: torch.device) -> CrossInputs | None:
    def slots_of(part: int, item: int, tokens: int) -> Tensor:
        first = offsets[parts[part].items[item].digest]
        return torch.arange(first, first + tokens, device=device)

    return inputs.cross_inputs(parts, None, device, slots_of)
