"""LLaVA-1.5: CLIP (or SigLIP) features, a two-layer projector, scattered into the prompt. Source: arXiv 2310.03744."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.families import llava_like as llava_style
from opsin_plugins.families.base import Family, chosen
from opsin_plugins.families.llava_like import CLIP, SIGLIP
from opsin_plugins.spec import (
    U8,
    ImageBudget,
    ModelFiles,
    ModelSpec,
    Pattern,
    Rule,
    VisionEncoder,
    VisualItem,
)

ENCODERS: Mapping[str | None, VisionEncoder] = {CLIP.name: CLIP, SIGLIP.name: SIGLIP}


class Llava(Family):
    name = "llava"

    def spec(self, files: ModelFiles) -> ModelSpec:
        chosen(files.options, {})
        parts = llava_style.vision_parts(files, ("clip_vision_model", "siglip_vision_model"))
        return llava_style.model_spec(self.name, files, parts, {})

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return llava_style.weights(spec, ENCODERS[spec.encoder])

    def preprocess(self, images: Sequence[U8], spec: ModelSpec, budget: ImageBudget) -> Sequence[VisualItem]:
        """One size for every picture: a budget changes nothing."""
        assert spec.image is not None
        assert spec.vision is not None
        items = []
        for image in images:
            pixels, grid = ENCODERS[spec.encoder].preprocess(image, spec.image, budget)
            items.append(VisualItem(pixels, grid, rows=len(pixels) + spec.vision.keep_class_token))
        return items

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return llava_style.lora_groups(spec)

    def chat_template(self, files: ModelFiles) -> str | None:
        return llava_style.chat_template(files.config)
