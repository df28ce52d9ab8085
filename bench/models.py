"""The two models that are measured, as ordinary directories that every system loads.

mini: the embedded opsin-mini. 135m: a random Qwen2-VL of the 135M class (30 layers of 576, 49,152 tokens), made on the
fly. 2b: a random Qwen2-VL-2B, for a GPU. Nothing ends an answer early: the generation config names no end token.

    python models.py 135m DIRECTORY        makes that directory (in a process of its own, since it needs torch)
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from opsin_server.embedded import MODEL as MINI

NAMES = ("mini", "135m")
VOCAB = 49_152
SEED = 20_240_229
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
NO_END = {"do_sample": False, "max_new_tokens": 128, "pad_token_id": 0}
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 56 * 56,
    "max_pixels": 1280 * 28 * 28,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28},
}


def prepare(name: str, folder: Path) -> Path:
    """The model's directory inside `folder`; one that is there is taken as it is."""
    directory = folder / name
    if not (directory / "generation_config.json").exists():
        if name == "mini":
            shutil.copytree(MINI, directory, dirs_exist_ok=True)
        else:
            subprocess.run([sys.executable, __file__, name, directory], check=True)
        (directory / "generation_config.json").write_text(json.dumps(NO_END))
    return directory


def text_config() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "pad_token_id": 0,
    }


def vision_config() -> dict[str, Any]:
    return {
        "depth": 12,
        "embed_dim": 384,
        "hidden_size": 576,
        "num_heads": 6,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def make_135m(directory: Path) -> None:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(SEED)
    config = Qwen2VLConfig(
        text_config=text_config(),
        vision_config=vision_config(),
        tie_word_embeddings=True,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(directory)
    make_tokenizer(VOCAB).save(str(directory / "tokenizer.json"))
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MINI / name, directory)


def make_2b(directory: Path) -> None:
    """With the published sizes, in bfloat16, made on the GPU if there is one. It has no tokenizer."""
    import torch
    from image_tokens import CONFIGS
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(SEED)
    published = CONFIGS / "Qwen2-VL-2B-Instruct"
    config = Qwen2VLConfig(**json.loads((published / "config.json").read_text()))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    shutil.copy(published / "preprocessor_config.json", directory)


def make_tokenizer(size: int) -> Tokenizer:
    """Byte-level BPE of pairs of letters, the same after a space, and pairs of pairs, until the vocabulary is full."""
    pairs = [a + b for a, b in itertools.product(string.ascii_lowercase, repeat=2)]
    merges = [(p[0], p[1]) for p in pairs] + [("Ġ", p) for p in pairs] + [(a, b) for a in pairs for b in pairs]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = merges[: size - len(SPECIAL) - len(alphabet)]
    tokens = [*SPECIAL, *alphabet, *("".join(m) for m in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["135m", "2b"])
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    (make_2b if given.name == "2b" else make_135m)(given.directory)


if __name__ == "__main__":
    main()
