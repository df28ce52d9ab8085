"""From tower features to visual tokens: the projector that most families share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.layers import PlainMLP, make_norm, parameter
from opsin_plugins.blocks.linear import Linear, Quantize
from opsin_plugins.spec import LevelsProjectorSpec, ProjectorSpec


class Projector(nn.Module):
    """Features [N, in] -> visual tokens [N / merge², out]; neighbours that are joined stand together along N."""

    def __init__(self, spec: ProjectorSpec, quantize: Quantize = "none") -> None:
        super().__init__()
        self.neighbours = spec.merge**2
        joined = spec.in_width * self.neighbours
        self.norm = make_norm(spec.norm, spec.in_width, spec.norm_eps) if spec.norm_eps is not None else None
        self.join = Linear(joined, [spec.joined], bias=False, quantize=quantize) if spec.joined else None
        width = spec.joined or joined
        self.mlp: nn.Module
        if spec.hidden:
            self.mlp = PlainMLP(width, spec.hidden, spec.out_width, spec.activation, spec.bias, quantize)
        else:
            self.mlp = Linear(width, [spec.out_width], spec.bias, quantize)
        self.newline = parameter(spec.out_width) if spec.newline else None

    def counts(self, lengths: Sequence[int]) -> list[int]:
        """Visual tokens of pictures with so many features."""
        return [n // self.neighbours for n in lengths]

    def forward(self, x: Tensor, lengths: Sequence[int], slot: Tensor | None = None) -> Tensor:
        """lengths: features of each picture. slot I64 [N]: each feature's adapter slot."""
        x = x if self.norm is None else self.norm(x)
        x = x.reshape(len(x) // self.neighbours, -1)
        slot = slot if slot is None else slot.view(len(x), -1)[:, 0]
        x = x if self.join is None else self.join(x, slot)
        return self.mlp(x, slot)

    def arrange(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Visual tokens of one picture [n, out] in the order I64 [rows]; -1 is the newline."""
        if self.newline is None:
            return tokens.index_select(0, order)
        return torch.cat([tokens, self.newline[None].to(tokens.dtype)]).index_select(0, order % (len(tokens) + 1))


class Level(nn.Module):
    """One tap of the tower: neighbours are joined, then normalised."""

    def __init__(self, spec: ProjectorSpec, quantize: Quantize) -> None:
        super().__init__()
        self.joined = spec.in_width * spec.merge**2
        self.norm = make_norm(spec.norm, self.joined, spec.norm_eps or 1e-6)
        self.mlp = PlainMLP(self.joined, spec.hidden, spec.out_width, spec.activation, spec.bias, quantize)

    def forward(self, x: Tensor, slot: Tensor | None) -> Tensor:
        return self.mlp(self.norm(x.reshape(-1, self.joined)), slot)


class LevelsProjector(Projector):
    """Features and taps [N, in · (1 + levels)] -> visual tokens and what is added later [M, out · (1 + levels)]."""

    def __init__(self, spec: LevelsProjectorSpec, quantize: Quantize = "none") -> None:
        super().__init__(spec, quantize)
        self.width = spec.in_width
        self.levels = nn.ModuleList(Level(spec, quantize) for _ in range(spec.levels))

    def forward(self, x: Tensor, lengths: Sequence[int], slot: Tensor | None = None) -> Tensor:
        first, *taps = x.split(self.width, -1)
        tokens = super().forward(first, lengths, slot)
        joined = None if slot is None else slot.view(len(tokens), -1)[:, 0]
        return torch.cat([tokens, *(level(tap, joined) for level, tap in zip(self.levels, taps, strict=True))], -1)
