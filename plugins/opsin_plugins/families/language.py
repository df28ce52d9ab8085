"""What the families share about language models: the decoder of a text configuration, and its weight rules.

Families differ in wrapping and names, rarely in the decoder: Llama, Mistral and Qwen2 are one description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opsin_plugins.families.config_fields import activation, flag, integer, layer_count, number
from opsin_plugins.loading.weight_files import same_bytes
from opsin_plugins.spec import (
    Concat,
    Config,
    DecoderSpec,
    Ignore,
    ModelFiles,
    Rename,
    RopeScaling,
    RopeSpec,
    Rule,
    SpecError,
)


@dataclass(frozen=True)
class TextDefaults:
    """What a text configuration leaves out, by its model_type (published configurations list only what differs)."""

    width: int
    layers: int
    heads: int
    kv_heads: int | None  # None: as many as heads
    mlp: int
    vocab: int
    eps: float
    theta: float
    positions: int
    qkv_bias: bool = False
    head_norm: bool = False
    head_dim: int | None = None  # None: the width shared among the heads
    window: int | None = None  # tokens that one token attends to; None: all
    # Whether sliding_window counts: never (the class has none), if use_sliding_window says so, or always.
    slides: Literal["never", "if asked", "always"] = "never"


TEXT: Mapping[str, TextDefaults] = {
    "llama": TextDefaults(4096, 32, 32, None, 11008, 32000, 1e-6, 1e4, 2048),
    "mistral": TextDefaults(4096, 32, 32, 8, 14336, 32000, 1e-6, 1e4, 131072, window=4096, slides="always"),
    "qwen2": TextDefaults(4096, 32, 32, 32, 22016, 151936, 1e-6, 1e4, 32768, qkv_bias=True, slides="if asked"),
    "qwen3": TextDefaults(
        4096, 32, 32, 32, 22016, 151936, 1e-6, 1e4, 32768, head_norm=True, head_dim=128, slides="if asked"
    ),
}


def decoder_spec(
    config: Config,
    tied: bool,
    defaults: TextDefaults,
    *,
    mrope: bool = False,
    replaced: tuple[int, ...] = (),
    extra_embeddings: int = 0,
) -> DecoderSpec:
    """Raises SpecError for rope types other than those of `RopeScaling`."""
    width, heads = (
        integer(config, "hidden_size", defaults.width),
        integer(config, "num_attention_heads", defaults.heads),
    )
    kv_heads = (
        heads
        if config.get("num_key_value_heads", 0) is None
        else (integer(config, "num_key_value_heads", defaults.kv_heads or heads))
    )
    head_dim = config.get("head_dim", defaults.head_dim) or width // heads
    if not isinstance(head_dim, int) or heads % kv_heads or head_dim % 2:
        raise SpecError(f"heads {heads}, key-value heads {kv_heads}, head size {head_dim!r} do not fit together")
    bias = flag(config, "attention_bias", defaults.qkv_bias)
    layers = layer_count(config, "num_hidden_layers", defaults.layers)
    if replaced and (sorted(set(replaced)) != list(replaced) or replaced[-1] >= layers):
        raise SpecError(f"cross_attention_layers {replaced} of {layers} layers")
    return DecoderSpec(
        vocab=integer(config, "vocab_size", defaults.vocab),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=integer(config, "intermediate_size", defaults.mlp),
        norm_eps=number(config, "rms_norm_eps", defaults.eps),
        rope=rope_spec(config, head_dim, defaults.theta, mrope),
        activation=activation(config, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias and not defaults.qkv_bias,
        mlp_bias=flag(config, "mlp_bias"),
        head_norm=defaults.head_norm,
        tied=tied,
        extra_embeddings=extra_embeddings,
        replaced=replaced,
    )


def is_tied(
    files: ModelFiles, text: Config, embedding: str = "embed_tokens.weight", head: str = "lm_head.weight"
) -> bool:
    """Whether the output head is the embedding. The files are believed over the configuration: without a stored head it
    is; with one it is only if the configuration says so, at its top or in text_config, and both tensors are equal, byte
    for byte. embedding, head: how the names of the two tensors end.
    """
    says = any(source.get("tie_word_embeddings") is True for source in (files.config, text))
    if not files.tensors:  # a family's example has none
        return says
    stored = next((key for key in files.tensors if key.endswith(head)), None)
    other = next((key for key in files.tensors if key.endswith(embedding)), None)
    if stored is None or other is None:
        return stored is None
    return says and same_bytes(files.tensors, stored, other)


def max_positions(config: Config, defaults: TextDefaults) -> int:
    """Tokens that the decoder can attend to: within a sliding window every token sees all that stand before it, so up
    to its length the window changes nothing; longer contexts are not served."""
    positions = integer(config, "max_position_embeddings", defaults.positions)
    slides = defaults.slides == "always" or (defaults.slides == "if asked" and flag(config, "use_sliding_window"))
    if not slides or config.get("sliding_window", defaults.window) is None:
        return positions
    return min(positions, integer(config, "sliding_window", defaults.window))


def rope_spec(config: Config, head_dim: int, theta: float, mrope: bool) -> RopeSpec:
    """Both published forms: rope_theta beside rope_scaling (4.x), and rope_parameters (5.x)."""
    merged: dict[str, object] = {"rope_theta": config.get("rope_theta", theta)}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise SpecError(f"{key} must be an object, got {value!r}")
        merged.update(value or {})
    base, scaling = number(merged, "rope_theta"), _rope_scaling(merged)
    if scaling is not None and scaling.factors and len(scaling.factors) != head_dim // 2:
        raise SpecError(f"{len(scaling.factors)} rope factors; half the head size is {head_dim // 2}")
    sections = merged.get("mrope_section", ())
    if not mrope:
        return RopeSpec(base, scaling=scaling)
    if not isinstance(sections, Sequence) or len(sections) != 3 or sum(sections) != head_dim // 2:
        raise SpecError(
            f"mrope_section {sections!r} must be three numbers that sum to half the head size, {head_dim // 2}"
        )
    return RopeSpec(base, tuple(int(s) for s in sections), flag(merged, "mrope_interleaved"), scaling)


def _rope_scaling(config: Config) -> RopeScaling | None:
    kind = config.get("rope_type", config.get("type", "default"))
    if kind in ("default", "mrope"):
        return None
    factor = number(config, "factor", 1.0)
    if factor <= 0:
        raise SpecError(f"rope factor {factor} is not above 0")
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "factors":
        return RopeScaling("factors", factors=_factors(config))
    if kind != "llama3":
        raise SpecError(f"rope type {kind!r} is not supported (default, linear, llama3 and mrope are)")
    low, high = number(config, "low_freq_factor"), number(config, "high_freq_factor")
    if low >= high:
        raise SpecError(f"rope low_freq_factor {low} is not below high_freq_factor {high}")
    return RopeScaling("llama3", factor, low, high, integer(config, "original_max_position_embeddings"))


def _factors(config: Config) -> tuple[float, ...]:
    given = config.get("factors")
    if not isinstance(given, Sequence) or not all(isinstance(f, float) and 0 < f < math.inf for f in given):
        raise SpecError("rope factors must be numbers above 0")
    return tuple(given)


def decoder_rules(spec: DecoderSpec, prefix: str) -> list[Rule]:
    """Rules from Llama-style names. prefix: what stands before a language model's, as "model.language_model."."""
    layers = f"{prefix}layers.{{i}}."

    def fused(parts: Sequence[str], target: str, bias: bool) -> list[Rule]:
        kinds = ("weight", "bias") if bias else ("weight",)
        return [Concat(tuple(f"{layers}{p}.{kind}" for p in parts), f"{mine}{target}.{kind}") for kind in kinds]

    def single(source: str, target: str, bias: bool) -> list[Rule]:
        kinds = ("weight", "bias") if bias else ("weight",)
        return [Rename(f"{layers}{source}.{kind}", f"{mine}{target}.{kind}") for kind in kinds]

    mine = "decoder.layers.{i}."
    return [
        *fused([f"self_attn.{n}_proj" for n in "qkv"], "attention.qkv", spec.qkv_bias),
        *single("self_attn.o_proj", "attention.out", spec.out_bias),
        Rename(f"{layers}self_attn.q_norm.weight", f"{mine}attention.q_norm.weight"),
        Rename(f"{layers}self_attn.k_norm.weight", f"{mine}attention.k_norm.weight"),
        *fused(["mlp.gate_proj", "mlp.up_proj"], "mlp.gate_up", spec.mlp_bias),
        *single("mlp.down_proj", "mlp.down", spec.mlp_bias),
        Rename(f"{layers}input_layernorm.weight", f"{mine}attention_norm.weight"),
        Rename(f"{layers}post_attention_layernorm.weight", f"{mine}mlp_norm.weight"),
        Ignore(f"{layers}self_attn.rotary_emb.inv_freq", "a buffer that old checkpoints saved"),
        Rename(f"{prefix}embed_tokens.weight", "decoder.embedding.weight"),
        Rename(f"{prefix}norm.weight", "decoder.norm.weight"),
        *head_rules("lm_head.weight", spec.tied),
    ]


def head_rules(source: str, tied: bool) -> list[Rule]:
    """A tied head has no weight of its own, but adapters know it as a linear."""
    head = Rename(source, "decoder.head.weight")
    return [head, Ignore(source, "the head is the embedding, saved twice")] if tied else [head]
