"""A fixed number of learned queries gather each picture's features. Source: arXiv 2308.12966 (Qwen-VL), §2.1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from opsin_plugins.blocks.layers import LayerNorm, parameter
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.patch_layout import resized_table
from opsin_plugins.spec import ResamplerSpec


class Resampler(nn.Module):
    """Features [P·n, in] of P pictures with n patches each -> visual tokens [P·queries, out]. Positions (sines and
    cosines of row and column, kept in the checkpoint) are added to queries and keys, and not to values."""

    def __init__(self, spec: ResamplerSpec) -> None:
        super().__init__()
        width = spec.out_width
        self.queries, self.heads = spec.queries, spec.heads
        self.query = parameter(spec.queries, width)
        self.positions = parameter(spec.queries, width)
        self.kv_in = Linear(spec.in_width, [width])
        self.query_norm, self.kv_norm, self.out_norm = (LayerNorm(width, spec.norm_eps or 1e-6) for _ in range(3))
        self.q, self.k, self.v = (Linear(width, [width], bias=True) for _ in range(3))
        self.out = Linear(width, [width], bias=True)
        self.proj = Linear(width, [width])

    def counts(self, lengths: Sequence[int]) -> list[int]:
        """Visual tokens of pictures with so many features."""
        return [self.queries for _ in lengths]

    def forward(self, x: Tensor, lengths: Sequence[int], lora: Lora | None = None) -> Tensor:
        """lengths: features of each picture, all equal and square. lora: of all features, a run each picture."""
        pictures, side = len(lengths), math.isqrt(lengths[0])
        kv = self.kv_norm(self.kv_in(x, lora)).view(pictures, side * side, -1)
        of_queries = None if lora is None else lora.resized(self.counts(lengths))
        query = self.query_norm(self.query) + self.positions
        q = self.q(query.repeat(pictures, 1), of_queries).view(pictures, self.queries, self.heads, -1)
        keys = kv + resized_table(self.positions, (side, side)).to(kv.dtype)
        k, v = (
            part(y.flatten(0, 1), lora).view(*y.shape[:2], self.heads, -1) for part, y in ((self.k, keys), (self.v, kv))
        )
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y = self.out(y.transpose(1, 2).reshape(pictures * self.queries, -1), of_queries)
        return self.proj(self.out_norm(y), of_queries)

    def arrange(self, tokens: Tensor, order: Tensor) -> Tensor:
        return tokens.index_select(0, order)
