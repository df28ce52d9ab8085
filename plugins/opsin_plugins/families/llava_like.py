"""What LLaVA-style models share: an encoder's tower, a two-layer projector, a language model behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opsin_plugins.families.base import Family, end_ids, llama_groups, renames, text_section, vision_groups
from opsin_plugins.families.config_fields import MOST_LAYERS, activation, flag, integer, section
from opsin_plugins.families.language import decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.loading.registry import installed
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
# What transformers takes where vision_config is missing: CLIP L/14 at 336 pixels.
DEFAULT_TYPE = "clip_vision_model"
VISION_DEFAULTS: Config = {
    "model_type": DEFAULT_TYPE,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
}


class LlavaStyle(Family):
    """What they do alike, with whichever encoder the family or its spec names."""

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        assert spec.projector is not None
        encoder = self.encoder_of(spec)
        linears = {f"{PROJECTOR}linear_1": "projector.mlp.up", f"{PROJECTOR}linear_2": "projector.mlp.down"}
        return [
            *_dialects(encoder.claims.prefix),
            *decoder_rules(spec.decoder, LANGUAGE),
            *encoder.weights(spec.vision, TOWER),
            *renames(linears, ("weight", "bias") if spec.projector.bias else ("weight",)),
        ]

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        assert spec.vision is not None
        projector = r"model\.multi_modal_projector\.(linear_[12]|patch_merger\.merging_layer)"
        return {
            **llama_groups(r"model\.language_model\.layers\.\d+\."),
            **vision_groups(self.encoder_of(spec), TOWER, spec.vision.layers),
            "projector.mlp": re.compile(projector),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        """For directories without a template: the prompt form that the language model was tuned on."""
        return MISTRAL if config_of_text(files.config) == "mistral" else VICUNA


def claiming_encoder(files: ModelFiles) -> VisionEncoder:
    """The encoder that claims vision_config's model_type, of those that the operator allows. Raises SpecError when
    there is none, or when it is one that no LLaVA has."""
    kind = str(_vision_section(files.config).get("model_type", DEFAULT_TYPE))
    encoder = installed(files.plugins).encoder_for(kind)
    if why := encoder.claims.not_composed:
        raise SpecError(f"vision_config.model_type {kind!r} is not supported: {why}")
    return encoder


def vision_parts(files: ModelFiles, encoder: VisionEncoder) -> tuple[VisionEncoder, TowerSpec, ImageSpec]:
    """The encoder again, the tower up to the layer whose features are taken, and how pictures become patches. Raises
    SpecError for a configuration of another encoder, or a selection of features that it does not have."""
    vision = vision_config(files.config, encoder)
    tower = encoder.spec(vision, files.preprocessor)
    check_selection(files.config, tower)
    return encoder, tower, encoder.image(tower, vision, files.preprocessor)


def vision_config(config: Config, encoder: VisionEncoder) -> Config:
    """What the encoder is told: vision_config and the selection of features."""
    vision = dict(_vision_section(config))
    kind = vision.get("model_type", DEFAULT_TYPE)
    if kind not in encoder.claims.model_types:
        known = ", ".join(encoder.claims.model_types)
        raise SpecError(f"vision_config.model_type {kind!r} is not supported ({known})")
    layer = integer(config, "vision_feature_layer", -2, least=-MOST_LAYERS)
    if layer != -1 and not encoder.claims.selects_layer:
        raise SpecError(f"vision_feature_layer {layer}: {kind} gives the features of its last layer alone (-1)")
    vision["feature_layer"] = layer
    vision["keep_class_token"] = _strategy(config) == "full"
    vision["spatial_merge_size"] = integer(config, "spatial_merge_size", 1)
    return vision


def check_selection(config: Config, tower: TowerSpec) -> None:
    """Raises SpecError when a class token is to be dropped, and the tower has none."""
    if _strategy(config) == "default" and not tower.class_token:
        kind = _vision_section(config).get("model_type")
        raise SpecError(f"vision_feature_select_strategy 'default' drops a class token, and {kind} has none")


def _strategy(config: Config) -> str:
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise SpecError(f"vision_feature_select_strategy {strategy!r} is neither 'default' nor 'full'")
    return str(strategy)


def _vision_section(config: Config) -> Config:
    return section(config, "vision_config", VISION_DEFAULTS)


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


def _dialects(prefix: str) -> list[Rule]:
    """The published 4.x form, and those that 5.x saves. prefix: the encoder's, which it has or has not."""
    towers = {f"vision_tower.{prefix}": TOWER, f"{TOWER}{prefix}": TOWER} if prefix else {}
    names = {
        **towers,
        "vision_tower.": TOWER,
        "multi_modal_projector.": PROJECTOR,
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": LANGUAGE,
    }
    return [Prefix(old, new) for old, new in names.items()]


def config_of_text(config: Config) -> object:
    """The text configuration's model_type."""
    text = config.get("text_config")
    return text.get("model_type") if isinstance(text, Mapping) else None


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
