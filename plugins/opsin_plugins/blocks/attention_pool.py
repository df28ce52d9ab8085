"""One learned query that gathers a picture's features (SigLIP's head). Source: arXiv 2106.04560, the MAP head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin_plugins.blocks.layers import LayerNorm, PlainMLP, parameter
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.spec import TowerSpec


class AttentionPool(nn.Module):
    """Features [N, width] of pictures with these numbers of them -> [P, width]."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.query = parameter(1, 1, spec.width)  # (as it is published)
        self.q, self.out = (Linear(spec.width, [spec.width], bias=True) for _ in range(2))
        self.kv = Linear(spec.width, [spec.width] * 2, bias=True)
        self.norm = LayerNorm(spec.width, spec.norm_eps)
        self.mlp = PlainMLP(spec.width, spec.mlp, spec.width, spec.activation, bias=True)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        q, kv = self.q(self.query[0]), self.kv(x)
        y = self.out(torch.cat([self._gathered(q, part) for part in kv.split(list(lengths))]))
        return y + self.mlp(self.norm(y), None)

    def _gathered(self, q: Tensor, kv: Tensor) -> Tensor:
        """[1, width], of one picture."""
        k, v = kv.view(len(kv), 2, self.heads, -1).transpose(0, 2)[:, :, None].unbind(1)
        query = q.view(self.heads, 1, 1, -1)
        return F.scaled_dot_product_attention(query, k, v).view(1, -1)
