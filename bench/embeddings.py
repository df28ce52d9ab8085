"""Texts and pictures a second to embeddings: a random CLIP of ViT-B/32's size over the API, against transformers.

python bench/embeddings.py      three minutes; both in float32 with one thread, the same inputs, rounds interleaved
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import report
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from processes import Threads
from safetensors.torch import save_file
from systems import Opsin
from tables import table
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

TEXTS, WORDS, PICTURES, TOGETHER, ROUNDS = 256, 12, 32, 32, 5
PIXELS = (300, 400)
START, END = "<|startoftext|>", "<|endoftext|>"
SIDE = {"height": 224, "width": 224}
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": SIDE}


def tokenizer() -> Tokenizer:
    """A word a token, so that texts have a length that is known."""
    vocabulary = {name: i for i, name in enumerate([START, END, *(f"w{i}" for i in range(1000))])}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.add_special_tokens([AddedToken(name, normalized=False) for name in (START, END)])
    found.post_processor = processors.RobertaProcessing((END, 1), (START, 0), False, False)
    return found


def made(directory: Path) -> Any:
    """The model, as transformers has it and as a directory."""
    torch.manual_seed(0)
    text = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text)).eval().requires_grad_(False)
    directory.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    files = {"config.json": model.config.to_dict(), "preprocessor_config.json": PROCESSOR}
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "tokenizer.json").write_text(tokenizer().to_str())
    return model


class Theirs:
    """transformers, TOGETHER inputs at a time."""

    def __init__(self, model: Any) -> None:
        self.model, self.tokenizer = model, tokenizer()
        self.images = hf.CLIPImageProcessorPil(**PROCESSOR)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        ids = torch.tensor([self.tokenizer.encode(text).ids for text in texts])
        return self._normalized([self.model.get_text_features(input_ids=part) for part in ids.split(TOGETHER)])

    def pictures(self, files: Sequence[bytes]) -> np.ndarray:
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        pixels = self.images(images=pictures, return_tensors="pt")["pixel_values"]
        return self._normalized([self.model.get_image_features(pixel_values=p) for p in pixels.split(TOGETHER)])

    def _normalized(self, found: Sequence[Any]) -> np.ndarray:
        return F.normalize(torch.cat([one.pooler_output for one in found]), dim=-1).numpy()


class Ours:
    """A running server, all inputs in one request."""

    def __init__(self, port: int) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=300)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._ask(list(texts))

    def pictures(self, files: Sequence[bytes]) -> np.ndarray:
        urls = ["data:image/png;base64," + base64.b64encode(file).decode() for file in files]
        return self._ask([{"type": "image_url", "image_url": {"url": url}} for url in urls])

    def _ask(self, inputs: list[Any]) -> np.ndarray:
        body = {"model": "measured", "input": inputs, "encoding_format": "base64"}
        answer = self.client.post("/v1/embeddings", json=body).raise_for_status().json()
        return np.array([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def row(kind: str, inputs: Sequence[Any], ours: Callable[[Any], Any], theirs: Callable[[Any], Any]) -> list[str]:
    apart = float(np.abs(ours(inputs) - theirs(inputs)).max())
    times = [(seconds(lambda: ours(inputs)), seconds(lambda: theirs(inputs))) for _ in range(ROUNDS)]
    rates = [f"{statistics.median(len(inputs) / pair[i] for pair in times):.1f}" for i in (0, 1)]
    ratios = [other / own for own, other in times]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return [kind, str(len(inputs)), *rates, spread, f"{apart:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 1000, WORDS)) for _ in range(TEXTS)]
    files = []
    for _ in range(PICTURES):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (*PIXELS, 3), np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(made(Path(folder) / "clip"))
        server = Opsin(Path(folder) / "clip", Threads(1, "passive"), Path(folder))
        try:
            server.wait_ready()
            ours = Ours(server.port)
            rows = [
                row("texts", texts, ours.texts, theirs.texts),
                row("pictures", files, ours.pictures, theirs.pictures),
            ]
        finally:
            server.child.stop()
    about = (
        f"A random CLIP of ViT-B/32's size (151M parameters), float32, one thread each. Texts of {WORDS + 2} tokens; "
        f"PNG files of {PIXELS[1]} x {PIXELS[0]} pixels, decoded and resized as well. Opsin over HTTP, all in one "
        f"request; transformers in a process, {TOGETHER} together. A second; medians of {ROUNDS} interleaved "
        "rounds; the ratio with its range; the largest difference of two numbers."
    )
    titles = ["", "inputs", "Opsin", "transformers", "ratio", "apart"]
    report.write_page("embeddings", "Embeddings", began, about, table(titles, rows), given.out)


if __name__ == "__main__":
    main()
