"""A language model in a GGUF, as transformers would describe it: its configuration, and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from opsin_plugins.loading.gguf.container import Container, StoredTensor
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.loading.gguf.packing import tensor_info
from opsin_plugins.spec import Reorder, SpecError, TensorInfo

# What llama.cpp calls an architecture, and its model_type. A Mistral is a llama there; the language model of Mistral
# Small 3.1 is one too, or, of later converters, a mistral3, which is the same but for its name.
KINDS = {"llama": "llama", "mistral3": "mistral", "qwen2": "qwen2", "qwen2vl": "qwen2", "qwen3": "qwen3"}
TURNED = ("llama", "mistral3")  # whose neighbours are turned
REFUSED = {"expert_count": "a mixture of experts", "ssm.state_size": "a state space model"}
ROPE_FACTORS = "rope_freqs.weight"

LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>[a-z_]+)\.(?P<kind>weight|bias)")
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def decoder_config(container: Container) -> dict[str, Any]:
    """As config.json would have it. Raises SpecError for what is no decoder of ours."""
    said = Fields(container)
    architecture = said.text("general.architecture")
    if architecture == "clip":
        raise SpecError(
            f"{container.path} is the vision tower of a model: give it as --mmproj beside the decoder's GGUF"
        )
    if architecture not in KINDS:
        raise SpecError(
            f"{container.path}: the architecture {architecture!r} is not read from GGUF; there are "
            f"{', '.join(KINDS)} (the model may be served from its safetensors)"
        )
    own = said.of(f"{architecture}.")
    for key, what in REFUSED.items():
        if own.integer(key, 0):
            raise SpecError(f"{container.path} is {what}, which is not served")
    if own.number("attention.temperature_scale", 0.0):
        raise SpecError(f"{container.path} scales queries by their position (Ministral 3), which is not served")
    embedding = _tensor(container, "token_embd.weight")
    heads, width = own.integer("attention.head_count"), own.integer("embedding_length")
    return {
        "model_type": KINDS[architecture],
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": own.integer("feed_forward_length"),
        "num_hidden_layers": own.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own.integer("attention.head_count_kv", heads),
        "head_dim": own.integer("attention.key_length", width // max(1, heads)),
        "rms_norm_eps": own.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": own.integer("context_length"),
        "attention_bias": "blk.0.attn_q.bias" in container.tensors,
        "tie_word_embeddings": "output.weight" not in container.tensors,
        "rope_theta": own.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(container, own),
        "sliding_window": own.integer("attention.sliding_window", 0) or None,
        "bos_token_id": said.maybe("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_ids(said),
    }


def end_ids(said: Fields) -> list[int]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (said.maybe(f"tokenizer.ggml.{key}") for key in keys)
    return list(dict.fromkeys(i for i in found if isinstance(i, int)))


def _rope_scaling(container: Container, own: Fields) -> dict[str, Any] | None:
    """A tensor of factors, one a frequency, says what a name and its parameters would."""
    if (factors := container.tensors.get(ROPE_FACTORS)) is not None:
        return {"rope_type": "factors", "factors": _numbers(container, factors).tolist()}
    kind = own.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": own.number("rope.scaling.factor")}


def decoder_tensors(container: Container, config: Mapping[str, Any], prefix: str = "model.") -> dict[str, TensorInfo]:
    """By the names that transformers has for them. prefix: what it puts in front of the language model's. llama.cpp
    turns neighbours where transformers turns halves, so a llama's queries and keys stand in another order there."""
    turned = Fields(container).text("general.architecture") in TURNED
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found: dict[str, TensorInfo] = {}
    for name, stored in container.tensors.items():
        if name == ROPE_FACTORS:
            continue
        layer = LAYER.fullmatch(name)
        if layer is not None and layer["part"] in PARTS:
            order = halves(stored, heads[layer["part"]]) if turned and layer["part"] in heads else None
            key = f"model.layers.{layer['layer']}.{PARTS[layer['part']]}.{layer['kind']}"
        else:
            order, key = None, NAMES.get(name, name)  # (an unknown one: the family refuses it by its name)
        found[prefix + key.removeprefix("model.") if key.startswith("model.") else key] = tensor_info(stored, order)
    return found


def halves(stored: StoredTensor, heads: int) -> Reorder:
    """From rows [heads, D / 2, 2] to [heads, 2, D / 2]."""
    half = stored.shape[0] // max(1, 2 * heads)
    return Reorder((heads, half, 2), (0, 2, 1))


def _tensor(container: Container, name: str) -> StoredTensor:
    if name not in container.tensors:
        raise SpecError(f"{container.path} has no {name}: it is no language model")
    return container.tensors[name]


def _numbers(container: Container, stored: StoredTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    if stored.kind != "F32" or len(stored.shape) != 1:
        raise SpecError(f"{container.path}: {ROPE_FACTORS} is {stored.kind} {list(stored.shape)}")
    return np.fromfile(stored.file, "<f4", stored.shape[0], offset=stored.begin)
