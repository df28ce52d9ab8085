"""What a fusion may do: act on the embeddings, before a layer, after it, or in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from opsin_kernels.cross_attention import CrossRuns
from opsin_plugins.blocks.lora import Lora


@dataclass(frozen=True)
class Visual:
    """The visual tokens of one packed batch. tokens [M, H · (1 + levels)]; rows I64 [M]: the packed row of each."""

    tokens: Tensor
    rows: Tensor


@dataclass(frozen=True)
class CrossInputs:
    """What the rows of one packed batch attend to outside of their sequence.

    runs: rows that see the same visual tokens, in order. rows I64 [R]: which packed rows those are; None: all. before:
    bool [R], rows before the first image (see CrossSpec). sees: bool [R], rows that see anything; None: all do. pool: a
    layer's keys and values [P, 2K, D], serving; states [P, H]: the visual tokens themselves, training, from which every
    layer makes its own. lora: of the rows [R], where they are not all; lora_of_states: of the visual tokens.
    """

    runs: CrossRuns
    rows: Tensor | None = None
    before: Tensor | None = None
    sees: Tensor | None = None
    pool: Sequence[Tensor] | None = None
    states: Tensor | None = None
    lora: Lora | None = None
    lora_of_states: Lora | None = None


@dataclass(frozen=True)
class Context:
    """A batch as the layer points see it."""

    visual: Visual | None = None
    cross: CrossInputs | None = None
    lora: Lora | None = None


class Fusion(nn.Module):
    """Does nothing; a strategy overrides the points at which it acts. x is [T, H] everywhere.

    layers: where the layer points act. Elsewhere the decoder skips them: 3 calls a layer are 4 µs, which a small
    model's decode step would notice.
    """

    layers: frozenset[int] = frozenset()

    def keys_values(self, tokens: Tensor, lora: Lora | None = None) -> list[Tensor]:
        """Of a model with cross-attention (ModelSpec.cross): what each of `DecoderSpec.replaced` keeps of visual
        tokens [M, H], [M, 2K, D], keys first. lora: of the visual tokens, a run each picture."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing of visual tokens")

    def on_embeddings(self, x: Tensor, visual: Visual) -> Tensor:
        return x

    def before_layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        return x

    def replace_layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        """At the layers that the decoder does not build itself, `DecoderSpec.replaced`."""
        return x

    def after_layer(self, layer: int, x: Tensor, context: Context) -> Tensor:
        return x
