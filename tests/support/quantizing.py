"""What `opsin quantize` is tested with: tiny models that have opsin-mini's tokenizer, and rows to run them over."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import Result
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from opsin_server.cli import app
from opsin_server.embedded import MODEL
from support import quantized_checks

WORDS = ("a red circle", "the blue square is left of the star", "seven", "no", "yes", "three dots and a cat", "on top")


def text_model(folder: Path) -> LlamaForCausalLM:
    """Random, saved with a tokenizer and a chat template."""
    torch.manual_seed(0)
    sizes = quantized_checks.SIZES | {"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1536, **sizes)).eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(Path(MODEL) / name, folder / name)
    return model


def texts(file: Path, count: int, words: int = 12) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(count):
        asked, said = (" ".join(rng.choice(WORDS, words)) for _ in range(2))
        lines.append([{"role": "user", "content": asked}, {"role": "assistant", "content": said}])
    return written(file, lines)


def pictures(file: Path, count: int) -> Path:
    rng = np.random.default_rng(1)
    lines = []
    for number in range(count):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(data, "PNG")
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        said = WORDS[number % len(WORDS)]
        lines.append([{"role": "user", "content": parts}, {"role": "assistant", "content": said}])
    return written(file, lines)


def written(file: Path, conversations: Sequence[Sequence[dict[str, Any]]]) -> Path:
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return file


def invoke(*words: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(app, ["quantize", *map(str, words)])


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "quantization-report.json").read_text())
    return found
