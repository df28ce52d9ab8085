"""SigLIP and SigLIP 2, at a fixed resolution or at any: a text tower that sees the whole text, filled up to its length
and pooled at its last token, and a vision tower pooled by attention. Source: arXiv 2303.15343, 2502.14786."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opsin_plugins.families.base import renames
from opsin_plugins.families.config_fields import activation, flag, integer, layer_count, number, section
from opsin_plugins.families.dual_encoder_like import MOST_TOKENS, VISION, DualEncoderFamily, text_rules
from opsin_plugins.families.encoders.siglip import Siglip as SiglipTower
from opsin_plugins.families.encoders.siglip2 import Siglip2 as Siglip2Tower
from opsin_plugins.spec import (
    Config,
    DualEncoderSpec,
    Ignore,
    ModelFiles,
    Rename,
    Rule,
    SpecError,
    Split,
    TextTowerSpec,
    VisionEncoder,
)


class Siglip(DualEncoderFamily):
    name = "siglip"
    tower: VisionEncoder = SiglipTower()

    def spec(self, files: ModelFiles) -> DualEncoderSpec:
        text, vision = section(files.config, "text_config", {}), section(files.config, "vision_config", {})
        if not flag(vision, "vision_use_head", default=True):
            raise SpecError("vision_use_head is false: nothing pools a picture's features into one embedding")
        tower = self.tower.spec(vision, files.preprocessor)
        return DualEncoderSpec(
            family=self.name,
            text=_text(text),
            vision=replace(tower, post_norm=True),
            image=self.tower.image(tower, vision, files.preprocessor),
            encoder=self.tower.name,
            pool="attention",
            projected=False,
        )

    def weights(self, spec: DualEncoderSpec) -> Sequence[Rule]:
        head = f"{VISION}head."
        return [
            *renames({"text_model.head": "text_projection"}),
            Ignore("logit_scale", "scales scores, and no embedding"),
            Ignore("logit_bias", "shifts scores, and no embedding"),
            *text_rules(),
            Rename(f"{head}probe", "pool.query"),
            *(Split(f"{head}attention.in_proj_{kind}", (f"pool.q.{kind}", f"pool.kv.{kind}")) for kind in KINDS),
            *renames(
                {
                    f"{head}attention.out_proj": "pool.out",
                    f"{head}layernorm": "pool.norm",
                    f"{head}mlp.fc1": "pool.mlp.up",
                    f"{head}mlp.fc2": "pool.mlp.down",
                }
            ),
            *self.tower.weights(spec.vision, VISION),
        ]


class Siglip2(Siglip):
    """Pictures of any shape (NaFlex)."""

    name = "siglip2"
    tower = Siglip2Tower()


KINDS = ("weight", "bias")


def _text(text: Config) -> TextTowerSpec:
    width = integer(text, "hidden_size", 768)
    return TextTowerSpec(
        vocab=integer(text, "vocab_size", 32000),
        width=width,
        layers=layer_count(text, "num_hidden_layers", 12),
        heads=integer(text, "num_attention_heads", 12),
        mlp=integer(text, "intermediate_size", 3072),
        context=integer(text, "max_position_embeddings", 64, most=MOST_TOKENS),
        norm_eps=number(text, "layer_norm_eps", 1e-6),
        activation=activation(text, "hidden_act", "gelu_pytorch_tanh"),
        causal=False,
        pool="last",
        out=width if text.get("projection_size") is None else integer(text, "projection_size"),
        out_bias=True,
        fills=True,
        pad=integer(text, "pad_token_id", 1, least=0),
    )
