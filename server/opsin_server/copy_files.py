"""All of a model's directory but its weights: tokenizer, templates, configurations, licence, model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from opsin_plugins.loading.files import CONFIGURATIONS
from opsin_plugins.loading.weight_files import UNREADABLE
from opsin_server.adapters.adapter_files import READ

# Weights in forms that are not read here: in the new directory they would be those without the adapter.
OTHER_WEIGHTS = (*UNREADABLE, ".safetensors", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".npz")
PICKLES = (".pkl", ".pickle", ".joblib")
TEMPLATES = "chat_templates"
ADAPTERS = set(READ) - set(CONFIGURATIONS)  # beside a model they would be loaded into it


def copy_files(base: Path, folder: Path) -> list[str]:
    """What stays behind, by name: weights of other forms, pickles, adapters, and folders but that of the templates.
    Hidden files stay as well, and are not told."""
    left = []
    for path in sorted(base.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and path.name == TEMPLATES:
            (folder / TEMPLATES).mkdir()
            for template in sorted(path.glob("*.jinja")):
                shutil.copyfile(template, folder / TEMPLATES / template.name)
        elif _is_kept(path):
            shutil.copyfile(path, folder / path.name)
        elif not path.name.endswith(".index.json"):
            left.append(path.name)
    return left


def _is_kept(path: Path) -> bool:
    other = path.name.endswith(".index.json") or path.name in ADAPTERS
    return path.is_file() and not other and not path.name.lower().endswith((*OTHER_WEIGHTS, *PICKLES))
