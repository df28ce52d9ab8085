"""Tiny random models of each family, made by transformers and saved under the published weight names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from support import qwen_vl_reference

IMAGE_TOKEN, EOS, VOCAB = 150, 2, 160
TEXT: dict[str, Any] = {
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
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 151,
    "vision_start_token_id": 152,
    "vision_end_token_id": 153,
}


def qwen2_vl(**text: Any) -> PreTrainedModel:
    fields = {**TEXT, "rope_parameters": MROPE, **text}
    tied, vision = bool(fields.pop("tie", False)), fields.pop("vision", {})
    tower = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2}
    config = hf.Qwen2VLConfig(
        text_config=fields,
        vision_config={**tower, "hidden_size": fields["hidden_size"], **vision},
        tie_word_embeddings=tied,
        **QWEN_TOKENS,
    )
    return shaken(hf.Qwen2VLForConditionalGeneration(config))


def qwen2_5_vl(**text: Any) -> PreTrainedModel:
    """Windows of 2 x 2 merged patches, the whole picture in the second layer."""
    fields = {**TEXT, "rope_parameters": MROPE, **text}
    tied, vision = bool(fields.pop("tie", False)), fields.pop("vision", {})
    tower = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": fields["hidden_size"],
    }
    config = hf.Qwen2_5_VLConfig(
        text_config=fields, vision_config={**tower, **vision}, tie_word_embeddings=tied, **QWEN_TOKENS
    )
    return shaken(hf.Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl(**text: Any) -> PreTrainedModel:
    """Two taps; the position table is stretched for nearly every picture."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    fields = {**TEXT, "head_dim": 16, "rope_parameters": rope, **text}
    tied, vision = bool(fields.pop("tie", False)), fields.pop("vision", {})
    tower = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": fields["hidden_size"],
    }
    config = hf.Qwen3VLConfig(
        text_config=fields, vision_config={**tower, **vision}, tie_word_embeddings=tied, **QWEN_TOKENS
    )
    return shaken(hf.Qwen3VLForConditionalGeneration(config))


LANGUAGE = {"qwen3": hf.Qwen3Config, "llama": hf.LlamaConfig, "mistral": hf.MistralConfig, "qwen2": hf.Qwen2Config}


def language(kind: str, **changes: Any) -> Any:
    window = {"sliding_window": None} if kind == "mistral" else {}
    return LANGUAGE[kind](**{**TEXT, **window, **changes})


def llava(text: str = "llama", sizes: Mapping[str, Any] | None = None, **options: Any) -> PreTrainedModel:
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7
    )
    return _llava(text, sizes, vision, options)


def llava_siglip(text: str = "llama", sizes: Mapping[str, Any] | None = None, **options: Any) -> PreTrainedModel:
    vision = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7
    )
    return _llava(text, sizes, vision, {"vision_feature_select_strategy": "full", **options})


def pixtral(text: str = "mistral", sizes: Mapping[str, Any] | None = None, **options: Any) -> PreTrainedModel:
    """The language model's heads are wider than its hidden size allows, as published."""
    vision = _pixtral_tower(options.pop("vision", {}))
    fixed = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, **options}
    return _llava(text, {"head_dim": 24, **(sizes or {})}, vision, fixed)


def _pixtral_tower(changes: Mapping[str, Any]) -> Any:
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 4,
        "hidden_act": "silu",
    }
    return hf.PixtralVisionConfig(**{**fields, **changes})


def _llava(text: str, sizes: Mapping[str, Any] | None, vision: Any, options: dict[str, Any]) -> PreTrainedModel:
    config = hf.LlavaConfig(
        text_config=language(text, **(sizes or {})),
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        **{"image_seq_length": 16, **options},
    )
    return shaken(hf.LlavaForConditionalGeneration(config))


def mistral3(**options: Any) -> PreTrainedModel:
    config = hf.Mistral3Config(
        text_config=language("mistral", head_dim=24, rms_norm_eps=1e-5),
        vision_config=_pixtral_tower(options.pop("vision", {})),
        image_token_index=IMAGE_TOKEN,
        spatial_merge_size=2,
        **options,
    )
    return shaken(hf.Mistral3ForConditionalGeneration(config))


