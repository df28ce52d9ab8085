"""Where the tensors of a weight file lie, whichever of the formats that are read it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from opsin_plugins.loading.gguf.container import is_gguf, read_container
from opsin_plugins.loading.weight_files import Extent, read_extents


def stored_extents(file: Path, opened: BinaryIO) -> Mapping[str, Extent]:
    """By the names that the file has. opened: the same file. Raises SpecError when it is none any more."""
    if not is_gguf(file):
        return read_extents(opened)
    found = read_container(file).tensors
    return {name: Extent(one.kind, one.shape, one.begin, one.begin + one.nbytes) for name, one in found.items()}
