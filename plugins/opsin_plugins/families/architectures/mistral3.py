"""Mistral Small 3.1: Pixtral with 2 x 2 neighbours joined before the projector. Source: its published code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opsin_plugins.families.base import text_section
from opsin_plugins.families.config_fields import number, section
from opsin_plugins.families.llava_like import PROJECTOR, LlavaStyle, model_spec, vision_parts
from opsin_plugins.families.mistral_names import join_rule
from opsin_plugins.families.pixtral_like import PixtralStyle, instruct_template
from opsin_plugins.spec import ModelFiles, ModelSpec, Rename, Rule

# What transformers takes where a part of the configuration is missing.
TEXT = {
    "model_type": "mistral",
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e9,
    "sliding_window": None,
}
VISION = {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}
DEFAULTS = {
    "spatial_merge_size": 2,
    "vision_feature_layer": -1,
    "multimodal_projector_bias": False,
    "image_token_index": 10,
}


class Mistral3(PixtralStyle, LlavaStyle):
    name = "mistral3"

    def spec(self, files: ModelFiles) -> ModelSpec:
        config = {**DEFAULTS, **files.config, "vision_feature_select_strategy": "full"}
        config["text_config"] = section(config, "text_config", TEXT)
        config["vision_config"] = section(config, "vision_config", VISION)
        files = replace(files, config=config)
        text, defaults = text_section(files.config)
        parts = vision_parts(files, self.encoder)
        eps = number(text, "rms_norm_eps", defaults.eps)  # of the norm before the projector, too
        extra = {"norm": "rms", "norm_eps": eps, "joined": parts[1].width}
        return model_spec(self.name, files, parts, extra)

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.projector is not None
        return [
            *super().weights(spec),
            Rename(f"{PROJECTOR}norm.weight", "projector.norm.weight"),
            join_rule(f"{PROJECTOR}patch_merger.merging_layer.weight", spec.projector.in_width, spec.projector.merge),
        ]

    def chat_template(self, files: ModelFiles) -> str | None:
        return instruct_template(framed_system=True)
