"""LLaVA-1.5: CLIP features, a two-layer projector, scattered into the prompt. Source: arXiv 2310.03744.

The encoder is whichever claims the vision configuration: CLIP, SigLIP, or one from another package.
"""

from __future__ import annotations

from opsin_plugins.families.llava_like import LlavaStyle, claiming_encoder, model_spec, vision_parts
from opsin_plugins.spec import ModelFiles, ModelSpec


class Llava(LlavaStyle):
    name = "llava"

    def spec(self, files: ModelFiles) -> ModelSpec:
        return model_spec(self.name, files, vision_parts(files, claiming_encoder(files)), {})
