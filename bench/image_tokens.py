"""Visual tokens, and what they take in memory, for pictures of several sizes: the table in docs/models.md.

    python bench/image_tokens.py            prints it
    python bench/image_tokens.py --write    puts it into docs/models.md

From the published configurations in tests/fixtures/configs, through the same code that prepares a request's picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tables

from opsin_plugins.loading.files import MISTRAL_PARAMS, read_json
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ImageBudget, ModelFiles, ModelSpec, VisualItem

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, PAGE = ROOT / "tests" / "fixtures" / "configs", ROOT / "docs" / "models.md"
BEGIN, END = "<!-- python bench/image_tokens.py --write -->", "<!-- end of the table -->"
MODELS = (
    "Qwen2-VL-2B-Instruct",
    "Qwen2-VL-7B-Instruct",
    "Qwen2.5-VL-3B-Instruct",
    "Qwen2.5-VL-7B-Instruct",
    "Qwen3-VL-2B-Instruct",
    "Llama-3.2-11B-Vision-Instruct",
    "pixtral-12b",
    "Pixtral-12B-2409",
    "llava-1.5-7b-hf",
    "llava-v1.6-mistral-7b-hf",
    "SmolVLM-256M-Instruct",
    "Idefics3-8B-Llama3",
    "Qwen-VL-Chat",
)
SIZES = ((224, 224), (512, 512), (1024, 1024), (1920, 1080), (512, 2048))  # width x height
ITEM = 2  # bytes of a number in 16 bit


def files_of(name: str) -> ModelFiles:
    params = CONFIGS / name / "params.json"
    config = {"model_type": MISTRAL_PARAMS, **read_json(params)} if params.is_file() else None
    config = config or read_json(CONFIGS / name / "config.json")
    return ModelFiles(CONFIGS / name, config, read_json(CONFIGS / name / "preprocessor_config.json"))


def bytes_per_token(spec: ModelSpec) -> int:
    """Keys and values of one visual token, in the layers that read it."""
    decoder = spec.decoder
    layers = decoder.own_layers if spec.cross is None else len(decoder.replaced)
    return 2 * layers * decoder.kv_heads * decoder.head_dim * ITEM


def cell(item: VisualItem, spec: ModelSpec) -> str:
    return f"{item.tokens:,} / {item.tokens * bytes_per_token(spec) / 2**20:,.0f}"


def table() -> str:
    lines = []
    for name in MODELS:
        files = files_of(name)
        architecture = Registry().architecture(files)
        spec = architecture.spec(files)
        pictures = [np.zeros((height, width, 3), np.uint8) for width, height in SIZES]
        items = architecture.preprocess(pictures, spec, ImageBudget())
        assert spec.image is not None
        resizes = "yes" if spec.image.resizable else "one size"
        lines.append([name, f"`{spec.family}`", *(cell(item, spec) for item in items), resizes])
    return tables.table(["model", "family", *(f"{w} x {h}" for w, h in SIZES), "budget"], lines)


def page(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
