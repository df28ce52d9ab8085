"""A plan as tensors: pure, and the only place where host integers become device tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.attention import Layout
from opsin_plugins.blocks.decoder import Rows
from opsin_server.engine.encoder_cache import EncoderCache
from opsin_server.engine.scheduler import Chunk, Plan


@dataclass
class Batch:
    """ids I64 [T]; sample_rows I64 [M] are the rows that draw a token, for `sampled` in the same order.

    visual: (rows of the batch I64, entry's digest, first visual token) of each image piece in the chunks.
    """

    ids: Tensor
    rows: Rows
    sample_rows: Tensor | None  # None: every row does, in order (a pure decode step)
    sampled: list[Chunk]
    visual: list[tuple[Tensor, bytes, int]]


def build(plan: Plan, block_size: int, device: torch.device) -> Batch:
    chunks = plan.chunks
    if all(chunk.length == 1 for chunk in chunks):
        numbers, positions = _decode_numbers(chunks, block_size)
    else:
        numbers, positions = _numbers(chunks, block_size)
    layout = Layout(
        query_lengths=[c.length for c in chunks],
        kv_lengths=[c.start + c.length for c in chunks],
        block_table=_block_table(chunks, block_size, device),
        slots=numbers[1].to(device),
    )
    sampled = [c for c in chunks if c.samples]
    sample_rows = None
    if len(sampled) < len(numbers[0]):
        last = np.cumsum([c.length for c in chunks]) - 1
        picked = [int(row) for row, c in zip(last, chunks, strict=True) if c.samples]
        sample_rows = torch.tensor(picked, dtype=torch.int64, device=device)
    rows = Rows(
        positions.to(device), layout, numbers[2].to(device) if any(c.sequence.adapter_slot for c in chunks) else None
    )
    return Batch(numbers[0].to(device), rows, sample_rows, sampled, _visual(chunks, device))


def _decode_numbers(chunks: list[Chunk], block_size: int) -> tuple[Tensor, Tensor]:
    """The common step, one row a sequence, with one tensor made from plain integers: 10 µs instead of 60."""
    ids, slots, adapters, positions = [], [], [], []
    axes = len(chunks[0].sequence.positions)
    for chunk in chunks:
        sequence, at = chunk.sequence, chunk.start
        ids.append(sequence.tokens[at])
        slots.append(sequence.blocks[at // block_size] * block_size + at % block_size)
        adapters.append(sequence.adapter_slot)
        # A decode row lies past the prompt, except for the last prompt token after a prefix hit.
        inside = at < sequence.prompt_length
        positions.append(sequence.positions[:, at].tolist() if inside else [at + sequence.delta] * axes)
    return torch.tensor([ids, slots, adapters]), torch.tensor(positions).T


def _numbers(chunks: list[Chunk], block_size: int) -> tuple[Tensor, Tensor]:
    total = sum(c.length for c in chunks)
    numbers = np.empty((3, total), np.int64)
    positions = np.empty((len(chunks[0].sequence.positions), total), np.int64)
    row = 0
    for chunk in chunks:
        sequence, start, stop = chunk.sequence, chunk.start, chunk.start + chunk.length
        here = slice(row, row + chunk.length)
        places = np.arange(start, stop)
        numbers[0, here] = sequence.tokens[start:stop]
        numbers[1, here] = np.asarray(sequence.blocks)[places // block_size] * block_size + places % block_size
        numbers[2, here] = sequence.adapter_slot
        positions[:, here] = sequence.positions_of(start, stop)
        row += chunk.length
    return torch.from_numpy(numbers), torch.from_numpy(positions)


def _block_table(chunks: list[Chunk], block_size: int, device: torch.device) -> Tensor:
    counts = [-(-(c.start + c.length) // block_size) for c in chunks]
    table = np.zeros((len(chunks), max(counts)), np.int64)
    for line, chunk, count in zip(table, chunks, counts, strict=True):
        line[:count] = chunk.sequence.blocks[:count]
    return torch.from_numpy(table).to(device)


def _visual(chunks: list[Chunk], device: torch.device) -> list[tuple[Tensor, bytes, int]]:
    pieces, row = [], 0
    for chunk in chunks:
        end = chunk.start + chunk.length
        for span in chunk.sequence.spans:
            first, last = max(span.start, chunk.start), min(span.start + span.length, end)
            if first < last:
                where = torch.arange(row + first - chunk.start, row + last - chunk.start, device=device)
                pieces.append((where, chunk.sequence.items[span.item].digest, first - span.start))
        row += chunk.length
    return pieces


def visual_tokens(batch: Batch, cache: EncoderCache[Any]) -> tuple[Tensor, Tensor] | None:
    """The visual tokens that the batch needs [M, H], and their rows I64 [M]."""
    if not batch.visual:
        return None
    tokens = [cache[digest][first : first + len(rows)] for rows, digest, first in batch.visual]
    return torch.cat(tokens), torch.cat([rows for rows, _, _ in batch.visual])
