"""LLaVA-1.5: CLIP features, a two-layer projector, scattered into the prompt. Source: arXiv 2310.03744.

The encoder is whichever claims the vision configuration: CLIP, SigLIP, or one from another package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_plugins.families import llava_like
from opsin_plugins.families.base import Family
from opsin_plugins.spec import ModelFiles, ModelSpec, Pattern, Rule


class Llava(Family):
    name = "llava"

    def spec(self, files: ModelFiles) -> ModelSpec:
        parts = llava_like.vision_parts(files, llava_like.claiming_encoder(files))
        return llava_like.model_spec(self.name, files, parts, {})

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        return llava_like.weights(spec, self.encoder_of(spec))

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return llava_like.lora_groups(spec, self.encoder_of(spec))

    def chat_template(self, files: ModelFiles) -> str | None:
        return llava_like.chat_template(files.config)
