"""The one decoder. Rows of all sequences are packed along T; attention runs over the paged pool, or over the rows
themselves when there is no pool (training). Every linear is handed the batch's adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from opsin_kernels.attention import packed_attention, paged_attention
from opsin_kernels.cpu.layer import NativeLayer, NativeStep, step_of
from opsin_kernels.layout import Layout
from opsin_kernels.rotary import angles_to_tables, rotate_, rotate_and_store
from opsin_kernels.row_codes import RowCodes
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.fusion import Context, CrossInputs, Fusion, Visual
from opsin_plugins.blocks.layers import GatedMLP, RMSNorm, constants
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.native_layer import layer_sizes, native_layer
from opsin_plugins.blocks.stages import Stage
from opsin_plugins.blocks.weight_format import Form, WeightFormat
from opsin_plugins.rope import axes, frequencies
from opsin_plugins.spec import DecoderSpec, RopeSpec


@dataclass(frozen=True)
class ModelInputs:
    """One packed batch. positions I64 [A, T]; lora: adapters of the rows (None: all are the base model's); frequencies
    F32 [T, D/2] where they differ from row to row (dynamic NTK).

    wanted I64 [M]: the rows whose states are asked for (None: all), with lora_of_wanted for them.
    """

    positions: Tensor
    layout: Layout
    lora: Lora | None = None
    cross: CrossInputs | None = None
    frequencies: Tensor | None = None
    wanted: Tensor | None = None
    lora_of_wanted: Lora | None = None

    @property
    def output_lora(self) -> Lora | None:
        """Of the rows whose states are asked for."""
        return self.lora if self.wanted is None else self.lora_of_wanted


HEAD = "decoder.head"  # adapters know a tied head, which is no module, by this name as well
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

    def forward(self, inputs: ModelInputs, dtype: torch.dtype) -> RotaryTables:
        positions = inputs.positions
        chosen = positions[0][:, None] if self.one_axis else positions.index_select(0, self.axes).T
        own = self.frequencies if inputs.frequencies is None else inputs.frequencies
        scale = None
        if self.log_scale_from:
            ratio = (positions[0] + 1).float().log() / math.log(self.log_scale_from)
            scale = ratio.clamp(min=1.0).to(dtype)[:, None, None]
        return RotaryTables(*angles_to_tables(chosen.float() * own, dtype), scale)


class Attention(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        sizes = [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim]
        self.qkv = Linear(spec.width, sizes, spec.qkv_bias)
        self.out = Linear(sizes[0], [spec.width], spec.out_bias)
        self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, spec.norm_eps) if spec.head_norm else None for _ in range(2))

    def attend(self, x: Tensor | RowCodes, inputs: ModelInputs, turn: RotaryTables, pool: Tensor | None) -> Tensor:
        """What stands before the output projection, [T, H·D]."""
        qkv = self.qkv(x, inputs.lora).view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
            qkv = torch.cat([self.q_norm(q), self.k_norm(k), v], 1)
        if pool is None:
            rotate_(qkv[:, : self.heads + self.kv_heads], turn.cos, turn.sin)
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
            q = q if turn.scale is None else q * turn.scale
            return packed_attention(q, k, v, inputs.layout.segments, causal=True).flatten(1)
        assert inputs.layout.slots is not None
        q = rotate_and_store(qkv, self.heads, turn.cos, turn.sin, pool, inputs.layout.slots)
        return paged_attention(q if turn.scale is None else q * turn.scale, pool, inputs.layout)


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (RMSNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.attention = Attention(spec)
        self.mlp = GatedMLP(spec.width, spec.mlp, spec.activation, spec.mlp_bias)
        self._native: NativeLayer | None = None
        self._spec, self._looked_up = spec, False

    def native(self) -> NativeLayer | None:
        """Looked up once; None: it is computed part by part."""
        if not self._looked_up:
            self._native, self._looked_up = native_layer(self, self._spec), True
        return self._native

    def _apply(self, *how: Any, **given: Any) -> DecoderLayer:
        """Tensors are replaced when a module is moved."""
        self._native, self._looked_up = None, False
        super()._apply(*how, **given)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy has tensors of its own."""
        return {**self.__dict__, "_native": None, "_looked_up": False}

    def forward(
        self,
        x: Tensor,
        inputs: ModelInputs,
        turn: RotaryTables,
        pool: Tensor | None,
        last: bool = False,
        step: NativeStep | None = None,
    ) -> Tensor:
        """last: of the last layer only the wanted rows are computed, from its output projection on: [M, H]. step: where
        one call may do all of it; then x is changed."""
        if step is not None and (native := self.native()) is not None:
            assert pool is not None
            return native.run(x, pool, step)
        lora = inputs.lora
        normed = self.attention_norm.as_rows(x, self.attention.qkv.row_form(lora))
        y = self.attention.attend(normed, inputs, turn, pool)
        if last and inputs.wanted is not None:
            x, y = x.index_select(0, inputs.wanted), y.index_select(0, inputs.wanted)
            lora = inputs.lora_of_wanted
        added = self.attention.out(y, lora)
        x, normed = self.mlp_norm.after_as_rows(x, added, self.mlp.gate_up.row_form(lora))
        return x + self.mlp(normed, lora)


class Embedding(nn.Module):
    """A row for each token, and where the head is tied its weight as well. Its format is given by `build_model`."""

    stored: WeightFormat

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.vocab, self.width, self.dtype = vocab, width, torch.get_default_dtype()

    def allocate(self, form: Form) -> None:
        self.stored = form(self.width, self.vocab)

    def forward(self, ids: Tensor) -> Tensor:
        return self.stored.rows(ids).to(self.dtype)

    def fill(self, tensors: Sequence[Tensor | Codes]) -> None:
        start = 0
        for tensor in tensors:
            self.stored.fill(start, tensor)
            start += len(tensor)


class Decoder(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec, self._sizes = spec, layer_sizes(spec)
        self.embedding = Embedding(spec.embeddings, spec.width)
        self.rotary = Rotary(spec.rope, spec.head_dim, spec.log_scale_from)
        own = [i for i in range(spec.layers) if i not in spec.replaced]
        self.layers = nn.ModuleDict({str(i): DecoderLayer(spec) for i in own})
        self._stack = [self.layers[str(i)] if i in own else None for i in range(spec.layers)]
        self._places = [own.index(i) if i in own else -1 for i in range(spec.layers)]  # in the pool
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        self.head = None if spec.tied else Linear(spec.width, [spec.vocab])

    def forward(
        self,
        x: Tensor,
        inputs: ModelInputs,
        pool: KVPool | None,
        fusion: Fusion | None = None,
        visual: Visual | None = None,
    ) -> Tensor:
        """Embeddings [T, H] to the last layer's states, not yet normalised: [T, H], or [M, H] of the wanted rows."""
        turn = self.rotary(inputs, x.dtype)
        context = self._context(inputs, fusion, visual)
        step = self._native_step(x, inputs, turn, pool) if pool else None
        for i in range(len(self._stack)):
            x = self._layer(i, x, inputs, turn, pool, fusion, context, step)
        return x

    def _native_step(self, x: Tensor, inputs: ModelInputs, turn: RotaryTables, pool: KVPool) -> NativeStep | None:
        if inputs.lora is not None or inputs.wanted is not None or turn.scale is not None:
            return None
        return step_of(self._sizes, x, turn.cos, turn.sin, inputs.layout, pool[0])

    def stages(self, inputs: ModelInputs, fusion: Fusion | None = None, visual: Visual | None = None) -> list[Stage]:
        """From embeddings "x" to the states "x", without a pool. A layer at which the fusion acts also takes the visual
        tokens: "tokens" of `visual`, or "states" of the cross inputs."""
        turn = self.rotary(inputs, self.embedding.dtype)
        points = fusion.layers if fusion is not None and visual is not None else frozenset()
        found = []
        for i in range(len(self._stack)):
            crosses = self._stack[i] is None and inputs.cross is not None
            takes = ("x", "tokens") if i in points else ("x", "states") if crosses else ("x",)

            def run(x: Tensor, outside: Tensor | None = None, i: int = i, crosses: bool = crosses) -> tuple[Tensor]:
                seen, cross = visual, inputs.cross
                if outside is not None and crosses:
                    assert cross is not None
                    cross = replace(cross, states=outside)
                elif outside is not None:
                    assert visual is not None
                    seen = Visual(outside, visual.rows)
                context = self._context(replace(inputs, cross=cross), fusion, seen)
                return (self._layer(i, x, inputs, turn, None, fusion, context),)

            found.append(Stage(f"layers.{i}", takes, ("x",), run))
        return found

    def _context(self, inputs: ModelInputs, fusion: Fusion | None, visual: Visual | None) -> Context | None:
        points = fusion.layers if fusion is not None else frozenset()
        return Context(visual, inputs.cross, inputs.lora) if points or self.spec.replaced else None

    def _layer(
        self,
        i: int,
        x: Tensor,
        inputs: ModelInputs,
        turn: RotaryTables,
        pool: KVPool | None,
        fusion: Fusion | None,
        context: Context | None,
        step: NativeStep | None = None,
    ) -> Tensor:
        """Layer i, with what the fusion does before it, after it, or in its place."""
        layer, last = self._stack[i], i == len(self._stack) - 1
        if layer is not None and (fusion is None or i not in fusion.layers):
            return layer(x, inputs, turn, pool[self._places[i]] if pool else None, last, step)
        assert fusion is not None
        assert context is not None
        if i in fusion.layers:
            x = fusion.before_layer(i, x, context)
        if layer is None:
            x = fusion.replace_layer(i, x, context)
        else:
            x = layer(x, inputs, turn, pool[self._places[i]] if pool else None, step=step)
        if i in fusion.layers:
            x = fusion.after_layer(i, x, context)
        return x if not last or inputs.wanted is None else x.index_select(0, inputs.wanted)

    def logits(self, x: Tensor, lora: Lora | None = None) -> Tensor:
        """States [M, H] of the rows that need them -> [M, vocab]. lora: of these rows."""
        x = self.norm(x)
        if self.head is not None:
            return self.head(x, lora)
        out = self.embedding.stored.matmul(x)[:, : self.spec.vocab]
        return out if lora is None else lora.add(HEAD, x, out)
