"""A GGUF file's metadata and the places of its tensors. No tensor is read. Source: ggml's specification of the
format, versions 2 and 3.

The `gguf` package has a reader too. It keeps an array of numpy for each string (49,152 tokens with their merges: 1.7 s
and 160 MB) and takes every count in the file at its word; here each count is checked against what is left of the file
before anything is made of it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsin_plugins.spec import SpecError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS, MAX_FIELDS = 65_536, 65_536
MAX_NAME, MAX_TEXT, MAX_ITEMS = 512, 4 * 2**20, 4 * 2**20  # bytes, bytes, members of an array
MAX_DIMENSIONS = 4
ALIGNMENT = 32  # of tensors, where the file names no other
SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9

# Types of tensors: name, numbers of a block, bytes of a block.
KINDS: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    30: ("BF16", 1, 2),
}
OTHERS = {
    10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """shape: rows first, as torch has it. begin: of its bytes in the file."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Container:
    """fields: the metadata, by key: numbers, texts, and tuples of them. path: of the file that has it."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """By its first bytes, or its name where there are none."""
    if not path.is_file():
        return False
    with path.open("rb") as opened:
        return opened.read(4) == MAGIC or path.suffix == ".gguf"


def read_container(path: Path) -> Container:
    """Raises SpecError for what is no whole GGUF file, with what is wrong."""
    try:
        if path.stat().st_size == 0:
            raise SpecError(f"{path} is empty")
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except SpecError:
        raise
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}") from error


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._size = path, data, 0, len(data)

    def read(self) -> Container:
        if self._data[:4] != MAGIC:
            pointer = self._data[:20].startswith(b"version https://git")
            raise self._wrong("a pointer of Git LFS: run `git lfs pull` there" if pointer else "this is no GGUF file")
        self._at = 4
        (version,) = self._take("I")
        if version not in VERSIONS:
            other = "of another byte order" if version >= 2**16 else f"version {version}"
            raise self._wrong(f"a GGUF file {other}; versions 2 and 3 are read")
        tensors, fields = self._take("QQ")
        if tensors > MAX_TENSORS or fields > MAX_FIELDS:
            raise self._wrong(f"{tensors:,} tensors and {fields:,} fields; the limits are {MAX_TENSORS:,} each")
        found: dict[str, Any] = {}
        for _ in range(fields):
            key = self._text(MAX_NAME)
            if key in found:
                raise self._wrong(f"the field {key!r} stands twice")
            found[key] = self._value(*self._take("I"))
        return Container(self._path, found, self._tensors(tensors, found))

    def _tensors(self, count: int, fields: Mapping[str, Any]) -> dict[str, StoredTensor]:
        infos = [self._tensor() for _ in range(count)]
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment % 8:
            raise self._wrong(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        found: dict[str, StoredTensor] = {}
        for name, kind, shape, offset in infos:
            if name in found:
                raise self._wrong(f"the tensor {name!r} stands twice")
            label, block, size = KINDS[kind]
            if shape[-1] % block:
                raise self._wrong(f"{name}: rows of {shape[-1]} numbers, which is no multiple of {block} ({label})")
            begin, nbytes = start + offset, math.prod(shape) // block * size
            if begin + nbytes > self._size:
                raise self._wrong(f"{name} ends at byte {begin + nbytes:,}, behind the file's end (is it whole?)")
            found[name] = StoredTensor(self._path, label, shape, begin, nbytes)
        return found

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._text(MAX_NAME)
        (count,) = self._take("I")
        if not 1 <= count <= MAX_DIMENSIONS:
            raise self._wrong(f"{name}: {count} dimensions; it can have 1 to {MAX_DIMENSIONS}")
        shape = tuple(reversed(self._take(f"{count}Q")))
        if not all(0 < size < 2**31 for size in shape):
            raise self._wrong(f"{name}: shape {list(shape)}")
        kind, offset = self._take("IQ")
        if kind not in KINDS:
            readable = ", ".join(label for label, *_ in KINDS.values())
            raise self._wrong(
                f"{name} is {OTHERS.get(kind, f'of type {kind}')}, which is not read; there are {readable}"
            )
        return name, kind, shape, offset

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text(MAX_TEXT)
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise self._wrong(f"a value of type {kind}")
        return self._take(SCALARS[kind])[0]

    def _array(self) -> tuple[Any, ...]:
        kind, count = self._take("IQ")
        if count > MAX_ITEMS:
            raise self._wrong(f"an array of {count:,} members; the limit is {MAX_ITEMS:,}")
        if kind == TEXT:
            return tuple(self._text(MAX_TEXT) for _ in range(count))
        if kind not in SCALARS:
            raise self._wrong(f"an array of type {kind}")
        return self._take(f"{count}{SCALARS[kind]}")

    def _text(self, most: int) -> str:
        (length,) = self._take("Q")
        if length > min(most, self._size - self._at):
            raise self._wrong(f"a text of {length:,} bytes at byte {self._at:,}; there can be {most:,} (is it whole?)")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8", "replace")

    def _take(self, what: str) -> tuple[Any, ...]:
        form = f"<{what}"
        size = struct.calcsize(form)
        if size > self._size - self._at:
            raise self._wrong(f"the file ends at byte {self._size:,}, in the middle of its header (is it whole?)")
        self._at += size
        return struct.unpack_from(form, self._data, self._at - size)

    def _wrong(self, sentence: str) -> SpecError:
        return SpecError(f"{self._path}: {sentence}")
