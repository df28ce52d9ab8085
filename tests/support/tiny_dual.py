"""Tiny random CLIP and SigLIP checkpoints as they are published, made by transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from support.tiny import shaken, write

WORDS = ("cat", "dog", "photo", "of", "two", "a")
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 28, "patch_size": 7}
SIDE = {"height": 28, "width": 28}


def clip(**text: Any) -> Any:
    """Its end of text is what its tokenizer says; `eos_token_id=2` makes it one of the old ones."""
    ids = {"vocab_size": clip_tokenizer().get_vocab_size(), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    config = hf.CLIPConfig(
        text_config={**TEXT, **ids, "max_position_embeddings": 16, **text},
        vision_config={**VISION, "hidden_size": 48},
        projection_dim=24,
    )
    return shaken(hf.CLIPModel(config))


def siglip(**text: Any) -> Any:
    ids = {"vocab_size": siglip_tokenizer().get_vocab_size(), "pad_token_id": 0}
    config = hf.SiglipConfig(text_config={**TEXT, **ids, "max_position_embeddings": 12, **text}, vision_config=VISION)
    return shaken(hf.SiglipModel(config))


def siglip2(**text: Any) -> Any:
    """Pictures of any shape, of 20 patches at most; the table of positions is 4 x 4."""
    ids = {"vocab_size": siglip_tokenizer().get_vocab_size(), "pad_token_id": 0}
    vision = {**TEXT, "patch_size": 7, "num_patches": 16}
    config = hf.Siglip2Config(text_config={**TEXT, **ids, "max_position_embeddings": 12, **text}, vision_config=vision)
    return shaken(hf.Siglip2Model(config))


def _letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_tokenizer() -> Tokenizer:
    """Bytes and a few merges; as published, text is lowered and no text can hold the marks of its ends."""
    vocab = {name: i for i, name in enumerate(["<|startoftext|>", "<|endoftext|>", *_letters()])}
    vocab |= {f"{letter}</w>": len(vocab) + i for i, letter in enumerate(_letters())}
    vocab["ca"], vocab["cat</w>"] = len(vocab), len(vocab) + 1
    merges = [("c", "a"), ("ca", "t</w>")]
    tokenizer = Tokenizer(
        BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=True) for name in ("<|startoftext|>", "<|endoftext|>")])
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0), False, False)
    return tokenizer


def siglip_tokenizer() -> Tokenizer:
    """Pieces with a blank in front, of which the whole text has one."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(chr(c), -6.0) for c in range(97, 123)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


_CLIP_FILES: Mapping[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": SIDE,
        "resample": 3,
    },
    "tokenizer_config.json": {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
    },
}
_SIGLIP_FILES: Mapping[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "SiglipImageProcessor",
        "size": SIDE,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
    "tokenizer_config.json": {
        "tokenizer_class": "SiglipTokenizer",
        "do_lower_case": True,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 12,
    },
}


_SIGLIP2_FILES: Mapping[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": 7,
        "max_num_patches": 20,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
    "tokenizer_config.json": {**_SIGLIP_FILES["tokenizer_config.json"], "tokenizer_class": "Siglip2Tokenizer"},
}
_FILES = {"clip": _CLIP_FILES, "siglip": _SIGLIP_FILES, "siglip2": _SIGLIP2_FILES}


def save(model: Any, directory: Path) -> Path:
    """A checkpoint directory, complete."""
    kind = model.config.model_type
    write(directory, model.state_dict(), {"config.json": model.config.to_dict(), **_FILES[kind]})
    tokenizer = clip_tokenizer() if kind == "clip" else siglip_tokenizer()
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    return directory


def edit(directory: Path, name: str, **changes: Any) -> None:
    """Fields of one of its JSON files."""
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
