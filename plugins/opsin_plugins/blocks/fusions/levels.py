"""levels: like scatter, and features of earlier tower layers are added after the first decoder layers. Source: arXiv
2406.04334 (DeepStack), as Qwen3-VL has it."""

from __future__ import annotations

from torch import Tensor

from opsin_plugins.blocks.fusion import Context, Fusion, Visual
from opsin_plugins.spec import ModelSpec


class LevelsFusion(Fusion):
    """tokens hold 1 + levels parts of the decoder's width side by side; part 1 + i is added after layer i."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.width, self.layers = width, frozenset(range(levels))

    def on_embeddings(self, x: Tensor, visual: Visual) -> Tensor:
        return x.index_copy(0, visual.rows, visual.tokens[:, : self.width].to(x.dtype))

    def after_layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        if context.visual is None:
            return x
        part = context.visual.tokens[:, (layer + 1) * self.width : (layer + 2) * self.width]
        return x.index_add(0, context.visual.rows, part.to(x.dtype))


def build(spec: ModelSpec) -> Fusion:
    assert spec.vision is not None
    return LevelsFusion(spec.decoder.width, len(spec.vision.taps))
