"""Tensors as their bytes: read from a safetensors file that is mapped, looked through, and written again. No torch;
bfloat16, which numpy lacks, travels as 16-bit words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from opsin_plugins.loading.stored_extents import stored_extents
from opsin_plugins.loading.weight_files import Extent, read_extents, read_header

Words = NDArray[Any]  # bits of floats, as unsigned integers of their width
# The width of a word, and the bits that are all set in what is not finite.
FLOATS = {"F64": (8, 0x7FF0_0000_0000_0000), "F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
CHUNK = 2**22  # words looked at in one go
ALIGNMENT = 8


@dataclass(frozen=True)
class BitTensor:
    """dtype: one of FLOATS. words: its bits, in its shape."""

    dtype: str
    words: Words

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or none at all, by its exponent."""
        bits = self.words.dtype.type(FLOATS[self.dtype][1])
        flat = self.words.reshape(-1)
        return not any(np.any((flat[i : i + CHUNK] & bits) == bits) for i in range(0, flat.size, CHUNK))

    def widened(self) -> NDArray[np.float64]:
        """Its numbers."""
        if self.dtype == "BF16":
            return (self.words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return self.words.view(f"<f{FLOATS[self.dtype][0]}").astype(np.float64)

    def equals(self, other: BitTensor) -> bool:
        """Whether it holds the same numbers, whatever their types."""
        if self.shape != other.shape:
            return False
        mine, theirs = (BitTensor(one.dtype, one.words.reshape(-1)) for one in (self, other))
        steps = (slice(i, i + CHUNK) for i in range(0, mine.words.size, CHUNK))
        return all(np.array_equal(mine[step].widened(), theirs[step].widened()) for step in steps)

    def __getitem__(self, part: slice) -> BitTensor:
        return BitTensor(self.dtype, self.words[part])


def read_tensor(file: Path, key: str) -> BitTensor | None:
    """One tensor of a file that has it, mapped; None: it is no float."""
    with file.open("rb") as opened:
        extent = read_extents(opened)[key]
    return None if extent.dtype not in FLOATS else _mapped(np.memmap(file, np.uint8, "r"), extent)


def first_bytes(file: Path, count: int) -> bytes:
    """Of each tensor of a file, by their keys."""
    with file.open("rb") as opened:
        extents = stored_extents(file, opened)
        found = []
        for key in sorted(extents):
            opened.seek(extents[key].begin)
            found.append(opened.read(min(count, extents[key].end - extents[key].begin)))
        return b"".join(found)


def read_tensors(file: Path) -> tuple[dict[str, BitTensor], list[str]]:
    """All tensors of floats, mapped, and a line for each other one. Raises SpecError for what is no safetensors file:
    the library's own checks come first, so that offsets are within the file and no two tensors overlap."""
    read_header(file)
    with file.open("rb") as opened:
        extents = read_extents(opened)
    if not extents:
        return {}, []
    data = np.memmap(file, np.uint8, "r")
    found, others = {}, []
    for key, extent in extents.items():
        if extent.dtype not in FLOATS:
            others.append(f"{key} is stored as {extent.dtype}, which is no float of 16 bit or more")
            continue
        found[key] = _mapped(data, extent)
    return found, others


def _mapped(data: NDArray[np.uint8], extent: Extent) -> BitTensor:
    """In place where it is aligned, as it is but in files whose header has an odd length."""
    width, part = FLOATS[extent.dtype][0], data[extent.begin : extent.end]
    aligned = part if part.ctypes.data % width == 0 else part.copy()
    return BitTensor(extent.dtype, np.asarray(aligned).view(f"<u{width}").reshape(extent.shape))


def write_tensors(file: Path, tensors: Mapping[str, BitTensor]) -> None:
    """One after the other, by name: the same tensors always make the same bytes."""
    names = sorted(tensors)
    with file.open("wb") as opened:
        write_header(
            opened, [(key, tensors[key].dtype, tensors[key].shape, tensors[key].words.nbytes) for key in names]
        )
        for key in names:
            tensors[key].words.tofile(opened)


def write_header(
    opened: BinaryIO, tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> None:
    """tensors: name, dtype, shape and bytes of each, in the order in which they will follow."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for key, dtype, shape, nbytes in tensors:
        begin, end = end, end + nbytes
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    opened.write(len(text).to_bytes(8, "little"))
    opened.write(text)


def of_numbers(values: Iterable[float]) -> BitTensor:
    """F32 [n]."""
    return BitTensor("F32", np.array(list(values), "<f4").view("<u4"))
