"""What a dual encoder is: a text tower and a vision tower whose outputs lie in one space (CLIP, SigLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opsin_plugins.spec.base_types import Activation, Norm, SpecError
from opsin_plugins.spec.model_spec import ImageSpec, TowerSpec


@dataclass(frozen=True)
class TextTowerSpec:
    """A transformer over token ids with learned positions, whose pooled state is projected.

    pool: which token's state stands for the text. "eos": the first with the id `eos`; "largest": the first with the
    largest id of the text; "last": the last one.
    fills: whether a text is filled up to `context`, with the tokenizer's padding token, or `pad` where that names none;
    else texts keep their own length.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    mlp: int
    context: int
    norm_eps: float
    activation: Activation
    causal: bool
    pool: Literal["eos", "largest", "last"]
    out: int  # values of an embedding
    out_bias: bool = False
    eos: int = -1
    fills: bool = False
    pad: int = 0
    norm: Norm = "layer"
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SpecError(f"a text tower of width {self.width} cannot have {self.heads} heads")
        if not 0 <= self.pad < self.vocab:
            raise SpecError(f"the padding token {self.pad} is outside of the {self.vocab} embeddings of the text tower")
        if self.pool == "eos" and not 0 <= self.eos < self.vocab:
            raise SpecError(f"eos_token_id {self.eos} is outside of the {self.vocab} embeddings of the text tower")


@dataclass(frozen=True)
class DualEncoderSpec:
    """Everything the host needs to build, feed and check a dual encoder. encoder: the name of the registered vision
    encoder that builds the tower.

    pool: what stands for a picture. "class_token": the class token's feature; "attention": what one learned query
    gathers of all features. projected: whether a linear layer follows.
    """

    family: str
    text: TextTowerSpec
    vision: TowerSpec
    image: ImageSpec
    encoder: str
    pool: Literal["class_token", "attention"]
    projected: bool

    def __post_init__(self) -> None:
        if not self.projected and self.vision.width != self.text.out:
            raise SpecError(
                f"{self.family}: pictures have {self.vision.width} values and texts {self.text.out}; both must be one"
            )

    @property
    def dimensions(self) -> int:
        """Values of an embedding."""
        return self.text.out
