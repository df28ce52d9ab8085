"""Tensors by key, in memory up to a budget and in a file beyond it: visual tokens that are computed once a job, and
pixels that travel once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class _Written:
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorStore:
    """budget: bytes of memory. folder: for the file, which has no name and goes with the process."""

    def __init__(self, budget: int, folder: Path) -> None:
        self.budget, self.used, self.written = budget, 0, 0
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._held: dict[bytes, Tensor | _Written] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def put(self, key: bytes, tensor: Tensor) -> None:
        """Raises OSError where the disk is full."""
        if key in self._held:
            return
        if self.used + tensor.nbytes <= self.budget:
            self._held[key] = tensor.detach().clone()
            self.used += tensor.nbytes
        else:
            self._held[key] = self._write(tensor)

    def get(self, key: bytes) -> Tensor:
        """The tensor; one from the file is on the CPU."""
        held = self._held[key]
        return held if isinstance(held, Tensor) else self._read(held)

    def drop(self, key: bytes) -> None:
        """Gives back the memory; what was written stays in the file."""
        held = self._held.pop(key, None)
        if isinstance(held, Tensor):
            self.used -= held.nbytes

    def close(self) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def _write(self, tensor: Tensor) -> _Written:
        file = self._file
        if file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        data = tensor.detach().contiguous().cpu()
        file.seek(self.written)
        file.write(data.view(torch.uint8).numpy().data)
        found = _Written(self.written, tuple(data.shape), data.dtype)
        self.written += data.nbytes
        return found

    def _read(self, held: _Written) -> Tensor:
        assert self._file is not None
        size = int(np.prod(held.shape)) * held.dtype.itemsize
        self._file.seek(held.offset)
        data = bytearray(self._file.read(size))
        return torch.frombuffer(data, dtype=held.dtype).view(held.shape)
