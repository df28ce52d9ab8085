"""The stored tensors of a packed checkpoint, taken one by one; what nobody takes is as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin_plugins.loading.quantized.packings import Part
from opsin_plugins.spec import SpecError, TensorInfo


class Parts:
    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def modules(self, *roles: str) -> list[str]:
        """That have a tensor of this role: what stands in front of its name."""
        ends = tuple(f".{role}" for role in roles)
        return [key.removesuffix(end) for key in self._tensors for end in ends if key.endswith(end)]

    def take(self, module: str, role: str, dtype: str | None = None) -> Part:
        """Raises SpecError where it is missing, or of another type."""
        found = self.maybe(module, role, dtype)
        if found is None:
            raise SpecError(f"{module} has no {role}")
        return found

    def maybe(self, module: str, role: str, dtype: str | None = None) -> Part | None:
        key = f"{module}.{role}"
        info = self._tensors.get(key)
        if info is None:
            return None
        if dtype is not None and info.dtype != dtype:
            raise SpecError(f"{key} is stored as {info.dtype}, not {dtype}")
        self._taken.add(key)
        return Part(key, info)

    def drop(self, module: str, *roles: str) -> None:
        """Tensors that say nothing of a weight, such as scales of activations."""
        self._taken.update(f"{module}.{role}" for role in roles)

    def left(self) -> dict[str, TensorInfo]:
        return {key: info for key, info in self._tensors.items() if key not in self._taken}


def shaped(part: Part, *wanted: int) -> tuple[Any, ...]:
    """The shape of a part: with one number, so many dimensions; with several, exactly that. Raises SpecError."""
    shape = part.info.shape
    if len(wanted) == 1 and len(shape) == wanted[0] and wanted[0] == 2:
        return shape
    if shape != wanted:
        raise SpecError(f"{part.key} has the shape {list(shape)}; its module needs {list(wanted)}")
    return shape
