"""What a fusion may do: act on the embeddings, before a layer, after it, or in its place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Visual:
    """The visual tokens of one packed batch. tokens [M, H]; rows I64 [M]: which packed row each belongs to."""

    tokens: Tensor
    rows: Tensor


class Fusion(nn.Module):
    """Does nothing; a strategy overrides the points at which it acts. x is [T, H] everywhere.

    in_layers: whether the layer points act at all. Where False the decoder skips them: 3 calls a layer are 4 µs, which
    a small model's decode step would notice.
    """

    in_layers = False

    def on_embeddings(self, x: Tensor, visual: Visual) -> Tensor:
        return x

    def before_layer(self, layer: int, x: Tensor) -> Tensor:
        return x

    def replace_layer(self, layer: int, x: Tensor) -> Tensor | None:
        """None: the decoder's own layer runs."""
        return None

    def after_layer(self, layer: int, x: Tensor) -> Tensor:
        return x
