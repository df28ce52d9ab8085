"""Llama 3.2 Vision: some layers attend to the pictures, which stand outside of the prompt. Source: arXiv 2407.21783 §7.

A row of text sees the pictures of the last group before it. Rows before the first picture see none, as in the published
code; transformers lets them see all (`--model-option tokens_before_image=all` does as well, for comparison).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from opsin_plugins.families.base import Family, end_ids, renames, vision_groups
from opsin_plugins.families.config_fields import integer, integers, section
from opsin_plugins.families.encoders.mllama import MllamaEncoder
from opsin_plugins.families.language import TextDefaults, decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.families.positions import write_images
from opsin_plugins.spec import (
    I32,
    U8,
    Concat,
    CrossSpec,
    Encode,
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
    TiledTowerSpec,
    VisualItem,
)

TEXT = TextDefaults(4096, 40, 32, 8, 14336, 128256, 1e-5, 5e5, 131072)
CROSS = (3, 8, 13, 18, 23, 28, 33, 38)
EXTRA_EMBEDDINGS = 8  # ids past the vocabulary, of which <|image|> is the first


class Mllama(Family):
    name = "mllama"
    encoder = MllamaEncoder()
    options: ClassVar[Mapping[str, Sequence[str]]] = {"tokens_before_image": ("none", "all")}

    def spec(self, files: ModelFiles) -> ModelSpec:
        config, text = files.config, section(files.config, "text_config", {})
        attend_before = files.options.get("tokens_before_image") == "all"
        vision = {**section(config, "vision_config", {}), "keep_padding": attend_before}
        tower = self.encoder.spec(vision, files.preprocessor)
        tied = is_tied(files, text)
        replaced = integers(text, "cross_attention_layers", CROSS, null=CROSS)
        decoder = decoder_spec(text, tied, TEXT, replaced=replaced, extra_embeddings=EXTRA_EMBEDDINGS)
        width = tower.width * (1 + len(tower.taps))
        if (said := vision.get("vision_output_dim", width)) != width:
            raise SpecError(f"vision_output_dim {said!r}, but the last state and {len(tower.taps)} taps have {width}")
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ProjectorSpec(width, 0, decoder.width, "gelu"),
            image=self.encoder.image(tower, vision, files.preprocessor),
            fusion="cross_attention",
            encoder=self.encoder.name,
            image_token=integer(config, "image_token_index", 128256, least=0),
            eos=end_ids(files),
            max_positions=max_positions(text, TEXT),
            cross=CrossSpec(tower.max_tiles * tower.positions, attend_before),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        layers, cross = "model.language_model.layers.{i}.", "fusion.cross.{i}."
        return [
            Prefix("vision_model.", "model.vision_model."),
            Prefix("multi_modal_projector.", "model.multi_modal_projector."),
            Prefix("language_model.lm_head.", "lm_head."),
            Prefix("language_model.model.", "model.language_model."),
            *decoder_rules(spec.decoder, "model.language_model."),
            # The names that both kinds of layers have go to the cross layers where the decoder has none of its own.
            Rename(f"{layers}input_layernorm.weight", f"{cross}attention_norm.weight"),
            Rename(f"{layers}post_attention_layernorm.weight", f"{cross}mlp_norm.weight"),
            Concat((f"{layers}mlp.gate_proj.weight", f"{layers}mlp.up_proj.weight"), f"{cross}mlp.gate_up.weight"),
            Rename(f"{layers}mlp.down_proj.weight", f"{cross}mlp.down.weight"),
            Rename(f"{layers}cross_attn.q_proj.weight", f"{cross}attention.q.weight"),
            Concat(tuple(f"{layers}cross_attn.{n}_proj.weight" for n in "kv"), f"{cross}attention.kv.weight"),
            Rename(f"{layers}cross_attn.o_proj.weight", f"{cross}attention.out.weight"),
            Rename(f"{layers}cross_attn.q_norm.weight", f"{cross}attention.q_norm.weight"),
            Rename(f"{layers}cross_attn.k_norm.weight", f"{cross}attention.k_norm.weight"),
            Rename(f"{layers}cross_attn_attn_gate", f"{cross}attention_gate"),
            Rename(f"{layers}cross_attn_mlp_gate", f"{cross}mlp_gate"),
            *self.encoder.weights(spec.vision, "model.vision_model."),
            *renames({"model.multi_modal_projector": "projector.mlp"}),
        ]

    def prepare(self, image: U8, spec: ModelSpec, budget: ImageBudget) -> VisualItem:
        assert spec.image is not None
        assert isinstance(spec.vision, TiledTowerSpec)
        pixels, grid, tiles = self.encoder.tiled(image, spec.image, budget)
        seen = grid[0] * spec.vision.positions
        rows = spec.vision.max_tiles * spec.vision.positions if spec.vision.keep_padding else seen
        return VisualItem(pixels, grid, tokens=rows, tiles=tiles, hidden=rows - seen)

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        assert spec.image_token is not None
        assert spec.cross is not None
        token = spec.image_token
        plain = write_images(ids, items, token, lambda item: ([token], (False,)))
        if not items:
            return plain
        places = [span.start for span in plain.spans]
        return Expanded(plain.ids, plain.spans, _visible(places, len(plain.ids), spec.cross.attend_before))

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        own = "|".join(str(i) for i in range(spec.decoder.layers) if i not in spec.decoder.replaced)
        cross = "|".join(map(str, spec.decoder.replaced))
        layers = r"model\.language_model\.layers\."
        return {
            "language.attention": re.compile(rf"{layers}({own})\.self_attn\.[qkvo]_proj"),
            "language.mlp": re.compile(rf"{layers}({own})\.mlp\.(gate|up|down)_proj"),
            "cross.attention": re.compile(rf"{layers}({cross})\.cross_attn\.[qkvo]_proj"),
            "cross.mlp": re.compile(rf"{layers}({cross})\.mlp\.(gate|up|down)_proj"),
            **vision_groups(self.encoder, "model.vision_model."),
            "projector.mlp": re.compile(r"model\.multi_modal_projector"),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return HEADERS


def _visible(places: Sequence[int], length: int, attend_before: bool) -> I32:
    """I32 [T, 2]: pictures whose tokens follow each other are one group, seen until the next group begins; within a
    group, a picture is seen from its own token on."""
    seen = np.zeros((length, 2), np.int32)
    first = 0
    for number, place in enumerate(places):
        if number and place != places[number - 1] + 1:
            first = number
        seen[place:] = (first, number + 1)
    if attend_before:
        seen[: places[0]] = (-1, len(places))
    return seen


# Written for directories without a template: Llama 3's headers, pictures where the message has them.
HEADERS = """\
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{% if message['content'] is string -%}
{{ message['content'] | trim }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|image|>
{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""
