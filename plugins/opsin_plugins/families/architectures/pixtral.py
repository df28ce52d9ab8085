"""Pixtral in the form that transformers reads: a LLaVA whose tower takes any size. Source: arXiv 2410.07073."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.families import llava_like as llava_style
from opsin_plugins.families.base import chosen
from opsin_plugins.families.pixtral_like import PixtralStyle
from opsin_plugins.spec import ModelFiles, ModelSpec, Pattern, Rule


class Pixtral(PixtralStyle):
    name = "llava.pixtral"

    def spec(self, files: ModelFiles) -> ModelSpec:
        chosen(files.options, {})
        return llava_style.model_spec(self.name, files, llava_style.vision_parts(files, self.encoder), {})

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return llava_style.weights(spec, self.encoder)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return llava_style.lora_groups(spec, self.encoder)
