"""Reads a JSON object from a file of a checkpoint, bounded in size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from opsin_plugins.spec import SpecError

MAX_BYTES = 64 * 2**20  # a tokenizer of 256k entries takes 30 MB; nothing honest is larger


def read_json(path: Path, *, required: bool = False) -> Mapping[str, object]:
    """{} for a file that is not there, unless it is required. Raises SpecError for what is no JSON object."""
    if not path.is_file():
        if required:
            raise SpecError(f"{path.parent} has no {path.name}")
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def read_text(path: Path) -> str:
    """A file of UTF-8. Raises SpecError for one that is too large."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise SpecError(f"{path} has {size} bytes; the limit is {MAX_BYTES}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8: {error}") from error
