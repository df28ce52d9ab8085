"""What most architectures do alike: placeholders repeated, ordinary positions, rules and groups by published names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np

from opsin_plugins.families.config_fields import section, token_ids
from opsin_plugins.families.language import TEXT, TextDefaults
from opsin_plugins.families.positions import line, repeat_placeholder
from opsin_plugins.loading.registry import installed_encoder
from opsin_plugins.spec import (
    API_VERSION,
    I32,
    U8,
    Config,
    Encode,
    Expanded,
    ImageBudget,
    ModelFiles,
    ModelSpec,
    Pattern,
    Rename,
    Rule,
    SpecError,
    VisionEncoder,
    VisualItem,
)


class Family:
    """A base that an architecture may use: it overrides what is its own."""

    api_version = API_VERSION
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Sequence[str]]] = {}  # `--model-option` names, and the values of each
    encoder: ClassVar[VisionEncoder | None] = None  # where it is always one; None: `ModelSpec.encoder` names it

    def preprocess(self, images: Sequence[U8], spec: ModelSpec, budget: ImageBudget) -> Sequence[VisualItem]:
        return [self.prepare(image, spec, budget) for image in images]

    def prepare(self, image: U8, spec: ModelSpec, budget: ImageBudget) -> VisualItem:
        """One picture, U8 [H, W, 3]. As the encoder makes it, `merge`² patches (and a class token) a visual token."""
        if spec.vision is None or spec.image is None:
            raise SpecError(f"{spec.family} is a language model: it takes no images")
        pixels, grid = self.encoder_of(spec).preprocess(image, spec.image, budget)
        return VisualItem(pixels, grid, tokens=(len(pixels) + spec.vision.keep_class_token) // spec.image.merge**2)

    def encoder_of(self, spec: ModelSpec) -> VisionEncoder:
        assert spec.encoder is not None
        return self.encoder if self.encoder is not None else installed_encoder(spec.encoder)

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        if spec.image_token is None:
            return Expanded(np.asarray(ids, np.int32), ())
        return repeat_placeholder(ids, items, spec.image_token)

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        return line(len(expanded.ids))

    def chat_template(self, files: ModelFiles) -> str | None:
        return None

    def example(self) -> ModelFiles | None:
        """What `examples/NAME.json` says, in the package that the family is of: config, preprocessor, options."""
        package = type(self).__module__.partition(".")[0]
        file = resources.files(package) / "examples" / f"{self.name}.json"
        if not file.is_file():
            return None
        found = json.loads(file.read_text("utf-8"))
        return ModelFiles(Path(), found["config"], found.get("preprocessor", {}), options=found.get("options", {}))


def end_ids(files: ModelFiles) -> tuple[int, ...]:
    """The ids that end an answer, by generation_config.json and by config.json at its top and in its text_config.

    They are added up: each has been seen to be null, or to name only one of several, where another was right. What the
    tokenizer and the chat template say is added by the host.
    """
    text = files.config.get("text_config")
    sources = (files.generation, files.config, text if isinstance(text, Mapping) else {})
    return tuple(dict.fromkeys(i for source in sources for i in token_ids(source.get("eos_token_id"))))


def text_section(config: Config) -> tuple[Config, TextDefaults]:
    """A model's text_config and what it leaves out. Raises SpecError for a decoder that is not known."""
    text = section(config, "text_config", {})
    kind = text.get("model_type", "llama")
    if kind not in TEXT:
        raise SpecError(f"text_config.model_type {kind!r} is not one of {', '.join(TEXT)}")
    return text, TEXT[str(kind)]


def renames(pairs: Mapping[str, str], kinds: Iterable[str] = ("weight", "bias")) -> list[Rule]:
    """A rule for each pair of names and each kind of tensor."""
    return [Rename(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in pairs.items() for kind in kinds]


def llama_groups(layers: str) -> dict[str, Pattern]:
    """LoRA groups of a Llama-style language model. layers: a pattern for the prefix of a layer."""
    return {
        "language.attention": re.compile(layers + r"self_attn\.[qkvo]_proj"),
        "language.mlp": re.compile(layers + r"mlp\.(gate|up|down)_proj"),
    }


def vision_groups(encoder: VisionEncoder, prefix: str, layers: int | None = None) -> dict[str, Pattern]:
    """LoRA groups of a tower whose canonical names stand under `prefix`. layers: how many there are that run, since one
    past the feature that is taken gets no gradient; None: all that are published."""
    number = r"\d+" if layers is None else "|".join(map(str, range(layers)))
    linears = {"vision.attention": encoder.claims.attention, "vision.mlp": encoder.claims.mlp}
    return {
        group: re.compile(re.escape(prefix) + pattern.replace("{i}", f"({number})"))
        for group, pattern in linears.items()
        if pattern
    }
