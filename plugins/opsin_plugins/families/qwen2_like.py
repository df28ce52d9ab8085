"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: the form of their configuration, names, M-RoPE and ChatML."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from opsin_plugins.families.base import Family, end_ids, llama_groups, renames, vision_groups
from opsin_plugins.families.config_fields import integer, section
from opsin_plugins.families.encoders.qwen2_vl import Qwen2VLEncoder
from opsin_plugins.families.language import TextDefaults, decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.families.positions import mrope
from opsin_plugins.spec import (
    I32,
    Config,
    Expanded,
    ModelFiles,
    ModelSpec,
    Pattern,
    Prefix,
    ProjectorSpec,
    Rule,
    SpecError,
    TowerSpec,
    VisualItem,
)

TEXT = TextDefaults(8192, 80, 64, 8, 29568, 152064, 1e-5, 1e6, 32768, qkv_bias=True, slides="if asked")


class Qwen2Style(Family):
    name: ClassVar[str]
    encoder: ClassVar[Qwen2VLEncoder]
    merger_mlp: ClassVar[str] = r"model\.visual\.merger\.mlp\.[02]"
    merger_norm: ClassVar[tuple[str, ...]]  # tensors of the norm before the merger
    width_key: ClassVar[str]  # where the vision configuration says what the merger gives
    text: ClassVar[TextDefaults] = TEXT
    fusion: ClassVar[str] = "scatter"
    default_system: ClassVar[bool] = True  # whether its prompts begin with a system message where none is given

    @abstractmethod
    def projector(self, tower: TowerSpec, merge: int, width: int) -> ProjectorSpec:
        """width: the decoder's."""

    def spec(self, files: ModelFiles) -> ModelSpec:
        config = files.config
        nested = config.get("text_config")
        text: Config = nested if isinstance(nested, Mapping) else config  # 4.x wrote the text fields at the top
        vision_config = section(config, "vision_config", {})
        tower = self.encoder.spec(vision_config, files.preprocessor)
        image = self.encoder.image(tower, vision_config, files.preprocessor)
        tied = is_tied(files, text)
        decoder = decoder_spec(text, tied, self.text, mrope=True)
        width = integer(vision_config, self.width_key, decoder.width)
        if width != decoder.width:
            raise SpecError(f"the tower gives {width} values a visual token, the decoder takes {decoder.width}")
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=self.projector(tower, image.merge, decoder.width),
            image=image,
            fusion=self.fusion,
            encoder=self.encoder.name,
            image_token=integer(config, "image_token_id", 151655, least=0),
            eos=end_ids(files),
            max_positions=max_positions(text, self.text),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        return [
            Prefix("visual.", "model.visual."),
            Prefix("model.layers.", "model.language_model.layers."),
            Prefix("model.embed_tokens.", "model.language_model.embed_tokens."),
            Prefix("model.norm.", "model.language_model.norm."),
            *decoder_rules(spec.decoder, "model.language_model."),
            *self.encoder.weights(spec.vision, "model.visual."),
            *self.merger_rules(),
        ]

    def merger_rules(self) -> list[Rule]:
        linears = {"model.visual.merger.mlp.0": "projector.mlp.up", "model.visual.merger.mlp.2": "projector.mlp.down"}
        return [*renames({"model.visual.merger.ln_q": "projector.norm"}, self.merger_norm), *renames(linears)]

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        assert spec.image is not None
        return mrope(expanded, items, spec.image.merge)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return {
            **llama_groups(r"model\.language_model\.layers\.\d+\."),
            **vision_groups(self.encoder, "model.visual."),
            "projector.mlp": re.compile(self.merger_mlp),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return (DEFAULT_SYSTEM if self.default_system else "") + CHATML


DEFAULT_SYSTEM = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
"""
# Written for directories without a template: ChatML with an image where the message has one.
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