def llava_next(text: str = "llama", **options: Any) -> PreTrainedModel:
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7
    )
    config = hf.LlavaNextConfig(
        text_config=language(text),
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=_NEXT["image_grid_pinpoints"],
        **options,
    )
    return shaken(hf.LlavaNextForConditionalGeneration(config))


def idefics3(**changes: Any) -> PreTrainedModel:
    return shaken(hf.Idefics3ForConditionalGeneration(_idefics(hf.Idefics3Config, "idefics3_vision", changes)))


def smolvlm(**changes: Any) -> PreTrainedModel:
    return shaken(hf.SmolVLMForConditionalGeneration(_idefics(hf.SmolVLMConfig, "smolvlm_vision", changes)))


def _idefics(config: Any, vision_type: str, changes: dict[str, Any]) -> Any:
    vision = {
        "model_type": vision_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    fields = {**TEXT, "model_type": "llama", "rope_parameters": LLAMA3, **changes}
    return config(text_config=fields, vision_config=vision, image_token_id=IMAGE_TOKEN, scale_factor=2)


MLLAMA_VOCAB = IMAGE_TOKEN  # the placeholder is the first id past the vocabulary


def mllama(**text: Any) -> PreTrainedModel:
    """Gates off zero, and a number of patches that is no multiple of eight (transformers' mask needs that)."""
    fields = {**TEXT, "vocab_size": MLLAMA_VOCAB, "num_hidden_layers": 5, "cross_attention_layers": [1, 3]}
    vision = {
        "hidden_size": 32,
        "attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 20,
        "patch_size": 4,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "intermediate_layers_indices": [0, 2],
        "vision_output_dim": 96,
        "max_num_tiles": 4,
    }
    config = hf.MllamaConfig(
        text_config=hf.models.mllama.MllamaTextConfig(**{**fields, "rope_parameters": LLAMA3, **text}),
        vision_config=hf.models.mllama.MllamaVisionConfig(**vision),
        image_token_index=IMAGE_TOKEN,
    )
    return shaken(hf.MllamaForConditionalGeneration(config), scale=1.5)


def text_model(kind: str, **changes: Any) -> PreTrainedModel:
    return shaken(hf.AutoModelForCausalLM.from_config(language(kind, **changes)))


def shaken(model: PreTrainedModel, seed: int = 0, scale: float = 1.0) -> PreTrainedModel:
    """Weights large enough that attention is not uniform; norms, gates and biases off their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "gate" in name and parameter.dim() == 1:
                parameter.copy_(0.8 + 0.1 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise * scale * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(noise * 0.1)
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------- as it is published


Renames = Sequence[tuple[str, str]]  # what 5.x holds in memory -> what was published
_LLAVA = [
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
]
_QWEN = [("model.visual.", "visual."), ("model.language_model.", "model.")]
_CLIP_DIALECTS: Mapping[str, Renames] = {
    "published": [("model.vision_tower.", "vision_tower.vision_model."), *_LLAVA],
    "unprefixed": [("model.vision_tower.", "vision_tower."), *_LLAVA],
    "current": [],
}
_PIXTRAL_DIALECTS: Mapping[str, Renames] = {
    "published": [("model.vision_tower.", "vision_tower."), *_LLAVA],
    "current": [],
}


@dataclass(frozen=True)
class Published:
    """How a family's directories look. options: of `--model-option`, under which it equals transformers."""

    make: Callable[..., Any]
    preprocessor: Mapping[str, Any]
    dialects: Mapping[str, Renames]
    options: Mapping[str, str] = field(default_factory=dict)


_CLIP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
_NEXT = {**_CLIP, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]}
_SIGLIP = {"size": {"height": 28, "width": 28}, "resample": 3}
_SMART = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 64 * 36}
_PIXTRAL = {"size": {"longest_edge": 40}, "patch_size": {"height": 4, "width": 4}, "resample": 3}
_IDEFICS = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "resample": 1}
_MLLAMA = {"size": {"height": 20, "width": 20}, "max_image_tiles": 4, "resample": 2}

