"""The one vision tower: patches to features. Pictures of any size are packed along N; each attends to itself only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.attention import packed_attention
from opsin_kernels.layout import Segments
from opsin_kernels.rotary import angles_to_tables, rotate_
from opsin_plugins.blocks.layers import GatedMLP, PlainMLP, constants, make_norm, parameter
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.patch_layout import Stretch, buckets, merged_places, resized_table, windows
from opsin_plugins.blocks.stages import Stage
from opsin_plugins.spec import Grid, TextTowerSpec, TowerSpec

# How a table of positions is stretched to a grid.
STRETCHES: Mapping[str, Stretch] = {"resized": "bicubic", "resized_rope": "corners", "smoothed": "antialiased"}


class Picture(Protocol):
    """What a tower must know of a picture besides its pixels: a VisualItem, or what crossed the door of it."""

    @property
    def grid(self) -> Grid: ...

    @property
    def tiles(self) -> tuple[int, int]: ...

    @property
    def patch_rows(self) -> int: ...


class Stem(nn.Module):
    """U8 patches [N, C·p·p] to [N, width]: normalise, then one product.

    A patch may span several frames; a still picture fills all of them, so their kernels are summed instead. The frames
    of a video's patches lie behind each other.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        frames = (spec.temporal,) if spec.temporal > 1 else ()
        shape = (spec.patch_dim,) if spec.flat_patches else (spec.channels, *frames, spec.patch, spec.patch)
        self.weight = parameter(spec.width, *shape)
        self.bias = parameter(spec.width) if spec.patch_bias else None
        area = spec.patch**2
        scale = [1 / (255 * std) for std in spec.std for _ in range(area)]
        shift = [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True) for _ in range(area)]
        self.register_buffer("scale", constants(scale), persistent=False)
        self.register_buffer("shift", constants(shift), persistent=False)

    def forward(self, pixels: Tensor, frames: int = 1) -> Tensor:
        """frames: rows of pixels of each patch, 1 or all that it spans."""
        if frames > 1:
            kernel = self.weight.transpose(1, 2)
        else:
            kernel = self.weight.sum(2) if self.weight.dim() == 5 else self.weight
        normalised = torch.addcmul(self.shift, pixels.float(), self.scale)
        return F.linear(normalised.to(kernel.dtype).view(len(pixels) // frames, -1), kernel.flatten(1), self.bias)


@dataclass(frozen=True)
class Attended:
    """How a layer's rows attend: within these segments, turned by these tables. lora: which adapters they have. causal:
    whether none sees what stands behind it."""

    segments: Segments
    rope: tuple[Tensor, Tensor] | None
    lora: Lora | None
    causal: bool = False


@dataclass(frozen=True)
class _Packing:
    """How the rows of some pictures lie. frames: rows of each frame, class token included. order I64 [N]: windows
    brought together; None: patches lie as they came."""

    grids: Sequence[Grid]
    frames: list[int]
    apart: Attended
    whole: Attended
    whole_layers: frozenset[int]
    order: Tensor | None
    patch_rows: list[int]

    def attended(self, layer: int) -> Attended:
        return self.whole if layer in self.whole_layers else self.apart


class TowerAttention(nn.Module):
    def __init__(self, spec: TowerSpec | TextTowerSpec) -> None:
        super().__init__()
        self.head_dim = spec.width // spec.heads
        self.qkv = Linear(spec.width, [spec.width] * 3, spec.attention_bias)
        self.out = Linear(spec.width, [spec.width], spec.attention_bias)

    def forward(self, x: Tensor, where: Attended) -> Tensor:
        qkv = self.qkv(x, where.lora).view(len(x), -1, self.head_dim)
        heads = qkv.shape[1] // 3
        if where.rope is not None:
            rotate_(qkv[:, : 2 * heads], *where.rope)
        q, k, v = qkv.split(heads, 1)
        return self.out(packed_attention(q, k, v, where.segments, causal=where.causal).flatten(1), where.lora)


class TowerLayer(nn.Module):
    """gated: what the layer adds is scaled by two learned numbers, through tanh."""

    def __init__(self, spec: TowerSpec | TextTowerSpec, gated: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (make_norm(spec.norm, spec.width, spec.norm_eps) for _ in range(2))
        self.attention = TowerAttention(spec)
        self.mlp: nn.Module
        if spec.gated_mlp:
            self.mlp = GatedMLP(spec.width, spec.mlp, spec.activation, spec.mlp_bias)
        else:
            self.mlp = PlainMLP(spec.width, spec.mlp, spec.width, spec.activation, spec.mlp_bias)
        self.attention_gate, self.mlp_gate = (parameter(1) if gated else None for _ in range(2))

    def forward(self, x: Tensor, where: Attended) -> Tensor:
        added = _gated(self.attention(self.attention_norm(x), where), self.attention_gate)
        x, normed = self.mlp_norm.after(x, added)
        return x + _gated(self.mlp(normed, where.lora), self.mlp_gate)


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else gate.tanh() * x


class Tower(nn.Module):
    """Also the builder that the encoders name."""

    row_frequencies: Tensor
    column_frequencies: Tensor

    def __init__(self, spec: TowerSpec, merge: int = 1) -> None:
        super().__init__()
        self.spec, self.merge = spec, merge
        self.patch = Stem(spec)
        self.class_token = parameter(spec.width) if spec.class_token else None
        self.positions = parameter(spec.positions, spec.width) if spec.positions else None
        self.pre_norm = make_norm(spec.norm, spec.width, spec.norm_eps) if spec.pre_norm else None
        self.layers = nn.ModuleList(TowerLayer(spec) for _ in range(spec.layers))
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

    def forward(self, pixels: Tensor, pictures: Sequence[Picture], lora: Lora | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] of all pictures -> features [N', width · (1 + taps)], class tokens dropped unless the
        spec keeps them. lora: of all patches, a run each picture."""
        packing = self._packing(pictures, lora)
        x, taps = self._embedded(pixels, packing), []
        for i, layer in enumerate(self.layers):
            x = layer(x, packing.attended(i))
            if i in self.spec.taps:
                taps.append(x)
        return self._features(x, taps, packing)

    def stages(self, pictures: Sequence[Picture], lora: Lora | None = None) -> list[Stage]:
        """From "pixels" to "features"."""
        packing, taps = self._packing(pictures, lora), [f"tap.{i}" for i in sorted(self.spec.taps)]

        def run(i: int, layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
            x = layer(x, packing.attended(i))
            return (x, x) if i in self.spec.taps else (x,)

        return [
            Stage("embed", ("pixels",), ("x",), lambda pixels: (self._embedded(pixels, packing),)),
            *(
                Stage(f"layers.{i}", ("x",), ("x", *(t for t in taps if t == f"tap.{i}")), partial(run, i, layer))
                for i, layer in enumerate(self.layers)
            ),
            Stage("features", ("x", *taps), ("features",), lambda x, *taps: (self._features(x, taps, packing),)),
        ]

    def _packing(self, pictures: Sequence[Picture], lora: Lora | None) -> _Packing:
        grids, device = [p.grid for p in pictures], self.patch.weight.device
        patch_rows = [p.patch_rows for p in pictures]
        # Frames of one picture attend apart: a grid of t frames is t segments.
        frames = [h * w + self.spec.class_token for t, h, w in grids for _ in range(t)]
        if lora is not None and self.spec.class_token:
            lora = lora.resized([t * (h * w + 1) for t, h, w in grids])
        rope = self._rope(grids) if "rope" in self.spec.position else None
        whole = Attended(Segments(frames), rope, lora)
        if not self.spec.window:
            return _Packing(grids, frames, whole, whole, frozenset(), None, patch_rows)
        order, lengths = windows(grids, self.merge, self.spec.window)
        order = order.to(device)
        if rope is not None:
            rope = rope[0].index_select(0, order), rope[1].index_select(0, order)
        # (The order is one within each picture: its adapter's rows stay where they are.)
        apart, whole = (Attended(Segments(n), rope, lora) for n in (lengths, frames))
        return _Packing(grids, frames, apart, whole, frozenset(self.spec.whole_layers), order, patch_rows)

    def _embedded(self, pixels: Tensor, packing: _Packing) -> Tensor:
        x = self._patches(pixels, packing)
        if self.class_token is not None:
            cls = self.class_token[None].to(x.dtype)
            patches = x.split([n - 1 for n in packing.frames])
            x = torch.cat([part for frame in patches for part in (cls, frame)])
        if self.positions is not None:
            x = x + self._table(self.positions, packing.grids)
        x = x if self.pre_norm is None else self.pre_norm(x)
        return x if packing.order is None else x.index_select(0, packing.order)

    def _patches(self, pixels: Tensor, packing: _Packing) -> Tensor:
        if max(packing.patch_rows) == 1:
            out: Tensor = self.patch(pixels)
            return out
        lengths = [t * h * w * n for (t, h, w), n in zip(packing.grids, packing.patch_rows, strict=True)]
        parts = zip(pixels.split(lengths), packing.patch_rows, strict=True)
        return torch.cat([self.patch(part, frames) for part, frames in parts])

    def _features(self, x: Tensor, taps: Sequence[Tensor], packing: _Packing) -> Tensor:
        x = x if self.post_norm is None else self.post_norm(x)
        x = torch.cat([x, *taps], -1) if taps else x
        if packing.order is not None:
            x = torch.empty_like(x).index_copy(0, packing.order, x)
        if self.class_token is not None and not self.spec.keep_class_token:
            x = torch.cat([part[1:] for part in x.split(packing.frames)])
        return x

    def _table(self, table: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The rows of the position table for all patches [N, width] (with class tokens, for which it has a row)."""
        if self.spec.position == "learned":
            return table.repeat(sum(t for t, _, _ in grids), 1)
        parts = []
        for frames, rows, columns in grids:
            places = merged_places((1, rows, columns), self.merge).to(table.device)
            if self.spec.position != "bucketed":
                stretched = resized_table(table, (rows, columns), STRETCHES[self.spec.position])
                part = stretched[places[:, 0] * columns + places[:, 1]]
            else:
                side = int(len(table) ** 0.5)
                down, across = (buckets(n, side).to(table.device) for n in (rows, columns))
                part = table[down[places[:, 0]] * side + across[places[:, 1]]]
            parts.append(part.repeat(frames, 1))
        return torch.cat(parts)

    def _rope(self, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """Tables [N, 1, D] for patches in merge order: row angles in the first quarter, column angles in the second."""
        places = torch.cat([merged_places(grid, self.merge) for grid in grids]).to(self.patch.weight.device).float()
        angles = places[:, :1] * self.row_frequencies, places[:, 1:] * self.column_frequencies
        return angles_to_tables(torch.cat(angles, 1), self.patch.weight.dtype)
