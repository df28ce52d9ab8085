"""A tiny Pixtral or Mistral Small 3.1 of transformers, saved as Mistral publishes its models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from support import tiny

LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "attention.q_proj": "attention.wq",
    "attention.k_proj": "attention.wk",
    "attention.v_proj": "attention.wv",
    "attention.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "feed_forward.gate_proj": "feed_forward.w1",
    "feed_forward.down_proj": "feed_forward.w2",
    "feed_forward.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}
NAMES = {
    "model.language_model.embed_tokens": "tok_embeddings",
    "model.language_model.norm": "norm",
    "lm_head": "output",
    "model.vision_tower.patch_conv": "vision_encoder.patch_conv",
    "model.vision_tower.ln_pre": "vision_encoder.ln_pre",
    "model.multi_modal_projector.linear_1": "vision_language_adapter.w_in",
    "model.multi_modal_projector.linear_2": "vision_language_adapter.w_out",
    "model.multi_modal_projector.norm": "pre_mm_projector_norm",
    "model.multi_modal_projector.patch_merger.merging_layer": "patch_merger.merging_layer",
}


def save(model: Any, directory: Path) -> Path:
    return tiny.write(directory, named(model), {"params.json": params(model)})


def named(model: Any) -> dict[str, Tensor]:
    """A model's tensors under Mistral's own names."""
    text, vision = model.config.text_config, model.config.vision_config
    state = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        name, _, kind = key.rpartition(".")
        found = re.fullmatch(r"model\.(language_model|vision_tower\.transformer)\.layers\.(\d+)\.(.+)", name)
        if found is None:
            state[f"{NAMES[name]}.{kind}"] = tensor
            continue
        is_text = found[1] == "language_model"
        if found[3].endswith(("q_proj", "k_proj")):
            tensor = side_by_side(
                tensor, text.head_dim if is_text else vision.hidden_size // vision.num_attention_heads
            )
        where = "layers" if is_text else "vision_encoder.transformer.layers"
        state[f"{where}.{found[2]}.{LAYER[found[3]]}.{kind}"] = tensor
    return state


def side_by_side(weight: Tensor, head: int) -> Tensor:
    """Rows that turn together stand half a head apart in transformers, and next to each other here."""
    return weight.view(-1, 2, head // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def save_adapter(peft: Path, config: Any, folder: Path, rank: int, scaling: float) -> Path:
    """A PEFT directory's adapter of a Mistral or one with a Pixtral's tower, as mistral-finetune saves its own.
    config: of the model that transformers has."""
    tensors = load_file(peft / "adapter_model.safetensors")
    saved = dict(named for key, tensor in tensors.items() if (named := _factor(key, tensor, config)) is not None)
    folder.mkdir()
    save_file(saved, folder / "lora.safetensors")
    (folder / "params.json").write_text(json.dumps({"lora": {"enable": True, "rank": rank, "scaling": scaling}}))
    return folder


def _factor(key: str, tensor: Tensor, config: Any) -> tuple[str, Tensor] | None:
    text = getattr(config, "text_config", config)
    found = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB]\.weight)", key)
    if found is None:  # (PEFT saves the head itself beside an adapter of it)
        return None
    module, half = found[1], found[2]
    layer = re.fullmatch(r"model\.(?:(language_model|vision_tower\.transformer)\.)?layers\.(\d+)\.(.+)", module)
    if layer is None:
        return f"{NAMES[module]}.{half}", tensor
    tower = layer[1] == "vision_tower.transformer"
    vision = config.vision_config if tower else None
    head = text.head_dim if vision is None else vision.hidden_size // vision.num_attention_heads
    if half.startswith("lora_B") and module.endswith(("q_proj", "k_proj")):
        tensor = side_by_side(tensor, head).contiguous()
    where = "vision_encoder.transformer.layers" if tower else "layers"
    return f"{where}.{layer[2]}.{LAYER[layer[3]]}.{half}", tensor


def params(model: Any) -> dict[str, object]:
    config, text, vision = model.config, model.config.text_config, model.config.vision_config
    encoder = {
        "hidden_size": vision.hidden_size,
        "num_channels": 3,
        "image_size": 40,
        "patch_size": vision.patch_size,
        "rope_theta": 10000.0,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_hidden_layers,
        "num_attention_heads": vision.num_attention_heads,
        "image_token_id": tiny.IMAGE_TOKEN,
    }
    if config.model_type == "mistral3":
        merger = {"mm_projector_id": "patch_merge", "spatial_merge_size": 2, "add_pre_mm_projector_layer_norm": True}
        encoder |= {**merger, "adapter_bias": False}
    return {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "head_dim": text.head_dim,
        "hidden_dim": text.intermediate_size,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "rope_theta": 10000.0,
        "norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": 512,
        "tied_embeddings": config.tie_word_embeddings,
        "vision_encoder": encoder,
    }