FAMILIES: Mapping[str, Published] = {
    "qwen2_vl": Published(qwen2_vl, _SMART, {"published": _QWEN, "current": []}),
    "qwen2_5_vl": Published(qwen2_5_vl, _SMART, {"published": _QWEN, "current": []}),
    "qwen3_vl": Published(qwen3_vl, {**_SMART, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"current": []}),
    "llava": Published(llava, _CLIP, _CLIP_DIALECTS),
    "llava_siglip": Published(llava_siglip, _SIGLIP, _CLIP_DIALECTS),
    "llava_next": Published(llava_next, _NEXT, _CLIP_DIALECTS),
    "llava.pixtral": Published(pixtral, _PIXTRAL, _PIXTRAL_DIALECTS),
    "mistral3": Published(mistral3, _PIXTRAL, _PIXTRAL_DIALECTS),
    "idefics3": Published(idefics3, _IDEFICS, {"current": []}),
    "smolvlm": Published(smolvlm, _IDEFICS, {"current": []}),
    "mllama": Published(
        mllama,
        _MLLAMA,
        {
            "published": [
                ("model.vision_model.", "vision_model."),
                ("model.multi_modal_projector.", "multi_modal_projector."),
                ("model.language_model.", "language_model.model."),
                ("lm_head.", "language_model.lm_head."),
            ],
            "current": [],
        },
        {"tokens_before_image": "all"},
    ),
    "qwen": Published(qwen_vl_reference.make, {}, {"published": []}),
    "llama": Published(lambda **text: text_model("llama", **text), {}, {"published": []}),
    "mistral": Published(
        lambda **text: text_model("mistral", **text), {}, {"published": [], "without head": [("model.", "")]}
    ),
    "qwen3": Published(lambda **text: text_model("qwen3", head_dim=24, **text), {}, {"published": []}),
    "qwen2": Published(lambda **text: text_model("qwen2", **text), {}, {"published": []}),
}


def family_of(model: nn.Module) -> str:
    config: Any = model.config
    vision = getattr(getattr(config, "vision_config", None), "model_type", None)
    return {"pixtral": "llava.pixtral", "siglip_vision_model": "llava_siglip"}.get(
        vision if config.model_type == "llava" else "", config.model_type
    )


def encode(text: str) -> list[int]:
    """Stands for a tokenizer: an id of its own for the few texts that families write around images."""
    return [100 + sum(piece.encode()) % 40 for piece in re.findall(r"<[^>]*>|\[[^\]]*\]|\n+", text)]


def named(model: Any, dialect: str | None = None) -> dict[str, Tensor]:
    """A model's tensors under the names of a dialect, the published one unless another is given."""
    dialects = FAMILIES[family_of(model)].dialects
    renames = dialects[dialect or next(iter(dialects))]
    state = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and getattr(model.config, "tie_word_embeddings", False):
            continue
        old, new = next((pair for pair in renames if key.startswith(pair[0])), ("", ""))
        state[new + key[len(old) :]] = tensor.contiguous()
    return state


def save(model: Any, directory: Path, dialect: str | None = None, shards: int = 2) -> Path:
    """A checkpoint directory as the hub has it: sharded safetensors with an index, and configurations."""
    published, state = FAMILIES[family_of(model)], named(model, dialect)
    write(directory, state, {"config.json": model.config.to_dict()}, shards)
    if published.preprocessor:
        (directory / "preprocessor_config.json").write_text(json.dumps(published.preprocessor))
    return directory


def write(directory: Path, state: Mapping[str, Tensor], configs: Mapping[str, object], shards: int = 1) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    names, weight_map = sorted(state), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: state[n].contiguous() for n in names[i::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, config in configs.items():
        (directory / name).write_text(json.dumps(config))
    return directory


PREPROCESSOR = {name: published.preprocessor for name, published in FAMILIES.items()}
