"""What a merged model's configurations say of its head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from opsin_plugins.loading.files import CONFIGURATIONS
from opsin_plugins.loading.read_json import read_json


def untie(folder: Path) -> None:
    """Every configuration says that the head is no longer the embedding."""
    for name in CONFIGURATIONS:
        if document := read_json(folder / name):
            changed = _untied(document, name == "params.json")
            (folder / name).write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _untied(document: Mapping[str, object], mistrals: bool) -> dict[str, object]:
    key = "tied_embeddings" if mistrals else "tie_word_embeddings"
    inner = {
        name: {**section, key: False}
        for name, section in document.items()
        if isinstance(section, Mapping) and (key in section or name == "text_config")
    }
    return {**document, **inner, key: False}
