"""Typed reading of a GGUF's fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin_plugins.loading.gguf.container import Container
from opsin_plugins.spec import SpecError


class Fields:
    """Of one file. prefix: what stands in front of an architecture's own keys, as "llama."."""

    def __init__(self, container: Container, prefix: str = "") -> None:
        self._path: Path = container.path
        self._fields: Mapping[str, Any] = container.fields
        self._prefix = prefix

    def of(self, prefix: str) -> Fields:
        found = Fields.__new__(Fields)
        found._path, found._fields, found._prefix = self._path, self._fields, prefix
        return found

    def integer(self, key: str, default: int | None = None) -> int:
        found = self._typed(key, default, int)
        if found < 0:
            raise SpecError(f"{self._path}: {self._prefix}{key} is {found}")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._typed(key, default, (int, float)))

    def flag(self, key: str, default: bool | None = None) -> bool:
        return bool(self._typed(key, default, bool))

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._typed(key, default, str))

    def items(self, key: str) -> tuple[Any, ...]:
        return tuple(self._typed(key, (), tuple))

    def maybe(self, key: str) -> Any:
        return self._fields.get(self._prefix + key)

    def _typed(self, key: str, default: Any, kind: Any) -> Any:
        found = self._fields.get(self._prefix + key, default)
        if found is None:
            raise SpecError(f"{self._path} has no {self._prefix}{key}")
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise SpecError(f"{self._path}: {self._prefix}{key} is {found!r:.80}")
        return found
