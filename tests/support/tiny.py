"""Tiny random models of each family, made by transformers and saved under the published weight names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

IMAGE_TOKEN, EOS, VOCAB = 150, 2, 160


def qwen2_vl(**text: object) -> PreTrainedModel:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": EOS,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    fields.update(text)
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": fields["hidden_size"],
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    tied = bool(fields.pop("tie", False))
    config = Qwen2VLConfig(
        text_config=fields,
        vision_config=vision,
        tie_word_embeddings=tied,
        image_token_id=IMAGE_TOKEN,
        video_token_id=151,
        vision_start_token_id=152,
        vision_end_token_id=153,
    )
    return shaken(Qwen2VLForConditionalGeneration(config))


def llava(text: str = "llama", **options: object) -> PreTrainedModel:
    configs = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    language = configs[text](
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=EOS,
        bos_token_id=1,
        pad_token_id=0,
        **({"sliding_window": None} if text == "mistral" else {}),
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7
    )
    config = LlavaConfig(
        text_config=language, vision_config=vision, image_token_index=IMAGE_TOKEN, **{"image_seq_length": 16, **options}
    )
    return shaken(LlavaForConditionalGeneration(config))


def shaken(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Weights large enough that attention is not uniform; norms and biases off their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (fan_in**-0.5))
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval().requires_grad_(False)


PREPROCESSOR = {
    "qwen2_vl": {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 64 * 36},
    "llava": {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 3},
}


# How each family's keys are spelled: what 5.x holds in memory -> what was published.
DIALECTS = {
    "qwen2_vl": {
        "published": [("model.visual.", "visual."), ("model.language_model.", "model.")],
        "current": [],
    },
    "llava": {
        "published": [
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ],
        "unprefixed": [
            ("model.vision_tower.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ],
        "current": [],
    },
}


def save(model: PreTrainedModel, directory: Path, dialect: str = "published", shards: int = 2) -> Path:
    """A checkpoint directory as the hub has it: sharded safetensors with an index, and configurations."""
    directory.mkdir(parents=True, exist_ok=True)
    family = model.config.model_type
    renames = DIALECTS[family][dialect]
    state = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for old, new in renames:
            if key.startswith(old):
                key = new + key[len(old) :]
                break
        state[key] = tensor.contiguous()
    names = sorted(state)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: state[n] for n in names[i::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(model.config.to_dict()))
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR[family]))
    return directory
