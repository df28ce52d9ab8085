"""Pixtral in the form that transformers reads: a LLaVA whose tower takes any size. Source: arXiv 2410.07073."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.families import llava_like
from opsin_plugins.families.pixtral_like import PixtralStyle
from opsin_plugins.spec import ModelFiles, ModelSpec, Pattern, Rule


class Pixtral(PixtralStyle):
    name = "llava.pixtral"

    def spec(self, files: ModelFiles) -> ModelSpec:
        return llava_like.model_spec(self.name, files, llava_like.vision_parts(files, self.encoder), {})

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return llava_like.weights(spec, self.encoder)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return llava_like.lora_groups(spec, self.encoder)
