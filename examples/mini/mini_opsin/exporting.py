"""Writes a checkpoint as a Hugging Face model directory in bf16, and proves that it is whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

from mini_opsin import checkpoint, curriculum
from mini_opsin.batches import Form, picture_batch
from mini_opsin.encoder import Encoder
from mini_opsin.fonts import Fonts
from mini_opsin.forward import MEAN, STD
from mini_opsin.labels import PATCH
from mini_opsin.loading import load_model, load_tokenizer
from mini_opsin.model import MERGE, TEMPORAL, make_config
from mini_opsin.parity import TOLERANCE, check_parity

MIN_PIXELS, MAX_PIXELS = 48 * 48, 96 * 96
LIMIT = 12_000_000  # bytes of model.safetensors


def preprocessor() -> dict[str, object]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL,
        "merge_size": MERGE,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }


def tidy_tokenizer_config(path: Path) -> None:
    """A class name that every transformers release knows, and no traces of where the file came from."""
    settings = json.loads(path.read_text())
    kept = {k: v for k, v in settings.items() if k not in ("is_local", "local_files_only", "backend")}
    path.write_text(json.dumps(kept | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def export(path: Path, out: Path, heads: Path | None = None) -> tuple[int, int]:
    """(parameters, bytes of model.safetensors). The tokenizer lies beside the checkpoint."""
    state = checkpoint.read(path)
    if heads:
        save_file(state.heads, heads)
    tokenizer = load_tokenizer(path.parent / "tokenizer")
    config = make_config(tokenizer, state.sizes)
    model = Qwen2VLForConditionalGeneration(config)
    # lm_head is the embedding table and is not in the file.
    missing, unknown = model.load_state_dict(state.model, strict=False)
    if set(missing) - {"lm_head.weight"} or unknown:
        raise ValueError(f"{path} does not fit its own sizes: missing {missing}, unknown {unknown}")
    torch.nn.Module.to(model, torch.bfloat16)  # transformers annotates its own `to` wrongly
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    answers = {"do_sample": False, "max_new_tokens": 48, "eos_token_id": end, "pad_token_id": pad}
    model.generation_config = GenerationConfig.from_dict(answers)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    tidy_tokenizer_config(out / "tokenizer_config.json")
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor(), indent=2) + "\n")
    size = (out / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise ValueError(f"model.safetensors has {size} bytes, more than the limit of {LIMIT}")
    return sum(p.numel() for p in model.parameters()), size


def parity_of(directory: Path, seed: int = 0) -> float:
    """Loads the directory as anyone would and compares both forwards on shapes; raises ValueError past 1e-4."""
    tokenizer, model = load_tokenizer(directory), load_model(directory)
    shapes_only = Fonts(text=(None,), held_out=(None,), emoji=None)
    stage = curriculum.exam()
    stage.kinds = {"scene2": 1.0}
    batch = picture_batch(Encoder(tokenizer), random.Random(seed), stage, Form((96, 80), 2, 2, 128), shapes_only)
    difference = check_parity(model, batch.pixels, batch.packed.layout)
    if difference > TOLERANCE:
        raise ValueError(f"logits differ from transformers' by {difference:.1e}, more than {TOLERANCE:.0e}")
    return difference
