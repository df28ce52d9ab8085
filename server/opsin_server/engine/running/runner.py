"""Owns the model and the KV pool; runs one batch. The only place of the engine that calls the model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from opsin_plugins.blocks.decoder import KVPool
from opsin_plugins.blocks.model import Model
from opsin_plugins.spec import DecoderSpec
from opsin_server.engine.running.batch import Batch, cross_inputs, stretched, visual_tokens
from opsin_server.engine.running.cuda_graphs import DecodeGraphs
from opsin_server.engine.scheduling.cross_kv_cache import CrossKVCache
from opsin_server.engine.scheduling.encoder_cache import VisualStore
from opsin_server.engine.scheduling.sequence import Sequence

ALIGNMENT = 64  # bytes


def make_pool(
    spec: DecoderSpec, layers: int, blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
) -> KVPool:
    """A layer's keys and values, [blocks, block, 2K, D]. Zeros, since a row that was never written must not be NaN
    (masked rows are still multiplied by zero)."""
    shape = (blocks, block_size, 2 * spec.kv_heads, spec.head_dim)
    if device.type != "cpu":
        return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
    return [_lazy_zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape) for _ in range(layers)]


def _lazy_zeros(size: int) -> Tensor:
    """U8 [size], aligned for vector loads. numpy's zeros are the kernel's own: a page is taken at its first write.
    torch writes all of them at once, which for 4 GiB of pool took 2 s and the memory."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[start : start + size])


class Runner:
    """cross_kv_pool: keys and values of visual tokens (models with cross-attention); graphs: captured decode steps."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        store: VisualStore[Tensor],
        device: torch.device,
        cross_kv_pool: KVPool = (),
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model, self.pool, self.store, self.device, self.graphs = model, pool, store, device, graphs
        self.cross_kv = [layer.view(-1, *layer.shape[2:]) for layer in cross_kv_pool]
        self.drawn: Tensor | None = None  # I64 [M], the tokens of the last step that drew some, on the device

    def encode(self, images: list[tuple[Sequence, int]]) -> None:
        """Visual tokens of all images of a step in one pass; each is kept under its digest."""
        pixels = np.concatenate([sequence.pixels[item] for sequence, item in images])
        entries = [sequence.items[item] for sequence, item in images]
        orders = [sequence.arrange[item] for sequence, item in images]
        arrange = [None if o is None else torch.from_numpy(o).to(self.device, torch.int64) for o in orders]
        found = self.model.encode(torch.from_numpy(pixels).to(self.device), entries, arrange)
        for entry, tokens in zip(entries, found, strict=True):
            if isinstance(self.store, CrossKVCache):
                self.store.fill(entry.digest, self._store_cross_kv(self.store, entry.digest, tokens))
            else:
                # A copy: a view would keep the whole step's features alive past the cache's own count.
                self.store.fill(entry.digest, tokens.clone() if len(entries) > 1 else tokens)

    def _store_cross_kv(self, store: CrossKVCache[Tensor], digest: bytes, tokens: Tensor) -> Tensor:
        """Writes an image's keys and values for all cross-attention layers; returns where, I64 [rows]."""
        size, blocks = store.block_size, torch.tensor(store.blocks(digest), device=self.device)
        slots = (blocks[:, None] * size + torch.arange(size, device=self.device)).flatten()[: len(tokens)]
        assert self.model.fusion is not None
        for rows, kv in zip(self.cross_kv, self.model.fusion.keys_values(tokens), strict=True):
            rows.index_copy_(0, slots, kv.to(rows.dtype))
        return slots

    def run(self, batch: Batch) -> Tensor:
        """Logits [M, vocab] of the rows that draw a token, valid until the next step."""
        decoder = self.model.spec.decoder
        cross = cross_inputs(batch.chunks, self.store, self.cross_kv, self.device) if self.cross_kv else None
        if self.graphs is not None and self.graphs.can_replay(batch, cross):
            return self.graphs.run(batch, cross, self.drawn)
        batch = batch.to(self.device)
        if batch.carried is not None:
            assert self.drawn is not None
            batch.ids[batch.carried[0]] = self.drawn[batch.carried[1]]
        batch.rows.cross = cross
        if decoder.rope.ntk_from:
            batch.rows.frequencies = stretched(batch.chunks, decoder.rope, decoder.head_dim, self.device)
        states = self.model(batch.ids, batch.rows, self.pool, visual_tokens(batch, self.store))
        if batch.sample_rows is not None:
            states = states.index_select(0, batch.sample_rows)
        return self.model.logits(states)

    def encoder_bytes(self) -> int:
        """What the stored images take."""
        if not self.cross_kv:
            return self.store.used
        assert isinstance(self.store, CrossKVCache)
        return self.store.used * self.store.block_size * sum(layer[0].nbytes for layer in self.cross_kv)
