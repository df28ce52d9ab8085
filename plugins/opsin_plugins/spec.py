"""The plugin contract, api version 1: everything a third party imports, and nothing else.

A model family is an `Architecture`: a torch-free declaration. From a checkpoint's configuration it makes a frozen
`ModelSpec`; the host builds the one decoder and the one tower from it (`opsin_plugins.blocks`), serves and trains
them. What the two wings of the server exchange about a prompt (`VisualItem`, `Expanded`, positions) is numpy.

Shapes: T tokens, N patches, H model width, A position axes (1, or 3 for M-RoPE).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

API_VERSION = 1

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]


class SpecError(ValueError):
    """A configuration or an input that this family cannot take; the message names the value."""


# --------------------------------------------------------------------------------------- what a model is


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the decoder, half-split layout.

    sections: frequencies per position axis (M-RoPE, chunked); their sum is head_dim / 2. Empty: one axis.
    """

    theta: float
    sections: tuple[int, ...] = ()


@dataclass(frozen=True)
class DecoderSpec:
    """A pre-norm causal decoder: RMS norm, grouped-query attention, gated MLP."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm_eps: float
    rope: RopeSpec
    activation: Activation = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False  # the output head is the embedding


@dataclass(frozen=True)
class TowerSpec:
    """A vision transformer over patches: LayerNorm, full attention within an image, plain MLP.

    `layers` counts the layers that run: layers past the feature that is taken are not built.
    position: "axial_rope" turns queries and keys by row and column; "learned" adds a table of `positions` rows.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    patch: int
    norm_eps: float
    activation: Activation
    position: Literal["axial_rope", "learned"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    temporal: int = 1  # frames that one patch spans; a still picture fills all of them
    positions: int = 0
    theta: float = 10000.0
    class_token: bool = False
    keep_class_token: bool = False
    pre_norm: bool = False
    patch_bias: bool = False
    channels: int = 3

    @property
    def patch_dim(self) -> int:
        """Values of one patch of one frame: channels × patch × patch, the order of a VisualItem's pixels."""
        return self.channels * self.patch * self.patch


@dataclass(frozen=True)
class ProjectorSpec:
    """From tower features to decoder width: normalise (optional), join `merge`² neighbours, two linear layers."""

    in_width: int
    hidden: int
    out_width: int
    activation: Activation
    merge: int = 1
    norm_eps: float | None = None
    bias: bool = True


@dataclass(frozen=True)
class ImageSpec:
    """How pictures become patches (resolved preprocessor configuration). Part of every image digest."""

    resize: Literal["smart", "crop"]  # smart: keep the ratio within a pixel budget; crop: shortest edge, then centre
    resample: int  # PIL's number: 2 bilinear, 3 bicubic
    patch: int
    merge: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    size: tuple[int, int] = (0, 0)  # crop: height and width
    shortest_edge: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """Everything the host needs to build, feed and check one model."""

    family: str
    decoder: DecoderSpec
    vision: TowerSpec | None
    projector: ProjectorSpec | None
    image: ImageSpec | None
    fusion: str | None  # the name of a registered fusion
    encoder: str | None  # the name of the registered encoder that builds the tower
    image_token: int | None  # the placeholder that a template writes once per image
    eos: tuple[int, ...]
    max_positions: int

    def __post_init__(self) -> None:
        parts = (self.vision, self.projector, self.image, self.fusion, self.encoder, self.image_token)
        if any(p is None for p in parts) and any(p is not None for p in parts):
            raise SpecError(f"{self.family}: a model has all vision parts or none, got {parts}")


# ---------------------------------------------------------------------------------- what a checkpoint is


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, from its header."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, F16, I8, ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint directory, read without touching weights or running anything in it."""

    directory: Path
    config: Mapping[str, object]
    preprocessor: Mapping[str, object] = field(default_factory=dict)
    generation: Mapping[str, object] = field(default_factory=dict)
    tokenizer_config: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)


