"""What a plugin is: a model family, a vision encoder, a fusion, a dual encoder. All are torch-free halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from opsin_plugins.spec.base_types import I32, U8, Config, Encode, Grid, Pattern
from opsin_plugins.spec.dual_encoder_spec import DualEncoderSpec
from opsin_plugins.spec.encoder_spec import EncoderSpec
from opsin_plugins.spec.model_files import ModelFiles
from opsin_plugins.spec.model_spec import ImageSpec, ModelSpec, TowerSpec
from opsin_plugins.spec.videos import Clip, VideoBudget, VideoPlan, VideoSource
from opsin_plugins.spec.visual_items import Expanded, ImageBudget, VisualItem
from opsin_plugins.spec.weight_rules import Rule


class Architecture(Protocol):
    """A model family. Its entry point is named after what it claims (see `loading.registry`); instances hold no state.

    It may have `options`, the names of `--model-option` and the values of each; a family without is asked for none.
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
        """`part.component` (vision, projector, language, cross × attention, mlp) to a pattern over published names.

        A family whose models are published under other names as well, by which adapters may name their layers, has
        `other_names(self, spec: ModelSpec) -> Sequence[PublishedNames]`.
        """

    def chat_template(self, files: ModelFiles) -> str | None:
        """A template for directories without one; None: there is none, and the directory must bring its own."""


@runtime_checkable
class TakesVideos(Protocol):
    """What a family has beside an `Architecture`, whose models set `ModelSpec.video`."""

    def plan_video(self, source: VideoSource, spec: ModelSpec, budget: VideoBudget) -> VideoPlan:
        """Which frames are taken. Raises SpecError for a video the model cannot take."""

    def preprocess_video(self, clip: Clip, spec: ModelSpec) -> VisualItem: ...


class VisionEncoder(Protocol):
    """The torch-free half of a vision encoder, and the name of the builder that only the engine imports.

    One whose tower has other linears than `TowerSpec.linears` says has `linears(self, spec: TowerSpec) -> Linears` as
    well.
    """

    api_version: int
    name: str  # that of its entry point
    builder: str  # "package.module:function", called with the TowerSpec and ImageSpec.merge
    claims: EncoderSpec

    def spec(self, config: Config, preprocessor: Config | None) -> TowerSpec:
        """preprocessor: the image processor's settings; None: the checkpoint has none."""

    def image(self, spec: TowerSpec, config: Config, preprocessor: Config | None) -> ImageSpec: ...

    def preprocess(self, image: U8, image_spec: ImageSpec, budget: ImageBudget) -> tuple[U8, Grid]:
        """U8 [H, W, 3] to (patches U8 [N, C·p·p], grid)."""

    def weights(self, spec: TowerSpec, prefix: str) -> Sequence[Rule]:
        """Rules from canonical names under `prefix` to the tower's own names under `vision.`."""


class FusionStrategy(Protocol):
    """How visual tokens enter the decoder: the name of a builder, "package.module:function", called with the ModelSpec.
    One that stores what rows attend to sets `ModelSpec.cross`. One with linears has `linears(self, spec: ModelSpec) ->
    Linears` as well."""

    api_version: int
    name: str
    builder: str


class DualEncoder(Protocol):
    """A text tower and a vision tower that are served for their embeddings alone. Its entry point is named after what
    it claims, as an architecture's is; instances hold no state."""

    api_version: int
    name: str
    builder: str  # "package.module:function", called with the DualEncoderSpec and the vision tower's module

    def spec(self, files: ModelFiles) -> DualEncoderSpec:
        """The frozen description of the model. Raises SpecError naming what cannot be served."""

    def weights(self, spec: DualEncoderSpec) -> Sequence[Rule]:
        """Total: every key maps, or loading fails. The towers are `vision.` and `text.`."""

    def preprocess(self, image: U8, spec: DualEncoderSpec) -> VisualItem:
        """image: U8 [H, W, 3], RGB. Raises SpecError for a picture the model cannot take."""
