"""Pixtral in the form that transformers reads: a LLaVA whose tower takes any size. Source: arXiv 2410.07073."""

from __future__ import annotations

from opsin_plugins.families.llava_like import LlavaStyle, model_spec, vision_parts
from opsin_plugins.families.pixtral_like import PixtralStyle
from opsin_plugins.spec import ModelFiles, ModelSpec


class Pixtral(PixtralStyle, LlavaStyle):
    name = "llava.pixtral"

    def spec(self, files: ModelFiles) -> ModelSpec:
        return model_spec(self.name, files, vision_parts(files, self.encoder), {})
