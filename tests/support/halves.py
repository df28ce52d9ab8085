"""The two halves of a LLaVA: tiny random encoders and language models, saved by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

from support import tiny, words

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CLIP_TEXT, SIGLIP_TEXT = {**TEXT, **SPECIAL, "projection_dim": 16}, {**TEXT, **SPECIAL, "projection_size": 16}
ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=TOWER, text_config=CLIP_TEXT)),
    "clip_vision_model": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**TOWER)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(vision_config=TOWER, text_config=SIGLIP_TEXT)),
    "siglip_vision_model": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**TOWER)),
}
CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant]"  # strings alone


@dataclass
class HalfModel:
    model: Any
    directory: Path


def encoder(kind: str, directory: Path) -> HalfModel:
    model = tiny.shaken(ENCODERS[kind](), seed=1)
    model.save_pretrained(directory)
    preprocessor = tiny.PREPROCESSOR["llava" if kind.startswith("clip") else "llava_siglip"]
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return HalfModel(model, directory)


def language(
    kind: str,
    directory: Path,
    *,
    vocabulary: str | None = None,
    template: str | None = CHAT,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> HalfModel:
    """vocabulary: a family of support.words ("llava" knows the placeholder)."""
    model = tiny.text_model(kind, **changes).to(dtype)
    model.save_pretrained(directory, max_shard_size="60KB")
    words.write_tokenizer(directory, vocabulary or kind)
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return HalfModel(model, directory)
