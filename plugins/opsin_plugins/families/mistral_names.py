"""The names that Mistral's own programs use, and the order of their rotary pairs: of its checkpoints, and of adapters
that mistral-finetune trains, which fit the models that transformers reads as well. Source: the published
mistral-inference code."""

from __future__ import annotations

import re
from collections.abc import Mapping

from opsin_plugins.families.base import renames
from opsin_plugins.families.language import head_rules
from opsin_plugins.spec import Concat, ModelSpec, Pattern, PublishedNames, Rename, Reorder, Rule

TOWER = "vision_encoder.transformer.layers.{i}."


def mistral_rules(spec: ModelSpec) -> list[Rule]:
    decoder = spec.decoder
    language = [
        *_layers("layers.{i}.", "decoder.layers.{i}.", (decoder.heads, decoder.kv_heads), decoder.head_dim),
        Rename("tok_embeddings.weight", "decoder.embedding.weight"),
        Rename("norm.weight", "decoder.norm.weight"),
        *head_rules("output.weight", decoder.tied),
    ]
    if spec.vision is None or spec.projector is None:
        return language
    head = spec.vision.width // spec.vision.heads
    kinds = ("weight", "bias") if spec.projector.bias else ("weight",)
    projector = {
        "vision_language_adapter.w_in": "projector.mlp.up",
        "vision_language_adapter.w_out": "projector.mlp.down",
    }
    return [
        *language,
        *_layers(TOWER, "vision.layers.{i}.", (spec.vision.heads,) * 2, head),
        Rename("vision_encoder.patch_conv.weight", "vision.patch.weight"),
        Rename("vision_encoder.ln_pre.weight", "vision.pre_norm.weight"),
        Rename("pre_mm_projector_norm.weight", "projector.norm.weight"),
        join_rule("patch_merger.merging_layer.weight", spec.projector.in_width, spec.projector.merge),
        *renames(projector, kinds),
    ]


def join_rule(source: str, width: int, merge: int) -> Rename:
    """Published: the first channel of all neighbours, then the second's; ours: neighbour by neighbour."""
    return Rename(source, "projector.join.weight", Reorder((width, merge * merge), (1, 0), axis=1))


def mistral_names(spec: ModelSpec) -> PublishedNames:
    return PublishedNames(mistral_rules(spec), mistral_groups(spec))


def mistral_groups(spec: ModelSpec) -> Mapping[str, Pattern]:
    language, tower = r"layers\.\d+\.", r"vision_encoder\.transformer\.layers\.\d+\."
    return {
        "language.attention": re.compile(language + r"attention\.w[qkvo]"),
        "language.mlp": re.compile(language + r"feed_forward\.w[123]"),
        "vision.attention": re.compile(tower + r"attention\.w[qkvo]"),
        "vision.mlp": re.compile(tower + r"feed_forward\.w[123]"),
        "projector.mlp": re.compile(r"vision_language_adapter\.w_(in|out)|patch_merger\.merging_layer"),
    }


def _layers(source: str, mine: str, heads: tuple[int, int], head_dim: int) -> list[Rule]:
    """Decoder and tower have one form. Queries and keys turn in pairs that stand side by side; ours stand half a head
    apart."""
    halves = tuple(Reorder((count, head_dim // 2, 2), (0, 2, 1)) for count in heads)
    return [
        Concat(tuple(f"{source}attention.w{n}.weight" for n in "qkv"), f"{mine}attention.qkv.weight", (*halves, None)),
        Concat(tuple(f"{source}feed_forward.{n}.weight" for n in ("w1", "w3")), f"{mine}mlp.gate_up.weight"),
        *renames(
            {
                f"{source}attention.wo": f"{mine}attention.out",
                f"{source}feed_forward.w2": f"{mine}mlp.down",
                f"{source}attention_norm": f"{mine}attention_norm",
                f"{source}ffn_norm": f"{mine}mlp_norm",
            },
            ["weight"],
        ),
    ]
