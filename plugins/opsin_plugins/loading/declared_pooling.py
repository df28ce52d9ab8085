"""How a checkpoint says that its embeddings are made: the files of sentence-transformers (modules.json and what it
names), and config.json of embeddings that may be cut short."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opsin_plugins.loading.read_json import read_json, read_text
from opsin_plugins.spec import SpecError

Kind = Literal["last", "mean", "cls"]
MODES: Mapping[str, Kind] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
NAMES: Mapping[str, Kind] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}  # of `pooling_mode`, since version 5
FOLDER = re.compile(r"[A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class DeclaredPooling:
    kind: Kind
    normalized: bool


def declared_pooling(directory: Path) -> DeclaredPooling | None:
    """None: the checkpoint says nothing. Raises SpecError for what is declared and not done here."""
    path = directory / "modules.json"
    if not path.is_file():
        return None
    try:
        modules = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise SpecError(f"{path} is no list of modules")
    kind: Kind | None = None
    normalized = False
    for module in modules:
        name = str(module.get("type", "")).rpartition(".")[2]
        if name == "Pooling":
            kind = _pooling(directory, module)
        elif name == "Normalize":
            normalized = True
        elif name != "Transformer":
            raise SpecError(f"{path}: a module of type {name[:80]!r} is not supported")
    if kind is None:
        raise SpecError(f"{path} names no pooling")
    return DeclaredPooling(kind, normalized)


def _pooling(directory: Path, module: Mapping[str, object]) -> Kind:
    folder = module.get("path", "")
    if not isinstance(folder, str) or not FOLDER.fullmatch(folder) or folder in (".", ".."):
        raise SpecError(f"modules.json: {folder!r:.100} is no folder of the checkpoint")
    config = read_json(directory / folder / "config.json", required=True)
    if isinstance(named := config.get("pooling_mode"), str):
        if named not in NAMES:
            raise SpecError(f"pooling_mode {named[:80]!r} is not one of {', '.join(NAMES)}")
        return NAMES[named]
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise SpecError(f"{', '.join(chosen) or 'no pooling_mode'} is not supported: one of {', '.join(MODES)} is")
    return MODES[chosen[0]]


def declared_cuts(config: Mapping[str, object], width: int) -> frozenset[int] | None:
    """The numbers of values to which embeddings may be cut, as vLLM reads config.json: `matryoshka_dimensions`, or with
    `is_matryoshka` alone any; none where neither is said. None: any."""
    listed = config.get("matryoshka_dimensions")
    if isinstance(listed, list):
        return frozenset(n for n in listed if isinstance(n, int) and 0 < n <= width)
    return None if config.get("is_matryoshka") is True else frozenset()
