"""What a model is: the frozen description that the host builds decoder, tower and projector from.

Shapes: T tokens, N patches, H model width, A position axes (1, or 3 for M-RoPE).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from opsin_plugins.spec.base_types import Activation, Norm, SpecError
from opsin_plugins.spec.linears import LinearShape, attention_linears, mlp_linears, under
from opsin_plugins.spec.videos import VideoSpec


@dataclass(frozen=True)
class RopeScaling:
    """Frequencies stretched for contexts longer than the model was first trained on; `opsin_plugins.rope` computes
    them.

    linear: all divided by `factor`. factors: each by its own, head_dim / 2 of them. llama3: low ones divided, high
    ones kept, a blend between (arXiv 2407.21783).
    """

    kind: Literal["linear", "llama3", "factors"]
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    trained: int = 8192  # positions of the first training
    factors: tuple[float, ...] = ()


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

    def linears(self) -> dict[str, LinearShape]:
        """Of its own layers, and the head, tied or not."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            **under("attention", attention_linears(self.width, query, key_value)),
            **under("mlp", mlp_linears(self.width, self.mlp, self.width, gated=True)),
        }
        own = (i for i in range(self.layers) if i not in self.replaced)
        found = {name: shape for i in own for name, shape in under(f"layers.{i}", layer).items()}
        return {**found, "head": LinearShape(self.width, (self.vocab,))}


