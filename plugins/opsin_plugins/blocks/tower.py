"""The one vision tower: patches to features. Pictures of any size are packed along N; each attends to itself only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.attention import packed_attention
from opsin_kernels.layout import Segments
from opsin_kernels.rotary import angles_to_tables, rotate_
from opsin_plugins.blocks.layers import GatedMLP, PlainMLP, constants, make_norm, parameter
from opsin_plugins.blocks.linear import Linear, Quantize
from opsin_plugins.blocks.patch_layout import buckets, merged_places, resized_table, windows
from opsin_plugins.spec import Grid, TowerSpec


class Picture(Protocol):
    """What a tower must know of a picture besides its pixels: a VisualItem, or what crossed the door of it."""

    @property
    def grid(self) -> Grid: ...

    @property
    def tiles(self) -> tuple[int, int]: ...


class Stem(nn.Module):
    """U8 patches [N, C·p·p] to [N, width]: normalise, then one product.

    A patch may span several frames; a still picture fills all of them, so their kernels are summed instead.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        frames = (spec.temporal,) if spec.temporal > 1 else ()
        self.weight = parameter(spec.width, spec.channels, *frames, spec.patch, spec.patch)
        self.bias = parameter(spec.width) if spec.patch_bias else None
        area = spec.patch**2
        scale = [1 / (255 * std) for std in spec.std for _ in range(area)]
        shift = [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True) for _ in range(area)]
        self.register_buffer("scale", constants(scale), persistent=False)
        self.register_buffer("shift", constants(shift), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        kernel = self.weight.sum(2) if self.weight.dim() == 5 else self.weight
        normalised = torch.addcmul(self.shift, pixels.float(), self.scale)
        return F.linear(normalised.to(kernel.dtype), kernel.flatten(1), self.bias)


@dataclass(frozen=True)
class Attended:
    """How a layer's rows attend: within these segments, turned by these tables."""

    segments: Segments
    rope: tuple[Tensor, Tensor] | None
    slot: Tensor | None


class TowerAttention(nn.Module):
    def __init__(self, spec: TowerSpec, quantize: Quantize) -> None:
        super().__init__()
        self.head_dim = spec.width // spec.heads
        self.qkv = Linear(spec.width, [spec.width] * 3, spec.attention_bias, quantize)
        self.out = Linear(spec.width, [spec.width], spec.attention_bias, quantize)

    def forward(self, x: Tensor, where: Attended) -> Tensor:
        qkv = self.qkv(x, where.slot).view(len(x), -1, self.head_dim)
        heads = qkv.shape[1] // 3
        if where.rope is not None:
            rotate_(qkv[:, : 2 * heads], *where.rope)
        q, k, v = qkv.split(heads, 1)
        return self.out(packed_attention(q, k, v, where.segments, causal=False).flatten(1), where.slot)


class TowerLayer(nn.Module):
    """gated: what the layer adds is scaled by two learned numbers, through tanh."""

    def __init__(self, spec: TowerSpec, quantize: Quantize, gated: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (make_norm(spec.norm, spec.width, spec.norm_eps) for _ in range(2))
        self.attention = TowerAttention(spec, quantize)
        self.mlp: nn.Module
        if spec.gated_mlp:
            self.mlp = GatedMLP(spec.width, spec.mlp, spec.activation, spec.mlp_bias, quantize)
        else:
            self.mlp = PlainMLP(spec.width, spec.mlp, spec.width, spec.activation, spec.mlp_bias, quantize)
        self.attention_gate, self.mlp_gate = (parameter(1) if gated else None for _ in range(2))

    def forward(self, x: Tensor, where: Attended) -> Tensor:
        added = _gated(self.attention(self.attention_norm(x), where), self.attention_gate)
        x, normed = self.mlp_norm.after(x, added)
        return x + _gated(self.mlp(normed, where.slot), self.mlp_gate)


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else gate.tanh() * x


class Tower(nn.Module):
    """Also the builder that the encoders name."""

    row_frequencies: Tensor
    column_frequencies: Tensor

    def __init__(self, spec: TowerSpec, merge: int = 1, quantize: Quantize = "none") -> None:
        super().__init__()
        self.spec, self.merge = spec, merge
        self.patch = Stem(spec)
        self.class_token = parameter(spec.width) if spec.class_token else None
        self.positions = parameter(spec.positions, spec.width) if spec.positions else None
        self.pre_norm = make_norm(spec.norm, spec.width, spec.norm_eps) if spec.pre_norm else None
        self.layers = nn.ModuleList(TowerLayer(spec, quantize) for _ in range(spec.layers))
        self.post_norm = make_norm(spec.norm, spec.width, spec.norm_eps) if spec.post_norm else None
        # Half the head turns by row, half by column.
        size = spec.width // spec.heads
        exponent = torch.arange(0, size, 4, dtype=torch.float32, device="cpu") / size
        shift = 2 / size if spec.position == "staggered_rope" else 0.0
        rows, columns = (1.0 / (spec.theta ** (exponent + s)) for s in (0.0, shift))
        self.register_buffer("row_frequencies", constants(rows.tolist()), persistent=False)
        self.register_buffer("column_frequencies", constants(columns.tolist()), persistent=False)

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """Features of each picture."""
        return [t * (h * w + self.spec.keep_class_token) for t, h, w in (p.grid for p in pictures)]

    def forward(self, pixels: Tensor, pictures: Sequence[Picture], slot: Tensor | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] of all pictures -> features [N', width · (1 + taps)], class tokens dropped unless the
        spec keeps them. slot I64 [N]: each patch's adapter slot."""
        x, grids = self.patch(pixels), [p.grid for p in pictures]
        # Frames of one picture attend apart: a grid of t frames is t segments.
        frames = [h * w for t, h, w in grids for _ in range(t)]
        if self.class_token is not None:
            cls = self.class_token[None].to(x.dtype)
            x = torch.cat([part for patches in x.split(frames) for part in (cls, patches)])
            slot = None if slot is None else torch.cat([p for s in slot.split(frames) for p in (s[:1], s)])
            frames = [n + 1 for n in frames]
        if self.positions is not None:
            x = x + self._table(self.positions, grids)
        x = x if self.pre_norm is None else self.pre_norm(x)
        x = self._layers(x, grids, frames, slot)
        if self.class_token is not None and not self.spec.keep_class_token:
            x = torch.cat([part[1:] for part in x.split(frames)])
        return x

    def _layers(self, x: Tensor, grids: Sequence[Grid], frames: list[int], slot: Tensor | None) -> Tensor:
        rope = self._rope(grids, x) if "rope" in self.spec.position else None
        lengths, order = frames, None
        if self.spec.window:
            order, lengths = windows(grids, self.merge, self.spec.window)
            order = order.to(x.device)
            x = x.index_select(0, order)
            rope = None if rope is None else (rope[0].index_select(0, order), rope[1].index_select(0, order))
            slot = None if slot is None else slot.index_select(0, order)
        apart, whole = (Attended(Segments(n), rope, slot) for n in (lengths, frames))
        taps = []
        for i, layer in enumerate(self.layers):
            x = layer(x, whole if i in self.spec.whole_layers else apart)
            if i in self.spec.taps:
                taps.append(x)
        x = x if self.post_norm is None else self.post_norm(x)
        x = torch.cat([x, *taps], -1) if taps else x
        return x if order is None else torch.empty_like(x).index_copy(0, order, x)

    def _table(self, table: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The rows of the position table for all patches [N, width] (with class tokens, for which it has a row)."""
        if self.spec.position == "learned":
            return table.repeat(sum(t for t, _, _ in grids), 1)
        parts = []
        for frames, rows, columns in grids:
            places = merged_places((1, rows, columns), self.merge).to(table.device)
            if self.spec.position != "bucketed":
                stretched = resized_table(table, (rows, columns), corners=self.spec.position == "resized_rope")
                part = stretched[places[:, 0] * columns + places[:, 1]]
            else:
                side = int(len(table) ** 0.5)
                down, across = (buckets(n, side).to(table.device) for n in (rows, columns))
                part = table[down[places[:, 0]] * side + across[places[:, 1]]]
            parts.append(part.repeat(frames, 1))
        return torch.cat(parts)

    def _rope(self, grids: Sequence[Grid], x: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [N, 1, D] for patches in merge order: row angles in the first quarter, column angles in the second."""
        places = torch.cat([merged_places(grid, self.merge) for grid in grids]).to(x.device).float()
        angles = places[:, :1] * self.row_frequencies, places[:, 1:] * self.column_frequencies
        return angles_to_tables(torch.cat(angles, 1), x.dtype)
