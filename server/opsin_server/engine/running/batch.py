"""A plan as tensors of the host."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.layout import Layout
from opsin_plugins.blocks.inputs import (
    VisualPlaces,
    block_table,
    kv_indexes,
    positions,
    token_ids,
    visual_places,
)
from opsin_server.engine.running.asked_rows import AskedRows, asked_rows
from opsin_server.engine.scheduling.plan import Chunk, Plan


@dataclass(frozen=True)
class Batch:
    """numbers I64 [3, T]: token ids, KV indexes, adapter slots. positions I64 [A, T]. wanted I64 [M]: the rows that
    draw a token, for `sampled` in the same order; None: every row does, in order (a pure decode step).

    carried: (rows I64, which tokens of the step before I64): ids that are still on the device. visual: where visual
    tokens stand in the chunks. asked: where prompts are pooled or scored; `wanted` are its rows then.
    """

    numbers: Tensor
    positions: Tensor
    layout: Layout
    wanted: Tensor | None
    sampled: list[Chunk]
    visual: list[VisualPlaces]
    chunks: list[Chunk]
    carried: tuple[Tensor, Tensor] | None = None
    asked: AskedRows | None = None

    @property
    def has_adapters(self) -> bool:
        return any(chunk.sequence.adapter_slot for chunk in self.chunks)


def build(plan: Plan, block_size: int) -> Batch:
    chunks = plan.chunks
    decodes = all(chunk.length == 1 for chunk in chunks)
    numbers, places = (_decode_numbers if decodes else _numbers)(chunks, block_size)
    layout = Layout(
        query_lengths=[c.length for c in chunks],
        kv_lengths=[c.stop for c in chunks],
        block_table=block_table(chunks, block_size),
        slots=numbers[1],
    )
    sampled = [c for c in chunks if c.samples and c.sequence.pooling is None]
    carried = _carried(chunks)
    for place, chunk in enumerate(sampled):
        chunk.sequence.drawn_at = place
    wanted, asked = None, asked_rows(chunks)
    if asked is not None:
        wanted = torch.tensor(asked.rows, dtype=torch.int64)
    elif len(sampled) < len(numbers[0]):
        last = np.cumsum([c.length for c in chunks]) - 1
        wanted = torch.tensor([int(row) for row, c in zip(last, chunks, strict=True) if c.samples], dtype=torch.int64)
    return Batch(numbers, places, layout, wanted, sampled, visual_places(chunks), chunks, carried, asked)


def _carried(chunks: Seq[Chunk]) -> tuple[Tensor, Tensor] | None:
    rows, places, row = [], [], 0
    for chunk in chunks:
        if chunk.stop > len(chunk.sequence.tokens):
            rows.append(row + chunk.length - 1)
            places.append(chunk.sequence.drawn_at)
        row += chunk.length
    return (torch.tensor(rows), torch.tensor(places)) if rows else None


def _numbers(chunks: Seq[Chunk], block_size: int) -> tuple[Tensor, Tensor]:
    slots = [chunk.sequence.adapter_slot for chunk in chunks]
    adapters = torch.from_numpy(np.repeat(slots, [chunk.length for chunk in chunks]))
    return torch.stack([token_ids(chunks), kv_indexes(chunks, block_size), adapters]), positions(chunks)


def _decode_numbers(chunks: Seq[Chunk], block_size: int) -> tuple[Tensor, Tensor]:
    """The same for the common step, one row a sequence, from plain integers, which numpy takes in a fifth of the time
    that torch needs (192 of them: 11 µs)."""
    ids, slots, adapters, places = [], [], [], []
    axes = len(chunks[0].sequence.positions)
    for chunk in chunks:
        sequence, at = chunk.sequence, chunk.start
        ids.append(sequence.tokens[at] if at < len(sequence.tokens) else 0)  # (see Batch.carried)
        slots.append(sequence.blocks[at // block_size] * block_size + at % block_size)
        adapters.append(sequence.adapter_slot)
        # A decode row lies past the prompt, except for the last prompt token after a prefix hit.
        inside = at < sequence.prompt_length
        places.append(sequence.positions[:, at].tolist() if inside else [at + sequence.delta] * axes)
    numbers = np.array([ids, slots, adapters], np.int64)
    return torch.from_numpy(numbers), torch.from_numpy(np.array(places, np.int64)).T