@dataclass(frozen=True)
class TowerSpec:
    """A vision transformer over patches, with full attention within a frame (or a window of it).

    `layers` counts the layers that run: layers past the feature that is taken are not built.
    position: "axial_rope" turns queries and keys by row and column; "staggered_rope" too, columns with the frequencies
    between those of the rows; "learned" adds a table of `positions` rows, one a place; "resized" a square table that is
    stretched to the grid; "resized_rope" a square table stretched from corner to corner, and the turns of "axial_rope";
    "smoothed" a square table stretched bilinearly, over all entries that a place covers where it shrinks;
    "bucketed" the row that lies at the same fraction of a square table.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    patch: int
    norm_eps: float
    activation: Activation
    position: Literal["axial_rope", "staggered_rope", "learned", "resized", "resized_rope", "smoothed", "bucketed"]
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
    flat_patches: bool = False  # the patch embedding is published as a linear layer

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise SpecError(f"a tower of width {self.width} cannot have {self.heads} heads of even size")
        if "rope" in self.position and self.width // self.heads % 4:
            raise SpecError(f"a head of {self.width // self.heads} values cannot turn by row and column (not 4 · n)")

    @property
    def patch_dim(self) -> int:
        """Values of one patch of one frame: channels × patch × patch, the order of a VisualItem's pixels."""
        return self.channels * self.patch * self.patch

    def linears(self) -> dict[str, LinearShape]:
        """Of all layers. The patch embedding is a convolution, and not among them."""
        return self._layers("layers", self.layers)

    def _layers(self, name: str, count: int) -> dict[str, LinearShape]:
        layer = {
            **under("attention", attention_linears(self.width, self.width, self.width)),
            **under("mlp", mlp_linears(self.width, self.mlp, self.width, self.gated_mlp)),
        }
        return {linear: shape for i in range(count) for linear, shape in under(f"{name}.{i}", layer).items()}


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

    def linears(self) -> dict[str, LinearShape]:
        return {**super().linears(), **self._layers("global_layers", self.global_layers)}


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

    def linears(self) -> dict[str, LinearShape]:
        """All that the builder's module has."""
        neighbours = self.in_width * self.merge**2
        width = self.joined or neighbours
        join = {"join": LinearShape(neighbours, (self.joined,))} if self.joined else {}
        if not self.hidden:
            return {**join, "mlp": LinearShape(width, (self.out_width,))}
        return {**join, **under("mlp", mlp_linears(width, self.hidden, self.out_width, gated=False))}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """All that the builder's module has, by name: what an adapter that holds a trained projector may bring."""
        found = self._of_linears({name for name in self.linears() if name != "join"} if self.bias else ())
        if self.norm_eps is not None:
            found |= self._of_norm("norm", self.in_width)
        return found | ({"newline": (self.out_width,)} if self.newline else {})

    def _of_linears(self, biased: Collection[str]) -> dict[str, tuple[int, ...]]:
        shapes = self.linears()
        found: dict[str, tuple[int, ...]] = {f"{name}.weight": (s.outputs, s.inputs) for name, s in shapes.items()}
        return found | {f"{name}.bias": (shapes[name].outputs,) for name in biased}

    def _of_norm(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{kind}": (width,) for kind in (("weight", "bias") if self.norm == "layer" else ("weight",))}


@dataclass(frozen=True)
class LevelsProjectorSpec(ProjectorSpec):
    """Beside the projector itself, one for each of the tower's taps, which normalises after neighbours are joined."""

    levels: int = 0
    builder: str = "opsin_plugins.blocks.projector:LevelsProjector"

    def linears(self) -> dict[str, LinearShape]:
        level = under("mlp", mlp_linears(self.in_width * self.merge**2, self.hidden, self.out_width, gated=False))
        levels = {name: shape for i in range(self.levels) for name, shape in under(f"levels.{i}", level).items()}
        return {**super().linears(), **levels}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        joined = self.in_width * self.merge**2
        norms = {
            key: shape for i in range(self.levels) for key, shape in self._of_norm(f"levels.{i}.norm", joined).items()
        }
        return super().parameters() | norms


@dataclass(frozen=True)
class ResamplerSpec(ProjectorSpec):
    """A fixed number of learned queries that attend to the tower's features (Qwen-VL)."""

    queries: int = 256
    heads: int = 32
    builder: str = "opsin_plugins.blocks.resampler:Resampler"

    def linears(self) -> dict[str, LinearShape]:
        square = LinearShape(self.out_width, (self.out_width,))
        return {
            "kv_in": LinearShape(self.in_width, (self.out_width,)),
            **dict.fromkeys(("q", "k", "v", "out", "proj"), square),
        }

    def parameters(self) -> dict[str, tuple[int, ...]]:
        norms = [self._of_norm(name, self.out_width) for name in ("query_norm", "kv_norm", "out_norm")]
        learned = dict.fromkeys(("query", "positions"), (self.queries, self.out_width))
        return {
            **self._of_linears(("q", "k", "v", "out")),
            **{k: v for norm in norms for k, v in norm.items()},
            **learned,
        }


@dataclass(frozen=True)
class ImageSpec:
    """How pictures become patches (resolved preprocessor configuration). Part of every image digest.

    resize: "smart" keeps the ratio within a pixel budget; "crop" brings the shortest edge to a size and cuts the
    centre; "stretch" ignores the ratio; "longest" bounds the longest edge and rounds up to whole patches; "tiles" cuts
    a larger picture into tiles, by the family's own rule; "filled" scales a picture until its whole patches fill the
    pixels that there may be.
    """

    resize: Literal["smart", "crop", "stretch", "longest", "tiles", "filled"]
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
class CrossSpec:
    """Cross-attention to visual tokens, in place of the decoder's layers `DecoderSpec.replaced`.

    attend_before: whether rows before the first image attend to all of the request's images, as transformers lets them;
    they see none in the published model's own code. max_tokens: visual tokens of the largest image.
    """

    max_tokens: int
    attend_before: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """Everything the host needs to build, feed and check one model. no_video: why it takes no videos, where its family
    does and its files stand against it."""

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
    cross: CrossSpec | None = None  # of the fusion "cross_attention" alone
    video: VideoSpec | None = None
    video_token: int | None = None  # the placeholder that a template writes once per video
    no_video: str = ""

    def __post_init__(self) -> None:
        parts = (self.vision, self.projector, self.image, self.fusion, self.encoder, self.image_token)
        if any(p is None for p in parts) and any(p is not None for p in parts):
            raise SpecError(f"{self.family}: a model has all vision parts or none, got {parts}")
        if self.image_token is not None and self.image_token >= self.decoder.embeddings:
            raise SpecError(f"image token {self.image_token} is outside of the {self.decoder.embeddings} embeddings")
        if (self.video is None) != (self.video_token is None):
            raise SpecError(f"{self.family}: a model has a VideoSpec and a video token or neither")
        if self.video_token is not None and self.video_token >= self.decoder.embeddings:
            raise SpecError(f"video token {self.video_token} is outside of the {self.decoder.embeddings} embeddings")
