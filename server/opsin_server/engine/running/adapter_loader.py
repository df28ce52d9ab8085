"""Adapter files read in a thread of their own, so that no step waits for a disk.

A file holds float tensors in safetensors' form: `NAME.SEGMENT.a` [rank, inputs] and `NAME.SEGMENT.b` [rank, outputs] of
each segment that is changed of a linear, by its path in the model; `b` holds the adapter's scale.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from stat import S_ISREG

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from opsin_plugins.blocks.adapter_slots import AdapterWeights, Factors, check_adapter, slot_bytes
from opsin_plugins.loading.linears import shapes_pictures
from opsin_plugins.spec import Linears, SpecError
from opsin_server.engine.scheduling.resident_adapters import LoadedAdapter
from opsin_server.ipc.messages import AdapterRef

log = logging.getLogger("opsin.engine")
HEADER_BYTES = 2**24  # of a file, beside its tensors
LEAVE_SECONDS = 1.0
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class LoadResult:
    """Either an adapter, or a sentence that says why there is none."""

    ref: AdapterRef
    adapter: LoadedAdapter[AdapterWeights] | None
    error: str = ""


class AdapterLoader:
    """dtype: that of the slots."""

    def __init__(self, linears: Linears, rank: int, dtype: torch.dtype) -> None:
        self._linears, self._rank, self._dtype = linears, rank, dtype
        self._wanted: SimpleQueue[AdapterRef | None] = SimpleQueue()
        self._done: SimpleQueue[LoadResult] = SimpleQueue()
        self._reader, self._writer = os.pipe()  # a byte a result, so that the engine can wait for one
        self._thread = threading.Thread(target=self._run, name="adapter loader", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable while there are results to take."""
        return self._reader

    def request(self, ref: AdapterRef) -> None:
        self._wanted.put(ref)

    @property
    def has_results(self) -> bool:
        return not self._done.empty()

    def results(self) -> list[LoadResult]:
        """What has come to its end since the last call."""
        found = []
        while not self._done.empty():
            os.read(self._reader, 1)
            found.append(self._done.get())
        return found

    def close(self) -> None:
        """A file that is being read on a disk that hangs is not waited for."""
        self._wanted.put(None)
        self._thread.join(LEAVE_SECONDS)
        if not self._thread.is_alive():
            os.close(self._reader)
            os.close(self._writer)

    def _run(self) -> None:
        while (ref := self._wanted.get()) is not None:
            result = self._load(ref)
            os.write(self._writer, b"\0")  # (first: who takes the result also takes the byte)
            self._done.put(result)

    def _load(self, ref: AdapterRef) -> LoadResult:
        try:
            return LoadResult(ref, read_adapter(ref, self._linears, self._rank, self._dtype))
        except SpecError as error:
            return LoadResult(ref, None, str(error))
        except OSError as error:
            return LoadResult(ref, None, error.strerror or "it cannot be read")  # (a client must not learn the path)
        except Exception as error:  # nothing may end this thread: sequences would wait for ever
            log.exception("an adapter cannot be loaded")
            return LoadResult(ref, None, f"{type(error).__name__}: {error}")


def read_adapter(ref: AdapterRef, linears: Linears, rank: int, dtype: torch.dtype) -> LoadedAdapter[AdapterWeights]:
    """Raises SpecError for a file that is not what the reference says or does not fit the model, OSError for one that
    cannot be read."""
    path = Path(ref.path)
    data = _bytes_of(path, slot_bytes(linears, rank, 4) + HEADER_BYTES, rank)
    if (digest := hashlib.sha256(data).digest()) != ref.digest:
        raise SpecError(f"{path.name} has digest {digest.hex()[:12]}, not {ref.digest.hex()[:12]}: it was changed")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise SpecError(f"{path.name} is no safetensors file: {error}") from error
    weights = _by_linear(tensors, linears, dtype)
    check_adapter(weights, linears, rank)
    return LoadedAdapter(weights, _changes_pictures(tensors))


def _bytes_of(path: Path, largest: int, rank: int) -> bytes:
    """Of an ordinary file. One that only waits to be written to would hold up every adapter behind it."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise SpecError(f"its path cannot be one: {error}") from error
    with os.fdopen(opened, "rb") as file:
        stat = os.fstat(file.fileno())
        if not S_ISREG(stat.st_mode):
            raise SpecError(f"{path.name} is no file")
        data = file.read(largest + 1) if stat.st_size <= largest else b""
    if stat.st_size > largest or len(data) > largest:
        raise SpecError(f"{path.name} has more than {largest:,} bytes, which no adapter of rank {rank} needs")
    return data


def _by_linear(tensors: Mapping[str, Tensor], linears: Linears, dtype: torch.dtype) -> AdapterWeights:
    found: dict[str, list[Factors | None]] = {}
    for key in tensors:
        name, _, rest = key.rpartition(".a")
        if not rest and name:
            linear, _, segment = name.rpartition(".")
            shape = linears.get(linear)
            if shape is None or segment not in map(str, range(len(shape.segments))):
                raise SpecError(f"{key!r} names no segment of a linear of this model")
            halves = tensors[key], tensors.get(f"{name}.b")
            if halves[1] is None:
                raise SpecError(f"{name}: there is no b")
            if any(half.dtype not in FLOATS for half in halves if half is not None):
                raise SpecError(f"{name}: {halves[0].dtype} and {halves[1].dtype} are not both floats")
            found.setdefault(linear, [None] * len(shape.segments))[int(segment)] = Factors(
                *(half.to(dtype) for half in halves)  # type: ignore[union-attr]
            )
    if 2 * sum(factors is not None for given in found.values() for factors in given) != len(tensors):
        raise SpecError("a tensor is neither a nor b of a segment")
    if not found:
        raise SpecError("it changes nothing")
    return found


def _changes_pictures(tensors: Mapping[str, Tensor]) -> bytes:
    """The digest of the factors on which visual tokens depend, or cross-attention's keys and values; empty: of none."""
    names = sorted(key for key in tensors if shapes_pictures(key.rsplit(".", 2)[0]))
    hasher = hashlib.sha256()
    for name in names:
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hasher.update(tensor.view(torch.uint8).numpy().tobytes())
    return hasher.digest() if names else b""
