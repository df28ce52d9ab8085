"""scatter: visual tokens overwrite the embeddings of their placeholders. Source: arXiv 2304.08485 (LLaVA)."""

from __future__ import annotations

from torch import Tensor

from opsin_plugins.blocks.fusion import Fusion, Visual
from opsin_plugins.spec import ModelSpec


class ScatterFusion(Fusion):
    def on_embeddings(self, x: Tensor, visual: Visual) -> Tensor:
        return x.index_copy(0, visual.rows, visual.tokens.to(x.dtype))


def build(spec: ModelSpec) -> Fusion:
    return ScatterFusion()
