"""Owns the model and the KV pool; runs one batch. The only place of the engine that calls the model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.kv_rows import LARGEST, SCALE_BYTES
from opsin_kernels.layout import Layout
from opsin_kernels.transfer import moved, on_device
from opsin_plugins.blocks.adapter_slots import AdapterSlots, AdapterWeights
from opsin_plugins.blocks.decoder import KVPool, ModelInputs
from opsin_plugins.blocks.fusion import CrossInputs, Visual
from opsin_plugins.blocks.inputs import cross_inputs, rotary_frequencies
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.slot_lora import Run, SlotLora
from opsin_plugins.spec import U8, DecoderSpec, ModelSpec
from opsin_server.engine.running.batch import Batch
from opsin_server.engine.running.cuda_graphs import DecodeGraphs
from opsin_server.engine.running.pooling import PooledStates, pooled_states
from opsin_server.engine.running.prompt_logprobs import ScoredPrompts, score_prompts
from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.plan import Chunk, Encoding

ALIGNMENT = 64  # bytes


def visual_levels(spec: ModelSpec) -> int:
    """Widths that a visual token has beside its own: what is added after the first layers."""
    return len(spec.vision.taps) if spec.vision is not None and spec.fusion == "levels" else 0


def make_pool(
    spec: DecoderSpec, layers: int, blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
) -> KVPool:
    """A layer's keys and values, [blocks, block, 2K, D]; dtype of 8 bits: with rows of `kv_rows`. Zeros, since a row
    that was never written must not be NaN (masked rows are still multiplied by zero)."""
    width = spec.head_dim + (SCALE_BYTES if dtype in LARGEST else 0)
    shape = (blocks, block_size, 2 * spec.kv_heads, width)
    if device.type != "cpu":
        return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
    return [_lazy_zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape) for _ in range(layers)]


def _lazy_zeros(size: int) -> Tensor:
    """U8 [size], aligned for vector loads. numpy's zeros are the kernel's own: a page is taken at its first write.
    torch writes all of them at once, which for 4 GiB of pool took 2 s and the memory."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[start : start + size])


def make_visual_pool(
    spec: ModelSpec, blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """What is kept of pictures, a row a visual token: the tokens themselves [P, H · (1 + levels)], or of a model with
    cross-attention each layer's keys and values [P, 2K, D]."""
    decoder = spec.decoder
    if spec.cross is not None:
        kv = make_pool(decoder, len(decoder.replaced), blocks, block_size, device, dtype)
        return [layer.view(-1, *layer.shape[2:]) for layer in kv]
    shape = (blocks * block_size, decoder.width * (1 + visual_levels(spec)))
    if device.type != "cpu":
        return [torch.empty(shape, device=device, dtype=dtype)]
    return [_lazy_zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)]