# Weight rules. A name is a pattern: `{i}` stands for a layer number and `{rest}` for any tail; the same on both sides.


@dataclass(frozen=True)
class Prefix:
    """A published dialect: a key that starts with `old` is read as if it started with `new`. The first match counts."""

    old: str
    new: str


@dataclass(frozen=True)
class Rename:
    source: str
    target: str


@dataclass(frozen=True)
class Concat:
    """Several tensors stacked by rows into one (q, k, v into one fused linear)."""

    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Ignore:
    """A key that the model has no use for, and why (a tied head saved twice, a buffer, a layer past the feature)."""

    source: str
    why: str


Rule = Prefix | Rename | Concat | Ignore
Pattern = re.Pattern[str]


# -------------------------------------------------------------------------------------- what a prompt is


@dataclass(frozen=True)
class ImageBudget:
    """A request's wish for one image. max_pixels: at most so many after resizing; None: the model's own limit."""

    max_pixels: int | None = None


@dataclass(frozen=True)
class VisualItem:
    """One preprocessed image.

    pixels: U8 [N, C·p·p], one frame's patches in the tower's order; the stem normalises on the device.
    grid: (frames, rows, columns) in patches. rows: visual tokens it becomes. digest: set by the host.
    """

    pixels: U8
    grid: tuple[int, int, int]
    rows: int
    digest: bytes = b""


@dataclass(frozen=True)
class Span:
    """Where an image sits in the expanded prompt.

    All `length` ids from `start` belong to `item`; visual_rows[k] says whether id k is overwritten by a visual token
    (None: every one). bidirectional: the span attends to itself both ways, so no chunk may split it.
    """

    start: int
    length: int
    item: int
    visual_rows: tuple[bool, ...] | None = None
    bidirectional: bool = False


@dataclass(frozen=True)
class Expanded:
    """ids I32 [T] with every placeholder at its full length; memory_range I32 [T, 2] only for cross-attention."""

    ids: I32
    spans: tuple[Span, ...]
    memory_range: I32 | None = None


class Architecture(Protocol):
    """A model family. Its entry point is named after what it claims (see `registry`); instances hold no state."""

    api_version: int
    name: str

    def spec(self, files: ModelFiles) -> ModelSpec:
        """The frozen description of the model. Raises SpecError naming what cannot be served."""

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        """Total: every key of every published dialect maps, or loading fails."""

    def preprocess(self, images: Sequence[U8], spec: ModelSpec, budget: ImageBudget) -> Sequence[VisualItem]:
        """images: U8 [H, W, 3], RGB. One item each. Raises SpecError for a picture the model cannot take."""

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec) -> Expanded:
        """Writes each placeholder at its full length. Raises SpecError when their numbers differ."""

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        """Positions I32 [A, T], and the delta: token number t past the prompt has position t + delta on every axis."""

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        """`part.component` (vision | projector | language × attention | mlp) to a pattern over published names."""

    def chat_template(self, files: ModelFiles) -> str | None:
        """A template for directories without one; None: there is none, and the directory must bring its own."""


class VisionEncoder(Protocol):
    """The torch-free half of a vision encoder, and the name of the builder that only the engine imports."""

    api_version: int
    name: str
    builder: str  # "package.module:function", called with the TowerSpec

    def spec(self, config: Mapping[str, object], preprocessor: Mapping[str, object]) -> TowerSpec: ...

    def image(self, spec: TowerSpec, config: Mapping[str, object], preprocessor: Mapping[str, object]) -> ImageSpec: ...

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, tuple[int, int, int]]:
        """U8 [H, W, 3] to (patches U8 [N, C·p·p], grid)."""

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        """Rules from canonical names under `prefix` to the tower's own names under `vision.`."""


class FusionStrategy(Protocol):
    """How visual tokens enter the decoder: the name of a builder, "package.module:function" of the ModelSpec."""

    api_version: int
    name: str
    builder: str
