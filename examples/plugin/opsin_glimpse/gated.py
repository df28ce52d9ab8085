"""The torch half of the fusion: visual tokens are added to their placeholders through a learned gate, 0 at first."""

from torch import Tensor

from opsin_plugins.blocks.fusion import Fusion, Visual
from opsin_plugins.blocks.layers import parameter
from opsin_plugins.spec import ModelSpec


class GatedScatterFusion(Fusion):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = parameter(width)

    def on_embeddings(self, x: Tensor, visual: Visual) -> Tensor:
        return x.index_add(0, visual.rows, (self.gate.tanh() * visual.tokens).to(x.dtype))


def build(spec: ModelSpec) -> Fusion:
    return GatedScatterFusion(spec.decoder.width)
