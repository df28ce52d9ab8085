"""What LLaVA-style models share: a CLIP, SigLIP or Pixtral tower, a two-layer projector, a language model behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opsin_plugins.families.base import end_ids, llama_groups, renames, text_section
from opsin_plugins.families.config_fields import MOST_LAYERS, activation, flag, integer, section
from opsin_plugins.families.encoders.clip import Clip
from opsin_plugins.families.encoders.pixtral import Pixtral
from opsin_plugins.families.encoders.siglip import Siglip
from opsin_plugins.families.language import decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.spec import (
    Config,
    ImageSpec,
    ModelFiles,
    ModelSpec,
    Pattern,
    Prefix,
    ProjectorSpec,
    Rule,
    SpecError,
    TowerSpec,
    VisionEncoder,
)

TOWER, LANGUAGE, PROJECTOR = "model.vision_tower.", "model.language_model.", "model.multi_modal_projector."
CLIP, SIGLIP, PIXTRAL = Clip(), Siglip(), Pixtral()
ENCODERS: Mapping[str, VisionEncoder] = {
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
    "pixtral": PIXTRAL,
}
# What transformers takes where vision_config is missing: CLIP L/14 at 336 pixels.
VISION_DEFAULTS: Config = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
}
PREFIXES: Sequence[Rule] = (
    # The published 4.x form, and the two that 5.x saves (with and without `vision_model.`).
    Prefix("vision_tower.vision_model.", TOWER),
    Prefix("model.vision_tower.vision_model.", TOWER),
    Prefix("vision_tower.", TOWER),
    Prefix("multi_modal_projector.", PROJECTOR),
    Prefix("language_model.lm_head.", "lm_head."),
    Prefix("language_model.model.", LANGUAGE),
)


def vision_parts(files: ModelFiles, allowed: Sequence[str]) -> tuple[VisionEncoder, TowerSpec, ImageSpec]:
    """The encoder that vision_config names, the tower up to the layer whose features are taken, and how pictures become
    patches. Raises SpecError for an encoder that is not in `allowed` or a selection of features that it does not
    have."""
    encoder, vision = vision_config(files.config, allowed)
    tower = encoder.spec(vision, files.preprocessor)
    return encoder, tower, encoder.image(tower, vision, files.preprocessor)


def vision_config(config: Config, allowed: Sequence[str]) -> tuple[VisionEncoder, Config]:
    """The encoder that vision_config names, and what it is told, the selection of features included."""
    vision = dict(section(config, "vision_config", VISION_DEFAULTS))
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in allowed:
        raise SpecError(f"vision_config.model_type {kind!r} is not supported ({', '.join(allowed)})")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise SpecError(f"vision_feature_select_strategy {strategy!r} is neither 'default' nor 'full'")
    if strategy == "default" and kind != "clip_vision_model":
        raise SpecError(f"vision_feature_select_strategy 'default' drops a class token, and {kind} has none")
    vision["feature_layer"] = integer(config, "vision_feature_layer", -2, least=-MOST_LAYERS)
    vision["keep_class_token"] = strategy == "full"
    vision["spatial_merge_size"] = integer(config, "spatial_merge_size", 1)
    return ENCODERS[str(kind)], vision


def model_spec(
    family: str, files: ModelFiles, parts: tuple[VisionEncoder, TowerSpec, ImageSpec], projector: Mapping[str, object]
) -> ModelSpec:
    """projector: fields of ProjectorSpec that differ from two biased linear layers."""
    config, (encoder, tower, image) = files.config, parts
    text, defaults = text_section(config)
    tied = is_tied(files, text)
    decoder = decoder_spec(text, tied, defaults)
    fields: dict[str, object] = {
        "in_width": tower.width,
        "hidden": decoder.width,
        "out_width": decoder.width,
        "activation": activation(config, "projector_hidden_act", "gelu"),
        "merge": image.merge,
        "bias": flag(config, "multimodal_projector_bias", True),
        **projector,
    }
    return ModelSpec(
        family=family,
        decoder=decoder,
        vision=tower,
        projector=ProjectorSpec(**fields),  # type: ignore[arg-type]
        image=image,
        fusion="scatter",
        encoder=encoder.name,
        image_token=integer(config, "image_token_index", config.get("image_token_id", 32000), least=0),
        eos=end_ids(files),
        max_positions=max_positions(text, defaults),
    )


def weights(spec: ModelSpec, encoder: VisionEncoder) -> list[Rule]:
    assert spec.vision is not None
    assert spec.projector is not None
    linears = {f"{PROJECTOR}linear_1": "projector.mlp.up", f"{PROJECTOR}linear_2": "projector.mlp.down"}
    return [
        *PREFIXES,
        *decoder_rules(
            spec.decoder,
            layers=f"{LANGUAGE}layers.{{i}}.",
            embedding=f"{LANGUAGE}embed_tokens.weight",
            norm=f"{LANGUAGE}norm.weight",
            head="lm_head.weight",
        ),
        *encoder.weights(spec.vision, TOWER),
        *renames(linears, ("weight", "bias") if spec.projector.bias else ("weight",)),
    ]


def lora_groups(spec: ModelSpec) -> Mapping[str, Pattern]:
    assert spec.vision is not None
    # Layers past the feature that is taken get no gradient: no LoRA there.
    layers = "|".join(str(i) for i in range(spec.vision.layers))
    if spec.encoder == PIXTRAL.name:
        tower = rf"model\.vision_tower\.transformer\.layers\.({layers})\."
        vision = {
            "vision.attention": re.compile(tower + r"attention\.[qkvo]_proj"),
            "vision.mlp": re.compile(tower + r"feed_forward\.(gate|up|down)_proj"),
        }
    else:
        tower = rf"model\.vision_tower\.encoder\.layers\.({layers})\."
        vision = {
            "vision.attention": re.compile(tower + r"self_attn\.([qkv]_proj|out_proj)"),
            "vision.mlp": re.compile(tower + r"mlp\.fc[12]"),
        }
    projector = r"model\.multi_modal_projector\.(linear_[12]|patch_merger\.merging_layer)"
    return {
        **llama_groups(r"model\.language_model\.layers\.\d+\."),
        **vision,
        "projector.mlp": re.compile(projector),
    }


def config_of_text(config: Config) -> object:
    """The text configuration's model_type."""
    text = config.get("text_config")
    return text.get("model_type") if isinstance(text, Mapping) else None


def chat_template(config: Config) -> str:
    """For directories without a template: the prompt form that the language model was tuned on."""
    return MISTRAL if config_of_text(config) == "mistral" else VICUNA


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


# The same for a Mistral behind the projector, as LLaVA-NeXT has it: images first, blanks inside of the brackets.
MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ '[INST] ' }}
{%- for part in parts if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in parts if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{{ ' [/INST]' }}
{%- else -%}
{{ '<<SYS>>\\n' if message['role'] == 'system' else ' ' }}
{%- for part in parts -%}{{ part['text'] }}{%- endfor -%}
{%- if message['role'] == 'system' -%}{{ '\\n<</SYS>>\\n\\n' }}{%- else -%}{{ eos_token }}{{ ' ' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
"""
