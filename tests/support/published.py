"""Published configurations and tensor lists, as model files without weights (tests/fixtures/configs)."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from opsin_plugins.loading.quantized.read import weights_of
from opsin_plugins.loading.read_json import read_json
from opsin_plugins.spec import ModelFiles, TensorInfo

CONFIGS = Path(__file__).parents[1] / "fixtures" / "configs"


def model_files(name: str, **options: str) -> ModelFiles:
    directory = CONFIGS / name
    if (directory / "params.json").is_file():
        config = {"model_type": "mistral_params", **read_json(directory / "params.json")}
    else:
        config = dict(read_json(directory / "config.json"))
    preprocessor = read_json(directory / "preprocessor_config.json") or None
    return ModelFiles(directory, config, preprocessor, tensors=weights_of(config, tensors(name)), options=options)


def listed(name: str) -> dict[str, object]:
    return json.loads((CONFIGS / name / "weights.json").read_text())


def tensors(name: str) -> dict[str, TensorInfo]:
    found = {}
    for pattern, shape in listed(name)["tensors"].items():
        for key in expanded(pattern):
            dtype = "I32" if key.endswith((".qweight", ".qzeros")) else "BF16"
            found[key] = TensorInfo(Path("model.safetensors"), dtype, tuple(shape))
    return found


def expanded(pattern: str) -> list[str]:
    """`{0..27}` is a range, `{3,8}` a list."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [[text] if i % 2 == 0 else _numbers(text) for i, text in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(text: str) -> list[str]:
    if ".." in text:
        first, last = text.split("..")
        return [str(i) for i in range(int(first), int(last) + 1)]
    return text.split(",")
