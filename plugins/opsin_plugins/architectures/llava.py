"""LLaVA-1.5: CLIP features, a two-layer projector, scattered into a Llama-style prompt. Source: arXiv 2310.03744."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opsin_plugins.configs import activation, flag, integer, section, token_ids
from opsin_plugins.decoders import TEXT, decoder_rules, decoder_spec, max_positions
from opsin_plugins.encoders.clip import Clip
from opsin_plugins.positions import line, repeat_placeholder
from opsin_plugins.spec import (
    API_VERSION,
    I32,
    U8,
    Expanded,
    ImageBudget,
    ModelFiles,
    ModelSpec,
    Pattern,
    Prefix,
    ProjectorSpec,
    Rename,
    Rule,
    SpecError,
    VisualItem,
)

ENCODER = Clip()
TOWER, LANGUAGE = "model.vision_tower.", "model.language_model."


class Llava:
    api_version = API_VERSION
    name = "llava"

    def spec(self, files: ModelFiles) -> ModelSpec:
        config = files.config
        text, vision_config = section(config, "text_config"), dict(section(config, "vision_config"))
        text_type, vision_type = text.get("model_type", "llama"), vision_config.get("model_type")
        if text_type not in TEXT:
            raise SpecError(f"text_config.model_type {text_type!r} is not one of {', '.join(TEXT)}")
        if vision_type not in ("clip_vision_model", None):
            raise SpecError(f"vision_config.model_type {vision_type!r} is not supported (clip_vision_model is)")
        strategy = config.get("vision_feature_select_strategy", "default")
        if strategy not in ("default", "full"):
            raise SpecError(f"vision_feature_select_strategy {strategy!r} is neither 'default' nor 'full'")
        vision_config["feature_layer"] = integer(config, "vision_feature_layer", -2)
        vision_config["keep_class_token"] = strategy == "full"
        defaults = TEXT[str(text_type)]
        tower = ENCODER.spec(vision_config, files.preprocessor)
        tied = flag(config, "tie_word_embeddings", flag(text, "tie_word_embeddings"))
        decoder = decoder_spec(text, tied, defaults)
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ProjectorSpec(
                in_width=tower.width,
                hidden=decoder.width,
                out_width=decoder.width,
                activation=activation(config, "projector_hidden_act", "gelu"),
                bias=flag(config, "multimodal_projector_bias", True),
            ),
            image=ENCODER.image(tower, vision_config, files.preprocessor),
            fusion="scatter",
            encoder=ENCODER.name,
            image_token=integer(config, "image_token_index", config.get("image_token_id", 32000)),
            eos=token_ids(files.generation.get("eos_token_id", text.get("eos_token_id", 2))),
            max_positions=max_positions(text, defaults),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        assert spec.projector is not None
        kinds = ("weight", "bias") if spec.projector.bias else ("weight",)
        return [
            # The published 4.x form, and the two that 5.x saves (with and without `vision_model.`).
            Prefix("vision_tower.vision_model.", TOWER),
            Prefix("model.vision_tower.vision_model.", TOWER),
            Prefix("vision_tower.", TOWER),
            Prefix("multi_modal_projector.", "model.multi_modal_projector."),
            Prefix("language_model.lm_head.", "lm_head."),
            Prefix("language_model.model.", LANGUAGE),
            *decoder_rules(
                spec.decoder,
                layers=f"{LANGUAGE}layers.{{i}}.",
                embedding=f"{LANGUAGE}embed_tokens.weight",
                norm=f"{LANGUAGE}norm.weight",
                head="lm_head.weight",
            ),
            *ENCODER.weights(spec.vision, TOWER),
            *(Rename(f"model.multi_modal_projector.linear_1.{kind}", f"projector.mlp.up.{kind}") for kind in kinds),
            *(Rename(f"model.multi_modal_projector.linear_2.{kind}", f"projector.mlp.down.{kind}") for kind in kinds),
        ]

    def preprocess(self, images: Sequence[U8], spec: ModelSpec, budget: ImageBudget) -> Sequence[VisualItem]:
        assert spec.image is not None
        assert spec.vision is not None
        items = []
        for image in images:
            pixels, grid = ENCODER.preprocess(image, spec.image, budget)
            items.append(VisualItem(pixels, grid, rows=len(pixels) + spec.vision.keep_class_token))
        return items

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec) -> Expanded:
        assert spec.image_token is not None
        return repeat_placeholder(ids, items, spec.image_token)

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        return line(len(expanded.ids))

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        assert spec.vision is not None
        # Layers past the feature that is taken get no gradient: no LoRA there.
        layers = "|".join(str(i) for i in range(spec.vision.layers))
        language, tower = (
            r"model\.language_model\.layers\.\d+\.",
            rf"model\.vision_tower\.encoder\.layers\.({layers})\.",
        )
        return {
            "language.attention": re.compile(language + r"self_attn\.[qkvo]_proj"),
            "language.mlp": re.compile(language + r"mlp\.(gate|up|down)_proj"),
            "vision.attention": re.compile(tower + r"self_attn\.([qkv]_proj|out_proj)"),
            "vision.mlp": re.compile(tower + r"mlp\.fc[12]"),
            "projector.mlp": re.compile(r"model\.multi_modal_projector\.linear_[12]"),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return VICUNA


# Written for directories without a template: the prompt form of the LLaVA-1.5 paper's code, images first in a turn.
VICUNA = """\
{%- for message in messages -%}
{%- if message['role'] != 'system' %}{{ message['role'] | upper }}: {% endif -%}
{%- if message['content'] is string -%}{{ message['content'] }} {% else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }} {% endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""
