"""Qwen-VL, the first: OpenCLIP bigG, a resampler, Qwen-7B with log-n attention and dynamic NTK. Source: arXiv
2308.12966.

Its repository brings code of its own (`auto_map`), which is not run. Weights in `.bin` files are refused with how to
convert them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from opsin_plugins.families.base import Family, end_ids, renames, vision_groups
from opsin_plugins.families.config_fields import flag, integer, layer_count, number, section
from opsin_plugins.families.encoders.qwen_vl import QwenVLEncoder
from opsin_plugins.families.language import head_rules, is_tied
from opsin_plugins.spec import (
    U8,
    Concat,
    DecoderSpec,
    ImageBudget,
    ModelFiles,
    ModelSpec,
    Pattern,
    Rename,
    Reorder,
    ResamplerSpec,
    RopeSpec,
    Rule,
    SpecError,
    Split,
    VisualItem,
)

QUERIES, HEAD = 256, 128
END_OF_TEXT, END_OF_TURN = 151643, 151645
VISUAL, POOL = "transformer.visual.", "transformer.visual.attn_pool."


class QwenVL(Family):
    name = "qwen.visual"
    encoder = QwenVLEncoder()

    def spec(self, files: ModelFiles) -> ModelSpec:
        config, visual = files.config, section(files.config, "visual")
        tower = self.encoder.spec(visual, {})
        decoder = _decoder(files)
        width = integer(visual, "output_dim", 4096)
        if width != decoder.width:
            raise SpecError(f"the tower gives {width} values a visual token, the decoder takes {decoder.width}")
        head = integer(visual, "pool_head_dim", HEAD)
        trained = integer(config, "seq_length", 2048)
        longest = integer(config, "max_position_embeddings", 8192)
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ResamplerSpec(
                tower.width,
                0,
                width,
                "gelu",
                norm_eps=1e-6,
                queries=integer(visual, "n_queries", QUERIES),
                heads=width // head,
            ),
            image=self.encoder.image(tower, visual, {}),
            fusion="scatter",
            encoder=self.encoder.name,
            image_token=integer(visual, "image_start_id", 151857, least=0) + 2,
            eos=(*end_ids(files), END_OF_TURN, END_OF_TEXT),
            max_positions=longest if decoder.rope.ntk_from else min(longest, trained),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        layers, mine = "transformer.h.{i}.", "decoder.layers.{i}."
        pool = ("projector.q", "projector.k", "projector.v")
        return [
            Rename("transformer.wte.weight", "decoder.embedding.weight"),
            Rename("transformer.ln_f.weight", "decoder.norm.weight"),
            *head_rules("lm_head.weight", spec.decoder.tied),
            *renames({f"{layers}attn.c_attn": f"{mine}attention.qkv"}),
            *renames(
                {
                    f"{layers}attn.c_proj": f"{mine}attention.out",
                    f"{layers}mlp.c_proj": f"{mine}mlp.down",
                    f"{layers}ln_1": f"{mine}attention_norm",
                    f"{layers}ln_2": f"{mine}mlp_norm",
                },
                ["weight"],
            ),
            Concat((f"{layers}mlp.w2.weight", f"{layers}mlp.w1.weight"), f"{mine}mlp.gate_up.weight"),
            *self.encoder.weights(spec.vision, VISUAL),
            Rename(f"{POOL}query", "projector.query"),
            Rename(f"{POOL}pos_embed", "projector.positions"),
            Rename(f"{POOL}kv_proj.weight", "projector.kv_in.weight"),
            Split(f"{POOL}attn.in_proj_weight", tuple(f"{p}.weight" for p in pool)),
            Split(f"{POOL}attn.in_proj_bias", tuple(f"{p}.bias" for p in pool)),
            *renames(
                {
                    f"{POOL}attn.out_proj": "projector.out",
                    f"{POOL}ln_q": "projector.query_norm",
                    f"{POOL}ln_kv": "projector.kv_norm",
                    f"{VISUAL}ln_post": "projector.out_norm",
                }
            ),
            Rename(f"{VISUAL}proj", "projector.proj.weight", Reorder((), (1, 0), axis=None)),
        ]

    def prepare(self, image: U8, spec: ModelSpec, budget: ImageBudget) -> VisualItem:
        """One size for every picture: a budget changes nothing."""
        assert isinstance(spec.projector, ResamplerSpec)
        return replace(super().prepare(image, spec, budget), tokens=spec.projector.queries)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        language = r"transformer\.h\.\d+\."
        return {
            "language.attention": re.compile(language + r"attn\.c_(attn|proj)"),
            "language.mlp": re.compile(language + r"mlp\.(w1|w2|c_proj)"),
            **vision_groups(self.encoder, VISUAL),
            "projector.attention": re.compile(r"transformer\.visual\.attn_pool\.(kv_proj|attn\.out_proj)"),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return CHATML


def _decoder(files: ModelFiles) -> DecoderSpec:
    config = files.config
    width, heads = integer(config, "hidden_size", 4096), integer(config, "num_attention_heads", 32)
    if number(config, "rotary_pct", 1.0) != 1.0:
        raise SpecError(f"rotary_pct {config['rotary_pct']!r} is not supported (1.0 is)")
    if not flag(config, "no_bias", True):
        raise SpecError("no_bias: false is not supported")
    trained = integer(config, "seq_length", 2048)
    stretches, scales = (flag(config, key, True) for key in ("use_dynamic_ntk", "use_logn_attn"))
    return DecoderSpec(
        vocab=integer(config, "vocab_size", 151936),
        width=width,
        layers=layer_count(config, "num_hidden_layers", 32),
        heads=heads,
        kv_heads=heads,
        head_dim=integer(config, "kv_channels", width // heads),
        mlp=integer(config, "intermediate_size", 22016) // 2,
        norm_eps=number(config, "layer_norm_epsilon", 1e-6),
        rope=RopeSpec(number(config, "rotary_emb_base", 1e4), ntk_from=trained if stretches else 0),
        qkv_bias=True,
        tied=is_tied(files, config, embedding="wte.weight"),
        log_scale_from=trained if scales else 0,
    )


# The repository keeps its prompt form in code: ChatML, pictures numbered through the conversation.
CHATML = """\
{%- set pictures = namespace(count=0) -%}
{%- if not messages or messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set pictures.count = pictures.count + 1 -%}
Picture {{ pictures.count }}: <img><imgpad></img>
{% elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
