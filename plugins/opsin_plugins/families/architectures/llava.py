"""LLaVA-1.5: CLIP features, a two-layer projector, scattered into the prompt. Source: arXiv 2310.03744.

The encoder is whichever claims the vision configuration: CLIP, SigLIP, or one from another package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.families import llava_like as llava_style
from opsin_plugins.families.base import Family, chosen
from opsin_plugins.spec import ModelFiles, ModelSpec, Pattern, Rule


class Llava(Family):
    name = "llava"

    def spec(self, files: ModelFiles) -> ModelSpec:
        chosen(files.options, {})
        parts = llava_style.vision_parts(files, llava_style.claiming_encoder(files))
        return llava_style.model_spec(self.name, files, parts, {})

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return llava_style.weights(spec, self.encoder_of(spec))

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return llava_style.lora_groups(spec, self.encoder_of(spec))

    def chat_template(self, files: ModelFiles) -> str | None:
        return llava_style.chat_template(files.config)
