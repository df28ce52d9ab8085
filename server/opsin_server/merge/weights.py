"""The weight files of a model written again under the same names, one tensor at a time.

What does not change is copied byte for byte, whatever its type; the order of tensors within a file stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from opsin_plugins.loading.weight_files import Extent, read_extents
from opsin_plugins.spec import SpecError, TensorInfo
from opsin_server.adapters.tensor_file import write_header

CHUNK = 2**24  # numbers looked at in one go
Make = Callable[[Tensor], Tensor]
"""From a stored tensor to what is written in its place, of the same shape and type."""


def write_weights(
    folder: Path, tensors: Mapping[str, TensorInfo], make: Mapping[str, Make], copied: Mapping[str, str], stem: str
) -> None:
    """tensors: all that are written, with the files whose names they get. make: of those that change. copied: the
    stored name of a tensor that is not stored under its own. stem: the name of a single file, without which an index is
    written. Raises SpecError for a number that is too large for its type."""
    files: dict[Path, list[str]] = {}
    for name, info in tensors.items():
        files.setdefault(info.file, []).append(name)
    total = 0
    for file, names in files.items():
        total += _write_file(folder / file.name, file, {name: copied.get(name, name) for name in names}, make)
    if [file.name for file in files] != [f"{stem}.safetensors"]:
        weight_map = {name: info.file.name for name, info in sorted(tensors.items())}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_file(out: Path, file: Path, stored: Mapping[str, str], make: Mapping[str, Make]) -> int:
    """stored: of each tensor that is written, the name in `file`. Bytes of the tensors."""
    with file.open("rb") as opened:
        extents = read_extents(opened)
    # As the safetensors library orders them: the widest types first, so that all are aligned.
    order = sorted(stored, key=lambda name: (-_width(extents[stored[name]]), extents[stored[name]].begin))
    data = np.memmap(file, np.uint8, "r")
    with out.open("wb") as written, safe_open(file, framework="pt") as reader:
        sizes = {name: extents[stored[name]].end - extents[stored[name]].begin for name in order}
        described = [(name, extents[stored[name]].dtype, extents[stored[name]].shape, sizes[name]) for name in order]
        write_header(written, described, reader.metadata() or {"format": "pt"})
        for name in order:
            extent = extents[stored[name]]
            if name in make:
                _bytes_of(_made(name, make[name], reader.get_tensor(stored[name]))).tofile(written)
            else:
                data[extent.begin : extent.end].tofile(written)
    return sum(sizes.values())


def _width(extent: Extent) -> int:
    """Bytes of a number."""
    return (extent.end - extent.begin) // max(1, math.prod(extent.shape))


def _made(name: str, make: Make, stored: Tensor) -> Tensor:
    made = make(stored)
    assert (made.shape, made.dtype) == (stored.shape, stored.dtype), (name, made.shape, made.dtype)
    if not all(bool(part.isfinite().all()) for part in made.reshape(-1).split(CHUNK)):
        kind = str(made.dtype).removeprefix("torch.")
        raise SpecError(
            f"{name}: with the adapter in it, a number is too large for {kind} ({torch.finfo(made.dtype).max:g})"
        )
    return made


def _bytes_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
