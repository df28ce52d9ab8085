"""Adapters of opsin-mini as PEFT writes them, made by hand: no torch, no PEFT, milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
WIDTH = 192  # of opsin-mini


def write(directory: Path, seed: int, rank: int = 4, **fields: Any) -> Path:
    """One that changes the first layer's queries. fields: of its configuration."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    factors = {"A": (rank, WIDTH), "B": (WIDTH, rank)}
    tensors = {f"{Q}.lora_{half}.weight": rng.normal(0, 0.3, shape).astype("f4") for half, shape in factors.items()}
    save_file(tensors, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank} | fields))
    return directory
