"""The plugin contract, api version 1: everything a third party imports, and nothing else.

A model family is an `Architecture`: a torch-free declaration. From a checkpoint's configuration it makes a frozen
`ModelSpec`; the host builds the one decoder and the one tower from it (`opsin_plugins.blocks`), serves and trains
them. What the two wings of the server exchange about a prompt (`VisualItem`, `Expanded`, positions) is numpy.

Shapes: T tokens, N patches, H model width, A position axes (1, or 3 for M-RoPE).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

API_VERSION = 1

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]
Norm = Literal["layer", "rms"]
Grid = tuple[int, int, int]  # frames (or tiles), rows, columns in patches
Config = Mapping[str, object]  # a published configuration, or a part of one
Encode = Callable[[str], Sequence[int]]  # text to ids; the strings of special tokens become these tokens


class SpecError(ValueError):
    """A configuration or an input that this family cannot take; the message names the value."""


# --------------------------------------------------------------------------------------- what a model is


@dataclass(frozen=True)
class RopeScaling:
    """Frequencies stretched for contexts longer than the model was first trained on; `opsin_plugins.rope` computes
    them.

    linear: all divided by `factor`. llama3: low ones divided, high ones kept, a blend between (arXiv 2407.21783).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    trained: int = 8192  # positions of the first training


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the decoder, half-split layout.

    sections: frequencies per position axis (M-RoPE); their sum is head_dim / 2. Empty: one axis. interleaved: the axes
    take turns along the frequencies, the first has what is left over; else each has a chunk.
    ntk_from: prompts longer than this stretch theta by their length (dynamic NTK); 0: never.
    """

    theta: float
    sections: tuple[int, ...] = ()
    interleaved: bool = False
    scaling: RopeScaling | None = None
    ntk_from: int = 0

    def stretch(self, prompt: int) -> int:
        """Of a prompt of so many tokens: 1, or 2^(k + 1) - 1 when it is longer than `ntk_from` and at most 2^k times
        that. It holds for the whole answer, so its keys never have to be turned again."""
        if not self.ntk_from or prompt <= self.ntk_from:
            return 1
        return 2 ** (math.ceil(math.log2(prompt / self.ntk_from)) + 1) - 1


@dataclass(frozen=True)
class DecoderSpec:
    """A pre-norm causal decoder: RMS norm, grouped-query attention, gated MLP.

    `layers` counts all; at those in `replaced` a fusion stands in for the decoder's own, which is not built.
    """

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
    head_norm: bool = False  # queries and keys are normalised head by head
    tied: bool = False  # the output head is the embedding
    extra_embeddings: int = 0  # rows of the embedding past the vocabulary, for ids that are read and never written
    replaced: tuple[int, ...] = ()
    log_scale_from: int = 0  # queries at positions past this are scaled by log(position) / log(this); 0: none are

    @property
    def embeddings(self) -> int:
        """Every id of a prompt is below this."""
        return self.vocab + self.extra_embeddings

    @property
    def own_layers(self) -> int:
        """Layers that keep keys and values of the tokens themselves."""
        return self.layers - len(self.replaced)


@dataclass(frozen=True)
class TowerSpec:
    """A vision transformer over patches, with full attention within a frame (or a window of it).

    `layers` counts the layers that run: layers past the feature that is taken are not built.
    position: "axial_rope" turns queries and keys by row and column; "staggered_rope" too, columns with the frequencies
    between those of the rows; "learned" adds a table of `positions` rows, one a place; "resized" a square table that is
    stretched to the grid; "resized_rope" a square table stretched from corner to corner, and the turns of "axial_rope";
    "bucketed" the row that lies at the same fraction of a square table.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    patch: int
    norm_eps: float
    activation: Activation
    position: Literal["axial_rope", "staggered_rope", "learned", "resized", "resized_rope", "bucketed"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    temporal: int = 1  # frames that one patch spans; a still picture fills all of them
    positions: int = 0
    theta: float = 10000.0
    class_token: bool = False
    keep_class_token: bool = False
    pre_norm: bool = False
    post_norm: bool = False
    patch_bias: bool = False
    channels: int = 3
    norm: Norm = "layer"
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    window: int = 0  # patches a side that attend to each other; 0: the whole frame
    whole_layers: tuple[int, ...] = ()  # with a window: the layers that see the whole frame
    taps: tuple[int, ...] = ()  # layers whose outputs are handed on as well

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise SpecError(f"a tower of width {self.width} cannot have {self.heads} heads of even size")
        if "rope" in self.position and self.width // self.heads % 4:
            raise SpecError(f"a head of {self.width // self.heads} values cannot turn by row and column (not 4 · n)")

    @property
    def patch_dim(self) -> int:
        """Values of one patch of one frame: channels × patch × patch, the order of a VisualItem's pixels."""
        return self.channels * self.patch * self.patch


@dataclass(frozen=True)
class TiledTowerSpec(TowerSpec):
    """A tower that sees up to `max_tiles` tiles of one picture together (Llama 3.2 Vision).

    Gated tables give each tile its place by the arrangement of the tiles; `global_layers` more layers with gates follow
    the `layers` first ones. The output is the last state and the taps, width · (1 + taps) values a patch.
    """

    max_tiles: int = 4
    global_layers: int = 0
    arrangements: tuple[tuple[int, int], ...] = ()  # (rows, columns) of tiles; the tables know them by their index
    keep_padding: bool = False  # hand on the rows of padding tiles as well, behind the real ones


@dataclass(frozen=True)
class ProjectorSpec:
    """From tower features to decoder width: normalise (optional), join `merge`² neighbours, one or two linear layers.

    hidden: width between the two linear layers; 0: there is one only. joined: the width to which joined neighbours are
    brought by a linear layer of their own first; 0: none. newline: a learned visual token that ends a row.
    """

    in_width: int
    hidden: int
    out_width: int
    activation: Activation
    merge: int = 1
    norm: Norm = "layer"
    norm_eps: float | None = None
    bias: bool = True
    joined: int = 0
    newline: bool = False
    builder: str = "opsin_plugins.blocks.projector:Projector"  # called with this spec


@dataclass(frozen=True)
class LevelsProjectorSpec(ProjectorSpec):
    """Beside the projector itself, one for each of the tower's taps, which normalises after neighbours are joined."""

    levels: int = 0
    builder: str = "opsin_plugins.blocks.projector:LevelsProjector"


@dataclass(frozen=True)
class ResamplerSpec(ProjectorSpec):
    """A fixed number of learned queries that attend to the tower's features (Qwen-VL)."""

    queries: int = 256
    heads: int = 32
    builder: str = "opsin_plugins.blocks.resampler:Resampler"


@dataclass(frozen=True)
class ImageSpec:
    """How pictures become patches (resolved preprocessor configuration). Part of every image digest.

    resize: "smart" keeps the ratio within a pixel budget; "crop" brings the shortest edge to a size and cuts the
    centre; "stretch" ignores the ratio; "longest" bounds the longest edge and rounds up to whole patches; "tiles" cuts
    a larger picture into tiles, by the family's own rule.
    """

    resize: Literal["smart", "crop", "stretch", "longest", "tiles"]
    resample: int  # PIL's number: 1 Lanczos, 2 bilinear, 3 bicubic
    patch: int
    merge: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    size: tuple[int, int] = (0, 0)  # crop, stretch: height and width; tiles: of one tile
    shortest_edge: int = 0
    longest_edge: int = 0
    pinpoints: tuple[tuple[int, int], ...] = ()  # tiles: the canvases there are, height and width
    split: bool = True  # tiles: whether a picture larger than one is cut, or shrunk to one

    @property
    def resizable(self) -> bool:
        """Whether a budget can make an image smaller."""
        return self.resize in ("smart", "longest") or (self.resize == "tiles" and self.split)


@dataclass(frozen=True)
class MemorySpec:
    """Cross-attention to visual tokens, in place of the decoder's layers `DecoderSpec.replaced`.

    attend_before: whether rows before the first image attend to all of the request's images, as transformers lets them;
    they see none in the published model's own code. max_rows: visual tokens of the largest image.
    """

    max_rows: int
    attend_before: bool = False


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
    memory: MemorySpec | None = None  # of the fusion "memory" alone

    def __post_init__(self) -> None:
        parts = (self.vision, self.projector, self.image, self.fusion, self.encoder, self.image_token)
        if any(p is None for p in parts) and any(p is not None for p in parts):
            raise SpecError(f"{self.family}: a model has all vision parts or none, got {parts}")
        if self.image_token is not None and self.image_token >= self.decoder.embeddings:
            raise SpecError(f"image token {self.image_token} is outside of the {self.decoder.embeddings} embeddings")


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
    preprocessor: Mapping[str, object] | None = None  # the image processor's settings; None: they are nowhere
    generation: Mapping[str, object] = field(default_factory=dict)
    tokenizer_config: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # weight files beside those that are read
    options: Mapping[str, str] = field(default_factory=dict)  # what the operator asked of the family (--model-option)


# Weight rules. A name is a pattern: `{i}` stands for a layer number and `{rest}` for any tail; the same on both sides.


@dataclass(frozen=True)
class Prefix:
    """A published dialect: a key that starts with `old` is read as if it started with `new`. The first match counts."""

    old: str
    new: str


@dataclass(frozen=True)
class Reorder:
    """A published tensor whose rows or columns stand in another order: dimension `axis` is read as `shape`, its parts
    are put into `order`, and it is flat again. axis None: the tensor's own dimensions are put into `order`."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    axis: int | None = 0


@dataclass(frozen=True)
class Rename:
    source: str
    target: str
    reorder: Reorder | None = None


@dataclass(frozen=True)
class Concat:
    """Several tensors stacked by rows into one (q, k, v into one fused linear). reorder: one a source, or none at
    all."""

    sources: tuple[str, ...]
    target: str
    reorder: tuple[Reorder | None, ...] = ()


@dataclass(frozen=True)
class Split:
    """One tensor cut by rows into several (the opposite of Concat): each target takes as many rows as it has."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Ignore:
    """A key that the model has no use for, and why (a tied head saved twice, a buffer, a layer past the feature)."""

    source: str
    why: str


Rule = Prefix | Rename | Concat | Split | Ignore
Pattern = re.Pattern[str]


# -------------------------------------------------------------------------------------- what a prompt is


@dataclass(frozen=True)
class ImageBudget:
    """What a request and the server's operator allow one image, for families that can resize.

    max_pixels, max_tokens: at most so many after resizing, as far as the family's smallest form allows; None: no limit
    but the model's own.
    """

    max_pixels: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class VisualItem:
    """One preprocessed image.

    pixels: U8 [N, C·p·p], one frame's patches in the tower's order; the stem normalises on the device.
    grid: (frames or tiles, rows, columns) in patches. rows: visual tokens it becomes. digest: set by the host.
    tiles: how the tiles lie, (rows, columns); the grid may have one more (a view of the whole picture).
    arrange: I32 [rows], which projected feature each visual token is, -1 for the newline; None: as they come.
    hidden: how many rows, at the end, only those rows of the prompt see that stand before any image.
    """

    pixels: U8
    grid: Grid
    rows: int
    digest: bytes = b""
    tiles: tuple[int, int] = (1, 1)
    arrange: I32 | None = None
    hidden: int = 0


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
    """ids I32 [T] with every placeholder at its full length; spans in the order of the prompt.

    memory: I32 [T, 2] for cross-attention only: row t attends to the visual items lo to hi - 1 (none where they are
    equal; lo = -1: before any image, see MemorySpec). hi never falls, and the last row's range is that of the answer.
    """

    ids: I32
    spans: tuple[Span, ...]
    memory: I32 | None = None


class Architecture(Protocol):
    """A model family. Its entry point is named after what it claims (see `registry`); instances hold no state.

    It may have one method more, which no server calls: `example(self) -> ModelFiles | None`, a tiny configuration
    (config, preprocessor, options; no tensors) that `opsin plugins check` fills with random weights. None, or no such
    method: the plugin brings no example, and little of it can be checked.
    """

    api_version: int
    name: str

    def spec(self, files: ModelFiles) -> ModelSpec:
        """The frozen description of the model. Raises SpecError naming what cannot be served."""

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        """Total: every key of every published dialect maps, or loading fails."""

    def preprocess(self, images: Sequence[U8], spec: ModelSpec, budget: ImageBudget) -> Sequence[VisualItem]:
        """images: U8 [H, W, 3], RGB. One item each. Raises SpecError for a picture the model cannot take."""

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        """Writes each placeholder at its full length. Raises SpecError when their numbers differ. encode: the model's
        tokenizer, for families that write more than placeholders."""

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        """Positions I32 [A, T], and the delta: token number t past the prompt has position t + delta on every axis."""

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        """`part.component` (vision, projector, language, cross × attention, mlp) to a pattern over published names."""

    def chat_template(self, files: ModelFiles) -> str | None:
        """A template for directories without one; None: there is none, and the directory must bring its own."""


class VisionEncoder(Protocol):
    """The torch-free half of a vision encoder, and the name of the builder that only the engine imports."""

    api_version: int
    name: str
    builder: str  # "package.module:function", called with the TowerSpec, ImageSpec.merge and how linears are quantized

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        """preprocessor: the image processor's settings; None: the checkpoint has none."""

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec: ...

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """U8 [H, W, 3] to (patches U8 [N, C·p·p], grid)."""

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        """Rules from canonical names under `prefix` to the tower's own names under `vision.`."""


class FusionStrategy(Protocol):
    """How visual tokens enter the decoder: the name of a builder, "package.module:function", called with the ModelSpec
    and with how linears are quantized. One that stores what rows attend to sets `ModelSpec.memory`."""

    api_version: int
    name: str
    builder: str
