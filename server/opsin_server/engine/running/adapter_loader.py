"""Adapter files read in a thread of their own, so that no step waits for a disk.

A file holds float tensors in safetensors' form: `NAME.SEGMENT.a` [rank, inputs], `NAME.SEGMENT.b` [rank, outputs] and
`NAME.SEGMENT.scale` [1], by which b is multiplied, of each segment that is changed of a linear, by its path in the
model; and parameters of a projector that was trained whole, each by its own path.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from opsin_plugins.blocks.adapter_slots import AdapterFactors, AdapterWeights, Factors, check_adapter, slot_bytes
from opsin_plugins.loading.linears import shapes_pictures
from opsin_plugins.spec import Linears, SpecError
from opsin_server.engine.running.beside_steps import BesideSteps
from opsin_server.engine.scheduling.resident_adapters import LoadedAdapter
from opsin_server.ipc.messages import AdapterRef

log = logging.getLogger("opsin.engine")
HEADER_BYTES = 2**24  # of a file, beside its tensors
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class LoadResult:
    """Either an adapter, or a sentence that says why there is none."""

    ref: AdapterRef
    adapter: LoadedAdapter[AdapterWeights] | None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SlotShape:
    """What an adapter must fit into. projector: shapes of its parameters, by their paths; none where slots have no room
    for one. dtype: of the slots."""

    linears: Linears
    rank: int
    dtype: torch.dtype
    projector: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def largest_file(self) -> int:
        """Bytes of an adapter that fills a slot, in the widest type."""
        numbers = slot_bytes(self.linears, self.rank, 1) + sum(map(math.prod, self.projector.values()))
        return 8 * numbers + HEADER_BYTES


class AdapterLoader(BesideSteps[AdapterRef, LoadResult]):
    def __init__(self, shape: SlotShape) -> None:
        self._shape = shape
        super().__init__("adapter loader", self._timed)

    def _timed(self, ref: AdapterRef) -> LoadResult:
        started = time.perf_counter()
        return replace(self._load(ref), seconds=time.perf_counter() - started)

    def _load(self, ref: AdapterRef) -> LoadResult:
        try:
            return LoadResult(ref, read_adapter(ref, self._shape))
        except SpecError as error:
            return LoadResult(ref, None, str(error))
        except OSError as error:
            return LoadResult(ref, None, error.strerror or "it cannot be read")  # (a client must not learn the path)
        except Exception as error:  # nothing may end this thread: sequences would wait for ever
            log.exception("an adapter cannot be loaded")
            return LoadResult(ref, None, f"{type(error).__name__}: {error}")


def read_adapter(ref: AdapterRef, shape: SlotShape) -> LoadedAdapter[AdapterWeights]:
    """Raises SpecError for a file that is not what the reference says or does not fit the model, OSError for one that
    cannot be read."""
    path = Path(ref.path)
    data = _bytes_of(path, shape)
    if (digest := hashlib.sha256(data).digest()) != ref.digest:
        raise SpecError(f"{path.name} has digest {digest.hex()[:12]}, not {ref.digest.hex()[:12]}: it was changed")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise SpecError(f"{path.name} is no safetensors file: {error}") from error
    trained = {name: tensors.pop(name) for name in shape.projector if name in tensors}
    factors = _by_linear(tensors, shape)
    if not factors and not trained:
        raise SpecError("it changes nothing")
    weights = AdapterWeights(factors, {name: _float(name, one).to(shape.dtype) for name, one in trained.items()})
    check_adapter(weights, shape.linears, shape.rank, shape.projector)
    return LoadedAdapter(weights, _changes_pictures(tensors | trained))


def _bytes_of(path: Path, shape: SlotShape) -> bytes:
    """Of an ordinary file. One that only waits to be written to would hold up every adapter behind it."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise SpecError(f"its path cannot be one: {error}") from error
    with os.fdopen(opened, "rb") as file:
        stat = os.fstat(file.fileno())
        if not S_ISREG(stat.st_mode):
            raise SpecError(f"{path.name} is no file")
        largest = shape.largest_file
        data = file.read(largest + 1) if stat.st_size <= largest else b""
    if stat.st_size > largest or len(data) > largest:
        raise SpecError(f"{path.name} has more than {largest:,} bytes, which no adapter of rank {shape.rank} needs")
    return data


def _by_linear(tensors: Mapping[str, Tensor], shape: SlotShape) -> AdapterFactors:
    found: dict[str, list[Factors | None]] = {}
    used = 0
    for key, a in tensors.items():
        name, _, rest = key.rpartition(".a")
        if rest or not name:
            continue
        linear, _, segment = name.rpartition(".")
        known = shape.linears.get(linear)
        if known is None or segment not in map(str, range(len(known.segments))):
            raise SpecError(f"{key!r} names no segment of a linear of this model")
        given = found.setdefault(linear, [None] * len(known.segments))
        given[int(segment)] = Factors(_float(key, a).to(shape.dtype), _scaled(name, tensors).to(shape.dtype))
        used += 3
    if used != len(tensors):
        raise SpecError("a tensor is neither a nor b nor scale of a segment")
    return found


def _scaled(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """b times the adapter's scale, in 32 bit at least."""
    b, scale = (_float(key, tensors.get(key)) for key in (f"{name}.b", f"{name}.scale"))
    if scale.shape != (1,):
        raise SpecError(f"{name}.scale has shape {list(scale.shape)}, not [1]")
    return b.to(torch.promote_types(b.dtype, torch.float32)) * scale


def _float(key: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise SpecError(f"there is no {key}")
    if tensor.dtype not in FLOATS:
        raise SpecError(f"{key}: {tensor.dtype} is no float")
    return tensor


def _changes_pictures(tensors: Mapping[str, Tensor]) -> bytes:
    """The digest of what visual tokens depend on, or cross-attention's keys and values; empty: of nothing."""
    names = sorted(key for key in tensors if shapes_pictures(_linear_of(key)))
    hasher = hashlib.sha256()
    for name in names:
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hasher.update(tensor.view(torch.uint8).numpy().tobytes())
    return hasher.digest() if names else b""


def _linear_of(key: str) -> str:
    """The path of what a tensor changes."""
    return key.rsplit(".", 2)[0] if key.endswith((".a", ".b", ".scale")) else key
