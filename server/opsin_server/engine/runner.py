"""Owns the model and the KV pool; runs one batch. The only place of the engine that calls the model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from opsin_plugins.blocks.decoder import KVPool
from opsin_plugins.blocks.model import Model
from opsin_plugins.fusions.base import Visual
from opsin_plugins.spec import DecoderSpec
from opsin_server.engine.batch import Batch, visual_tokens
from opsin_server.engine.encoder_cache import EncoderCache
from opsin_server.engine.sequence import Sequence

ALIGNMENT = 64  # bytes


def make_pool(spec: DecoderSpec, blocks: int, block_size: int, device: torch.device, dtype: torch.dtype) -> KVPool:
    """A layer's keys and values, [blocks, block, 2K, D]. Zeros, since a row that was never written must not be NaN
    (masked rows are still multiplied by zero)."""
    shape = (blocks, block_size, 2 * spec.kv_heads, spec.head_dim)
    if device.type != "cpu":
        return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(spec.layers)]
    return [_lazy_zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape) for _ in range(spec.layers)]


def _lazy_zeros(size: int) -> Tensor:
    """U8 [size], aligned for vector loads. numpy's zeros are the kernel's own: a page is taken at its first write.
    torch writes all of them at once, which for 4 GiB of pool took 2 s and the memory."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[start : start + size])


class Runner:
    def __init__(self, model: Model, pool: KVPool, encoder: EncoderCache[Tensor], device: torch.device) -> None:
        self.model, self.pool, self.encoder, self.device = model, pool, encoder, device

    def encode(self, images: list[tuple[Sequence, int]]) -> None:
        """Visual tokens of all images of a step in one pass; each is kept under its digest."""
        pixels = np.concatenate([sequence.pixels[item] for sequence, item in images])
        entries = [sequence.items[item] for sequence, item in images]
        tokens = self.model.encode(torch.from_numpy(pixels).to(self.device), [e.grid for e in entries])
        for entry, features in zip(entries, tokens.split([e.rows for e in entries]), strict=True):
            # A copy: a view would keep the whole step's features alive past the cache's own count.
            self.encoder.fill(entry.digest, features.clone() if len(entries) > 1 else features)

    def run(self, batch: Batch) -> Tensor:
        """Logits [M, vocab] of the rows that draw a token."""
        found = visual_tokens(batch, self.encoder)
        states = self.model(batch.ids, batch.rows, self.pool, None if found is None else Visual(*found))
        if batch.sample_rows is not None:
            states = states.index_select(0, batch.sample_rows)
        return self.model.logits(states)
