"""A tokenizer for tiny models: every ASCII character is a token, and each family's special tokens stand where it wants
them, below the tiny vocabulary's end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from support import tiny

CHARS = [chr(i) for i in range(0x21, 0x7F)] + ["\u0120", "\u010a"]  # byte-level: blank and newline
FIRST_CHAR, FIRST_SPECIAL = 3, 100
TILES = [f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)]
CHATML = {"<|im_start|>": 100, "<|im_end|>": 101}
QWEN2 = {**CHATML, "<|image_pad|>": 150, "<|vision_start|>": 152, "<|vision_end|>": 153}
IDEFICS = {"<image>": 150, "<fake_token_around_image>": 100, "<global-img>": 101, "<end_of_utterance>": 102}
PIXTRAL = {"[IMG]": 150, "[IMG_BREAK]": 100, "[IMG_END]": 101, "[INST]": 102, "[/INST]": 103}
HEADERS = {"<|image|>": 150, "<|start_header_id|>": 100, "<|end_header_id|>": 101, "<|eot_id|>": 102}

SPECIAL: Mapping[str, Mapping[str, int]] = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen3_vl": QWEN2,
    "llava": {"<image>": 150},
    "llava_siglip": {"<image>": 150},
    "llava_next": {"<image>": 150},
    "llava.pixtral": PIXTRAL,
    "mistral3": PIXTRAL,
    "idefics3": {**IDEFICS, **{name: 103 + i for i, name in enumerate(TILES)}},
    "smolvlm": {**IDEFICS, **{name: 103 + i for i, name in enumerate(TILES)}},
    "mllama": HEADERS,
    "qwen": {**CHATML, "<img>": 148, "</img>": 149, "<imgpad>": 150},
    "llama": HEADERS,
    "mistral": PIXTRAL,
    "qwen2": CHATML,
    "qwen3": CHATML,
}


def write_tokenizer(directory: Path, family: str) -> None:
    """tokenizer.json and tokenizer_config.json beside a tiny model."""
    special = {"<pad>": 0, "<s>": 1, "</s>": tiny.EOS, **SPECIAL[family]}
    # (the library gives ids of its own to added tokens that are not in the vocabulary)
    vocab = {char: FIRST_CHAR + i for i, char in enumerate(CHARS)} | special
    taken = set(vocab.values())
    vocab |= {f"<unused_{i}>": i for i in range(max(taken)) if i not in taken}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, **flags} for text, i in sorted(special.items(), key=lambda x: x[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "unk_token": "<pad>", "vocab": vocab, "merges": []},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
