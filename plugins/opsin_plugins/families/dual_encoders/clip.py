"""CLIP: a causal text tower pooled at the end of the text, and a vision tower pooled at its class token. Source: arXiv
2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, integer, layer_count, number, section
from opsin_plugins.families.dual_encoder_like import MOST_TOKENS, VISION, DualEncoderFamily, text_rules
from opsin_plugins.families.encoders.clip import Clip as ClipTower
from opsin_plugins.spec import Config, DualEncoderSpec, Ignore, ModelFiles, Rename, Rule, TextTowerSpec

# What configurations said before 2023, whatever the tokenizer's end of text is: transformers then takes the largest id.
OLD_EOS = 2


class Clip(DualEncoderFamily):
    name = "clip"
    tower = ClipTower()

    def spec(self, files: ModelFiles) -> DualEncoderSpec:
        text, vision = (_half(files.config, name) for name in ("text_config", "vision_config"))
        tower = self.tower.spec(vision, files.preprocessor)
        return DualEncoderSpec(
            family=self.name,
            text=_text(text, integer(files.config, "projection_dim", 512)),
            vision=replace(tower, post_norm=True, keep_class_token=True),
            image=self.tower.image(tower, vision, files.preprocessor),
            encoder=self.tower.name,
            pool="class_token",
            projected=True,
        )

    def weights(self, spec: DualEncoderSpec) -> Sequence[Rule]:
        return [
            Rename("text_projection.weight", "text_projection.weight"),
            Rename("visual_projection.weight", "visual_projection.weight"),
            Ignore("logit_scale", "scales scores, and no embedding"),
            *text_rules(),
            *renames({f"{VISION}post_layernorm": "vision.post_norm"}),
            *self.tower.weights(spec.vision, VISION),
        ]


def _half(config: Config, name: str) -> Config:
    """Of old configurations, text_config_dict stands for text_config whole, as transformers has it."""
    old = f"{name}_dict"
    return section(config, old if config.get(old) is not None else name)


def _text(text: Config, out: int) -> TextTowerSpec:
    eos = integer(text, "eos_token_id", 49407, least=0)
    pool: Literal["largest", "eos"] = "largest" if eos == OLD_EOS else "eos"
    return TextTowerSpec(
        vocab=integer(text, "vocab_size", 49408),
        width=integer(text, "hidden_size", 512),
        layers=layer_count(text, "num_hidden_layers", 12),
        heads=integer(text, "num_attention_heads", 8),
        mlp=integer(text, "intermediate_size", 2048),
        context=integer(text, "max_position_embeddings", 77, most=MOST_TOKENS),
        norm_eps=number(text, "layer_norm_eps", 1e-5),
        activation=activation(text, "hidden_act", "quick_gelu"),
        causal=True,
        pool=pool,
        out=out,
        eos=eos,
    )
