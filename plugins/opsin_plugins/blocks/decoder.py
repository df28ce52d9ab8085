"""The one decoder. Rows of all sequences are packed along T; attention runs over the paged pool, or over the rows
themselves when there is no pool (training). Every linear gets each row's adapter slot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.attention import packed_attention, paged_attention
from opsin_kernels.layout import Layout
from opsin_kernels.linear import linear
from opsin_kernels.rotary import angles_to_tables, rotate_, rotate_and_store
from opsin_plugins.blocks.fusion import Context, CrossInputs, Fusion, Visual
from opsin_plugins.blocks.layers import GatedMLP, RMSNorm, constants, parameter
from opsin_plugins.blocks.linear import Linear, Quantize
from opsin_plugins.rope import axes, frequencies
from opsin_plugins.spec import DecoderSpec, RopeSpec


@dataclass
class ModelInputs:
    """One packed batch. positions I64 [A, T]; adapter_slot I64 [T], 0 = the base model (None: all rows are);
    frequencies F32 [T, D/2] where they differ from row to row (dynamic NTK)."""

    positions: Tensor
    layout: Layout
    adapter_slot: Tensor | None = None
    cross: CrossInputs | None = None
    frequencies: Tensor | None = None


KVPool = Sequence[Tensor]  # a layer's keys and values, [blocks, block, 2K, D], keys first; own layers only


@dataclass(frozen=True)
class RotaryTables:
    """What positions do to queries and keys: tables of `rotate`, and a factor for queries [T, 1, 1]."""

    cos: Tensor
    sin: Tensor
    scale: Tensor | None


class Rotary(nn.Module):
    """Position ids to turns; with sections (M-RoPE) each frequency follows its own axis."""

    frequencies: Tensor
    axes: Tensor

    def __init__(self, spec: RopeSpec, head_dim: int, log_scale_from: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", constants(frequencies(spec, head_dim).tolist()), persistent=False)
        self.register_buffer("axes", torch.tensor(axes(spec, head_dim)), persistent=False)
        self.one_axis, self.log_scale_from = not spec.sections, log_scale_from

    def forward(self, rows: ModelInputs, dtype: torch.dtype) -> RotaryTables:
        positions = rows.positions
        chosen = positions[0][:, None] if self.one_axis else positions.index_select(0, self.axes).T
        own = self.frequencies if rows.frequencies is None else rows.frequencies
        scale = None
        if self.log_scale_from:
            ratio = (positions[0] + 1).float().log() / math.log(self.log_scale_from)
            scale = ratio.clamp(min=1.0).to(dtype)[:, None, None]
        return RotaryTables(*angles_to_tables(chosen.float() * own, dtype), scale)


class Attention(nn.Module):
    def __init__(self, spec: DecoderSpec, quantize: Quantize) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        sizes = [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim]
        self.qkv = Linear(spec.width, sizes, spec.qkv_bias, quantize)
        self.out = Linear(sizes[0], [spec.width], spec.out_bias, quantize)
        self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, spec.norm_eps) if spec.head_norm else None for _ in range(2))

    def forward(self, x: Tensor, rows: ModelInputs, turn: RotaryTables, pool: Tensor | None) -> Tensor:
        qkv = self.qkv(x, rows.adapter_slot).view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
            qkv = torch.cat([self.q_norm(q), self.k_norm(k), v], 1)
        if pool is None:
            rotate_(qkv[:, : self.heads + self.kv_heads], turn.cos, turn.sin)
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
            q = q if turn.scale is None else q * turn.scale
            y = packed_attention(q, k, v, rows.layout.segments, causal=True).flatten(1)
        else:
            assert rows.layout.slots is not None
            q = rotate_and_store(qkv, self.heads, turn.cos, turn.sin, pool, rows.layout.slots)
            y = paged_attention(q if turn.scale is None else q * turn.scale, pool, rows.layout)
        return self.out(y, rows.adapter_slot)


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec, quantize: Quantize) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (RMSNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.attention = Attention(spec, quantize)
        self.mlp = GatedMLP(spec.width, spec.mlp, spec.activation, spec.mlp_bias, quantize)

    def forward(self, x: Tensor, rows: ModelInputs, turn: RotaryTables, pool: Tensor | None) -> Tensor:
        x, normed = self.mlp_norm.after(x, self.attention(self.attention_norm(x), rows, turn, pool))
        return x + self.mlp(normed, rows.adapter_slot)


class Embedding(nn.Module):
    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(vocab, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Decoder(nn.Module):
    def __init__(self, spec: DecoderSpec, quantize: Quantize = "none") -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec.embeddings, spec.width)
        self.rotary = Rotary(spec.rope, spec.head_dim, spec.log_scale_from)
        own = [i for i in range(spec.layers) if i not in spec.replaced]
        self.layers = nn.ModuleDict({str(i): DecoderLayer(spec, quantize) for i in own})
        self._stack = [self.layers[str(i)] if i in own else None for i in range(spec.layers)]
        self._places = [own.index(i) if i in own else -1 for i in range(spec.layers)]  # in the pool
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        # The head stays dense when the rest is quantized: its rounding would fall on the logits themselves.
        self.head = None if spec.tied else Linear(spec.width, [spec.vocab], bias=False)

    def forward(
        self,
        x: Tensor,
        rows: ModelInputs,
        pool: KVPool | None,
        fusion: Fusion | None = None,
        visual: Visual | None = None,
    ) -> Tensor:
        """Embeddings [T, H] to the last layer's states [T, H], not yet normalised."""
        turn = self.rotary(rows, x.dtype)
        points = fusion.layers if fusion is not None else frozenset()
        context = Context(visual, rows.cross, rows.adapter_slot) if points or self.spec.replaced else None
        for i, layer in enumerate(self._stack):
            if fusion is not None and context is not None and i in points:
                x = fusion.before_layer(i, x, context)
            if layer is None:
                assert fusion is not None
                assert context is not None
                x = fusion.replace_layer(i, x, context)
            else:
                x = layer(x, rows, turn, pool[self._places[i]] if pool else None)
            if fusion is not None and context is not None and i in points:
                x = fusion.after_layer(i, x, context)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """States [M, H] of the rows that need them -> [M, vocab]."""
        x = self.norm(x)
        return linear(x, self.embedding.weight[: self.spec.vocab]) if self.head is None else self.head(x)
