"""Rows of the adapter in training: a frozen linear and its low-rank factors, forward and backward, as one autograd
function. Source: arXiv 2106.09685 (LoRA).

y_TN = x_TK · W_NKᵀ + bias_N + scale · (x̃_TK · A_RKᵀ) · B_RN. T rows, K inputs, rank R, N outputs; x̃ is x with dropout.
Autograd over the same operations would keep a copy of y for each segment, and ask the weight for a gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from opsin_plugins.blocks.lora import FrozenLinear, Lora


@dataclass(frozen=True)
class TrainedSegment:
    """What is trained of one segment of a linear. columns: of its outputs. lines: its own of the linear's `a`; segments
    that are published as one layer have the same. b [rank, columns], float32, a leaf. scale: alpha by rank."""

    columns: slice
    lines: slice
    b: Tensor
    scale: float


@dataclass(frozen=True)
class TrainedLinear:
    """a [R, K] of all segments, behind each other, float32, a leaf."""

    a: Tensor
    segments: Sequence[TrainedSegment]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.a, *(segment.b for segment in self.segments)]


@dataclass(frozen=True)
class Dropout:
    """Of what the factors see of x, drawn from a seed and the name of the linear: the same when a piece is computed
    again for its backward pass, and in a run that was resumed."""

    probability: float
    seed: int

    def factor(self, name: str, x: Tensor) -> Tensor:
        """0 or 1 / (1 - p), in the shape and type of x."""
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        generator = torch.Generator(x.device).manual_seed(int.from_bytes(digest, "little") >> 1)
        keep = 1.0 - self.probability
        return torch.empty_like(x).bernoulli_(keep, generator=generator).div_(keep)


@dataclass(frozen=True)
class TraineeLora(Lora):
    """All rows are the trainee's. linears: by name; others are the base model's. projector: where it is trained whole,
    the one that is trained. dropout: None is none."""

    linears: Mapping[str, TrainedLinear]
    projector: nn.Module | None = None
    dropout: Dropout | None = None

    def resized(self, counts: Sequence[int]) -> TraineeLora:
        return self

    def of_runs(self, chosen: Sequence[int]) -> TraineeLora:
        return self

    def projector_of(self, run: int) -> nn.Module | None:
        return self.projector

    def applied(self, linear: FrozenLinear, x: Tensor) -> Tensor:
        trained = self.linears.get(linear.name)
        if trained is None:
            return linear.stored.matmul(x, linear.bias)
        out: Tensor = _LoraLinear.apply(x, linear, trained, self.dropout, *trained.leaves)  # type: ignore[no-untyped-call]
        return out

    def add(self, name: str, x: Tensor, out: Tensor) -> Tensor:
        """By autograd: a tied head is not trained but by those who ask for it by name."""
        trained = self.linears.get(name)
        if trained is None:
            return out
        seen = x if self.dropout is None else x * self.dropout.factor(name, x)
        shrunk = seen @ trained.a.to(x.dtype).t()
        added = [(shrunk[:, s.lines] @ s.b.to(x.dtype)) * s.scale for s in trained.segments]
        return out + torch.cat(added, 1)


class _LoraLinear(torch.autograd.Function):
    """Keeps x and what is shrunk of it; the gradient of x is that of the weight as it is stored."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linear: FrozenLinear,
        trained: TrainedLinear,
        dropout: Dropout | None,
        a: Tensor,
        *bs: Tensor,
    ) -> Tensor:
        out = linear.stored.matmul(x, linear.bias)
        seen = x if dropout is None else x * dropout.factor(linear.name, x)
        shrunk = seen @ a.to(x.dtype).t()
        for segment, b in zip(trained.segments, bs, strict=True):
            out[:, segment.columns].addmm_(shrunk[:, segment.lines], b.to(x.dtype), alpha=segment.scale)
        ctx.linear, ctx.segments, ctx.dropout = linear, trained.segments, dropout
        ctx.save_for_backward(x, shrunk, a, *bs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, shrunk, a, *bs = ctx.saved_tensors
        of_shrunk, of_bs = torch.zeros_like(shrunk), []
        for segment, b in zip(ctx.segments, bs, strict=True):
            part = gradient[:, segment.columns]
            of_shrunk[:, segment.lines].addmm_(part, b.to(x.dtype).t(), alpha=segment.scale)
            of_bs.append((shrunk[:, segment.lines].t() @ part).to(b.dtype).mul_(segment.scale))
        factor = None if ctx.dropout is None else ctx.dropout.factor(ctx.linear.name, x)
        of_a = (of_shrunk.t() @ (x if factor is None else x * factor)).to(a.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = ctx.linear.stored.input_gradient(gradient)
            if factor is None:
                of_x.addmm_(of_shrunk, a.to(x.dtype))
            else:
                of_x.addcmul_(of_shrunk @ a.to(x.dtype), factor)
        return (of_x, None, None, None, of_a, *of_bs)
