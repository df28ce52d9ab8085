"""Qwen2-VL: any resolution, merged patches scattered into the prompt, M-RoPE. Source: arXiv 2409.12191."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opsin_plugins.configs import Config, flag, integer, section, token_ids
from opsin_plugins.decoders import TextDefaults, decoder_rules, decoder_spec, max_positions
from opsin_plugins.encoders.qwen2_vl import Qwen2VLEncoder
from opsin_plugins.positions import mrope, repeat_placeholder
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

ENCODER = Qwen2VLEncoder()
TEXT = TextDefaults(8192, 80, 64, 8, 29568, 152064, 1e-5, 1e6, 32768, qkv_bias=True)


class Qwen2VL:
    api_version = API_VERSION
    name = "qwen2_vl"

    def spec(self, files: ModelFiles) -> ModelSpec:
        config = files.config
        nested = config.get("text_config")
        text: Config = nested if isinstance(nested, Mapping) else config  # 4.x wrote the text fields at the top
        vision_config = section(config, "vision_config")
        tower = ENCODER.spec(vision_config, files.preprocessor)
        image = ENCODER.image(tower, vision_config, files.preprocessor)
        tied = flag(config, "tie_word_embeddings", flag(text, "tie_word_embeddings"))
        decoder = decoder_spec(text, tied, TEXT, mrope=True)
        joined = tower.width * image.merge**2
        if (width := integer(vision_config, "hidden_size", decoder.width)) != decoder.width:
            raise SpecError(f"the tower gives {width} values a visual token, the decoder takes {decoder.width}")
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ProjectorSpec(tower.width, joined, decoder.width, "gelu", merge=image.merge, norm_eps=1e-6),
            image=image,
            fusion="scatter",
            encoder=ENCODER.name,
            image_token=integer(config, "image_token_id", 151655),
            eos=token_ids(files.generation.get("eos_token_id", text.get("eos_token_id"))),
            max_positions=max_positions(text, TEXT),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        projector = {"ln_q": "norm", "mlp.0": "mlp.up", "mlp.2": "mlp.down"}
        return [
            Prefix("visual.", "model.visual."),
            Prefix("model.layers.", "model.language_model.layers."),
            Prefix("model.embed_tokens.", "model.language_model.embed_tokens."),
            Prefix("model.norm.", "model.language_model.norm."),
            *decoder_rules(
                spec.decoder,
                layers="model.language_model.layers.{i}.",
                embedding="model.language_model.embed_tokens.weight",
                norm="model.language_model.norm.weight",
                head="lm_head.weight",
            ),
            *ENCODER.weights(spec.vision, "model.visual."),
            *(
                Rename(f"model.visual.merger.{theirs}.{kind}", f"projector.{ours}.{kind}")
                for theirs, ours in projector.items()
                for kind in ("weight", "bias")
            ),
        ]

    def preprocess(self, images: Sequence[U8], spec: ModelSpec, budget: ImageBudget) -> Sequence[VisualItem]:
        assert spec.image is not None
        items = []
        for image in images:
            pixels, grid = ENCODER.preprocess(image, spec.image, budget)
            items.append(VisualItem(pixels, grid, rows=len(pixels) // spec.image.merge**2))
        return items

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec) -> Expanded:
        assert spec.image_token is not None
        return repeat_placeholder(ids, items, spec.image_token)

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        assert spec.image is not None
        return mrope(expanded, items, spec.image.merge)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        language, tower = r"model\.language_model\.layers\.\d+\.", r"model\.visual\.blocks\.\d+\."
        return {
            "language.attention": re.compile(language + r"self_attn\.[qkvo]_proj"),
            "language.mlp": re.compile(language + r"mlp\.(gate|up|down)_proj"),
            "vision.attention": re.compile(tower + r"attn\.(qkv|proj)"),
            "vision.mlp": re.compile(tower + r"mlp\.fc[12]"),
            "projector.mlp": re.compile(r"model\.visual\.merger\.mlp\.[02]"),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return CHATML


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