class Runner:
    """visual_pool: what is kept of pictures (`make_visual_pool`), whose ledger is `cache`; graphs: captured decode
    steps; adapters: the slots, if there are any."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        cache: EncoderCache[Tensor],
        device: torch.device,
        visual_pool: list[Tensor],
        graphs: DecodeGraphs | None = None,
        adapters: AdapterSlots | None = None,
    ) -> None:
        self.model, self.pool, self.cache, self.device, self.graphs = model, pool, cache, device, graphs
        self.visual_pool, self.adapters = visual_pool, adapters
        self.drawn: Tensor | None = None  # I64 [M], the tokens of the last step that drew some, on the device
        self.pooled: PooledStates | None = None  # of the last step
        self.scored: ScoredPrompts | None = None  # of the last step

    @property
    def cross_kv(self) -> list[Tensor]:
        """Keys and values of visual tokens that rows attend to; empty for a model without cross-attention."""
        return self.visual_pool if self.model.spec.cross is not None else []

    def place(self, slot: int, weights: AdapterWeights) -> None:
        """Puts an adapter into a slot that nothing reads."""
        assert self.adapters is not None
        self.adapters.load(slot, weights)

    def encode(self, images: Seq[Encoding]) -> None:
        """Visual tokens of all images of a step in one pass, and of each part of a video; they are kept under their
        keys."""
        whole = [encoding for encoding in images if not encoding.goes_on]
        for together in [whole, *([encoding] for encoding in images if encoding.goes_on)]:
            if together:
                self._encode_together(together)

    def _encode_together(self, images: Seq[Encoding]) -> None:
        pixels = np.concatenate([_pixels(encoding) for encoding in images])
        orders = [encoding.sequence.arrange[encoding.item] for encoding in images]
        arrange = [None if o is None else moved(torch.from_numpy(o).long(), self.device) for o in orders]
        lora = self._lora((encoding.sequence.adapter_slot, 0) for encoding in images)
        parts = [encoding.part for encoding in images]
        found = self.model.encode(moved(torch.from_numpy(pixels), self.device), parts, arrange, lora)
        for encoding, tokens in zip(images, found, strict=True):
            self._keep(encoding, tokens)

    def _keep(self, encoding: Encoding, tokens: Tensor) -> None:
        """Writes what is kept of a picture into its blocks, and notes where once it is whole."""
        key, size, item = encoding.key, self.cache.block_size, encoding.sequence.items[encoding.item]
        blocks = on_device(self.cache.blocks(key), torch.int64, self.device)
        slots = (blocks[:, None] * size + torch.arange(size, device=self.device)).flatten()[: item.tokens]
        kept = [tokens]
        if self.cross_kv:
            assert self.model.fusion is not None
            kept = self.model.fusion.keys_values(tokens, self._lora([(encoding.sequence.adapter_slot, len(tokens))]))
        first = item.tokens * encoding.first // item.layers
        for pool, rows in zip(self.visual_pool, kept, strict=True):
            pool.index_copy_(0, slots[first : first + len(tokens)], rows.to(pool.dtype))
        if encoding.completes:
            self.cache.fill(key, slots)

    def run(self, batch: Batch) -> Tensor:
        """Logits [M, vocab] of the rows that draw a token, valid until the next step. What is pooled is in
        `pooled`, what is said of prompts in `scored`."""
        lora = self._lora((chunk.sequence.adapter_slot, chunk.length) for chunk in batch.chunks)
        cross = self._cross_inputs(batch, lora) if self.cross_kv else None
        if self.graphs is not None and self.graphs.can_replay(batch, cross):
            return self.graphs.run(batch, cross, self.drawn)
        numbers = moved(batch.numbers, self.device)
        ids, inputs = numbers[0], self._inputs(batch, numbers, lora, cross)
        if batch.carried is not None:
            assert self.drawn is not None
            rows, places = (moved(x, self.device) for x in batch.carried)
            ids[rows] = self.drawn[places]
        states = self.model(ids, inputs, self.pool, self._visual(batch))
        self.pooled, self.scored, asked = None, None, batch.asked
        if asked is None:
            return self.model.logits(states, inputs.output_lora)
        self.pooled = pooled_states(states, asked, self.model.decoder.norm)
        self.scored = score_prompts(states, asked, self._logits_of)
        drawn = states.index_select(0, on_device(asked.drawn, torch.int64, self.device))
        return self.model.logits(drawn, None if lora is None else lora.resized(_drawn(batch.chunks)))

    def _logits_of(self, states: Tensor, chunk: Chunk) -> Tensor:
        return self.model.logits(states, self._lora([(chunk.sequence.adapter_slot, len(states))]))

    def _inputs(self, batch: Batch, numbers: Tensor, lora: Lora | None, cross: CrossInputs | None) -> ModelInputs:
        decoder, host = self.model.spec.decoder, batch.layout
        assert host.block_table is not None
        frequencies = None
        if decoder.rope.ntk_from:
            frequencies = rotary_frequencies(batch.chunks, decoder.rope, decoder.head_dim)
        return ModelInputs(
            positions=moved(batch.positions, self.device),
            layout=Layout(host.query_lengths, host.kv_lengths, moved(host.block_table, self.device), numbers[1]),
            lora=lora,
            cross=cross,
            frequencies=None if frequencies is None else moved(frequencies, self.device),
            wanted=None if batch.wanted is None else moved(batch.wanted, self.device),
            lora_of_wanted=None if lora is None else lora.resized(_counts(batch)),
        )

    def _lora(self, rows: Iterable[tuple[int, int]]) -> Lora | None:
        """rows: adapter slot and number of rows of each sequence or picture. None: all are the base model's."""
        if self.adapters is None:
            return None
        runs = tuple(Run(slot, count) for slot, count in rows)
        return SlotLora(self.adapters, runs) if any(run.slot for run in runs) else None

    def _visual(self, batch: Batch) -> Visual | None:
        """The visual tokens that the batch's rows are overwritten with."""
        if not batch.visual:
            return None
        slots = []
        for place in batch.visual:
            key = batch.chunks[place.part].sequence.visual_keys[place.item]
            slots.append(self.cache[key][place.first : place.first + len(place.rows)])
        rows = moved(torch.cat([place.rows for place in batch.visual]), self.device)
        return Visual(self.visual_pool[0].index_select(0, torch.cat(slots)), rows)

    def _cross_inputs(self, batch: Batch, lora: Lora | None) -> CrossInputs | None:
        """What the batch's rows attend to outside of their sequences; None when no row attends to anything."""

        def slots_of(chunk: int, item: int, tokens: int) -> Tensor:
            return self.cache[batch.chunks[chunk].sequence.visual_keys[item]][:tokens]

        found = cross_inputs(batch.chunks, lora, self.device, slots_of)
        return None if found is None else replace(found, pool=self.cross_kv)

    def encoder_bytes(self) -> int:
        """What the pictures that are kept take."""
        pool = sum(layer.nbytes for layer in self.visual_pool)
        return pool // max(1, self.cache.total) * self.cache.used


def _pixels(encoding: Encoding) -> U8:
    rows = encoding.sequence.pixels[encoding.item]
    each = len(rows) // encoding.sequence.items[encoding.item].layers
    return rows[encoding.first * each : (encoding.first + encoding.part.layers) * each]


def _drawn(chunks: Seq[Chunk]) -> list[int]:
    """Rows of each chunk that draw a token."""
    return [int(chunk.samples and chunk.sequence.pooling is None) for chunk in chunks]


def _counts(batch: Batch) -> list[int]:
    """Rows of each chunk that are wanted."""
    return _drawn(batch.chunks) if batch.asked is None else batch.asked.counts
