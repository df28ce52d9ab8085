"""Muon for the matrices inside the blocks, AdamW for everything else.

Muon (K. Jordan et al., 2024): the momentum matrix is replaced by its nearest orthogonal matrix, found by a few
Newton-Schulz steps. Matrices of one shape are orthogonalised as one batch.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from mini_opsin.ranks import total, world

Named = list[tuple[str, nn.Parameter]]


def orthogonal(g: Tensor, steps: int = 4) -> Tensor:
    """[K, M, N] -> matrices with the same singular vectors and singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Muon:
    """With several ranks each orthogonalises its share of the matrices, and one all-reduce spreads the result."""

    def __init__(self, named: Named, lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        self.named, self.lr, self.momentum, self.weight_decay = named, lr, momentum, weight_decay
        self.buffers = {name: torch.zeros_like(p) for name, p in named}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at `factor` times the learning rate; every matrix must have its gradient."""
        lr, raw = self.lr * factor, []
        for name, p in self.named:
            assert p.grad is not None, name
            self.buffers[name].lerp_(p.grad, 1 - self.momentum)
            raw.append(p.grad.lerp(self.buffers[name], self.momentum))  # Nesterov
        for (_, p), update in zip(self.named, orthogonal_shares(raw), strict=True):
            scale = lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.mul_(1 - lr * self.weight_decay).add_(update, alpha=-scale)


def orthogonal_shares(raw: list[Tensor]) -> list[Tensor]:
    rank, ranks = world()
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for i, r in enumerate(raw):
        by_shape[r.shape].append(i)
    flat = raw[0].new_zeros(sum(r.numel() for r in raw))
    out = [v.view_as(r) for v, r in zip(torch.split(flat, [r.numel() for r in raw]), raw, strict=True)]
    for indices in by_shape.values():
        mine = indices[rank::ranks]
        if mine:
            for i, update in zip(mine, orthogonal(torch.stack([raw[i] for i in mine])), strict=True):
                out[i].copy_(update)
    total(flat)
    return out


def split(named: Named) -> tuple[Named, Named]:
    """(matrices for Muon, the rest): embeddings, the patch convolution, biases and heads go to AdamW."""

    def inside(name: str, p: nn.Parameter) -> bool:
        return p.dim() == 2 and "embed" not in name and name.startswith("model.")

    return [(n, p) for n, p in named if inside(n, p)], [(n, p) for n, p in named if not inside(n, p)]
