"""The one vision tower: patches to features. Pictures of any size are packed along N; each attends to itself only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_kernels.attention import packed_attention
from opsin_kernels.rotary import angles_to_tables, rotate
from opsin_plugins.blocks.layers import LayerNorm, PlainMLP, constants, parameter
from opsin_plugins.blocks.linear import Linear, Quantize
from opsin_plugins.spec import TowerSpec

Grid = tuple[int, int, int]  # frames, rows, columns in patches


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


class TowerAttention(nn.Module):
    def __init__(self, spec: TowerSpec, quantize: Quantize) -> None:
        super().__init__()
        self.head_dim = spec.width // spec.heads
        self.qkv = Linear(spec.width, [spec.width] * 3, bias=True, quantize=quantize)
        self.out = Linear(spec.width, [spec.width], bias=True, quantize=quantize)

    def forward(
        self, x: Tensor, lengths: Sequence[int], rope: tuple[Tensor, Tensor] | None, slot: Tensor | None
    ) -> Tensor:
        q, k, v = self.qkv(x, slot).unflatten(-1, (3, -1, self.head_dim)).unbind(1)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return self.out(packed_attention(q, k, v, lengths, causal=False).flatten(1), slot)


class TowerLayer(nn.Module):
    def __init__(self, spec: TowerSpec, quantize: Quantize) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (LayerNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.attention = TowerAttention(spec, quantize)
        self.mlp = PlainMLP(spec.width, spec.mlp, spec.width, spec.activation, bias=True, quantize=quantize)

    def forward(
        self, x: Tensor, lengths: Sequence[int], rope: tuple[Tensor, Tensor] | None, slot: Tensor | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), lengths, rope, slot)
        return x + self.mlp(self.mlp_norm(x), slot)


class Tower(nn.Module):
    """Also the builder that the encoders name."""

    frequencies: Tensor

    def __init__(self, spec: TowerSpec, merge: int = 1, quantize: Quantize = "none") -> None:
        super().__init__()
        self.spec, self.merge = spec, merge
        self.patch = Stem(spec)
        self.class_token = parameter(spec.width) if spec.class_token else None
        self.positions = parameter(spec.positions, spec.width) if spec.position == "learned" else None
        self.pre_norm = LayerNorm(spec.width, spec.norm_eps) if spec.pre_norm else None
        self.layers = nn.ModuleList(TowerLayer(spec, quantize) for _ in range(spec.layers))
        half = spec.width // spec.heads // 2  # half the head turns by row, half by column
        exponent = torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half
        self.register_buffer("frequencies", constants((1.0 / (spec.theta**exponent)).tolist()), persistent=False)

    def forward(self, pixels: Tensor, grids: Sequence[Grid], slot: Tensor | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] of all pictures, grids one a picture -> features [N', width], class tokens dropped
        unless the spec keeps them. slot I64 [N]: each patch's adapter slot."""
        x = self.patch(pixels)
        lengths = [t * h * w for t, h, w in grids]
        if self.class_token is not None:
            cls = self.class_token[None].to(x.dtype)
            x = torch.cat([part for patches in x.split(lengths) for part in (cls, patches)])
            lengths = [n + 1 for n in lengths]
            if slot is not None:
                slot = torch.cat([part for s in slot.split([n - 1 for n in lengths]) for part in (s[:1], s)])
        if self.positions is not None:
            x = x + self.positions.repeat(len(grids), 1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        rope = self._rope(grids, x) if self.spec.position == "axial_rope" else None
        # Frames of one picture attend apart: a grid of t frames is t segments.
        segments = [n // t for n, (t, _, _) in zip(lengths, grids, strict=True) for _ in range(t)]
        for layer in self.layers:
            x = layer(x, segments, rope, slot)
        if self.class_token is not None and not self.spec.keep_class_token:
            x = torch.cat([part[1:] for part in x.split(lengths)])
        return x

    def _rope(self, grids: Sequence[Grid], x: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [N, 1, D] for patches in merge order: row angles in the first quarter, column angles in the second."""
        places = torch.cat([merged_places(grid, self.merge) for grid in grids]).to(x.device)
        angle = places[:, :, None].float() * self.frequencies
        return angles_to_tables(angle.flatten(1), x.dtype)


def merged_places(grid: Grid, merge: int) -> Tensor:
    """I64 [t·h·w, 2]: row and column of each patch, merge × merge neighbours together."""
    frames, rows, columns = grid
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    blocked = place.view(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2)
    return blocked.reshape(-1, 2).repeat(frames, 1)
