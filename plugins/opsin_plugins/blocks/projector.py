"""From tower features to visual tokens: the projector that most families share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.layers import PlainMLP, make_norm, parameter
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.spec import LevelsProjectorSpec, ProjectorSpec


class Projector(nn.Module):
    """Features [N, in] -> visual tokens [N / merge², out]; neighbours that are joined stand together along N."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.neighbours = spec.merge**2
        joined = spec.in_width * self.neighbours
        self.norm = make_norm(spec.norm, spec.in_width, spec.norm_eps) if spec.norm_eps is not None else None
        self.join = Linear(joined, [spec.joined]) if spec.joined else None
        width = spec.joined or joined
        self.mlp: nn.Module
        if spec.hidden:
            self.mlp = PlainMLP(width, spec.hidden, spec.out_width, spec.activation, spec.bias)
        else:
            self.mlp = Linear(width, [spec.out_width], spec.bias)
        self.newline = parameter(spec.out_width) if spec.newline else None

    def counts(self, lengths: Sequence[int]) -> list[int]:
        """Visual tokens of pictures with so many features."""
        return [n // self.neighbours for n in lengths]

    def forward(self, x: Tensor, lengths: Sequence[int], lora: Lora | None = None) -> Tensor:
        """lengths: features of each picture. lora: of all features, a run each picture."""
        x = x if self.norm is None else self.norm(x)
        x = x.reshape(len(x) // self.neighbours, -1)
        lora = self._joined(lengths, lora)
        x = x if self.join is None else self.join(x, lora)
        return self.mlp(x, lora)

    def _joined(self, lengths: Sequence[int], lora: Lora | None) -> Lora | None:
        return None if lora is None else lora.resized(self.counts(lengths))

    def arrange(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Visual tokens of one picture [n, out] in the order I64 [rows]; -1 is the newline."""
        if self.newline is None:
            return tokens.index_select(0, order)
        return torch.cat([tokens, self.newline[None].to(tokens.dtype)]).index_select(0, order % (len(tokens) + 1))


class Level(nn.Module):
    """One tap of the tower: neighbours are joined, then normalised."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.joined = spec.in_width * spec.merge**2
        self.norm = make_norm(spec.norm, self.joined, spec.norm_eps or 1e-6)
        self.mlp = PlainMLP(self.joined, spec.hidden, spec.out_width, spec.activation, spec.bias)

    def forward(self, x: Tensor, lora: Lora | None) -> Tensor:
        return self.mlp(self.norm(x.reshape(-1, self.joined)), lora)


class LevelsProjector(Projector):
    """Features and taps [N, in · (1 + levels)] -> visual tokens and what is added later [M, out · (1 + levels)]."""

    def __init__(self, spec: LevelsProjectorSpec) -> None:
        super().__init__(spec)
        self.width = spec.in_width
        self.levels = nn.ModuleList(Level(spec) for _ in range(spec.levels))

    def forward(self, x: Tensor, lengths: Sequence[int], lora: Lora | None = None) -> Tensor:
        first, *taps = x.split(self.width, -1)
        tokens, joined = super().forward(first, lengths, lora), self._joined(lengths, lora)
        return torch.cat([tokens, *(level(tap, joined) for level, tap in zip(self.levels, taps, strict=True))], -1)
