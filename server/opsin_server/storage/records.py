"""What leaves the storage: frozen records, and none of the database's own objects. Times are seconds since 1970."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from opsin_server.errors import BadRequest

NAME_CHARACTERS = 256


@dataclass(frozen=True)
class Blob:
    """digest: SHA-256 of its bytes, in hexadecimal. name: the client's own for the file; no path is made of it."""

    digest: str
    size: int
    kind: str
    name: str
    created: float


@dataclass(frozen=True)
class SourceFile:
    sha256: str
    size: int


@dataclass(frozen=True)
class NewVersion:
    """An adapter's version before it has a number. digest and size: of the file that the engine reads. source: the
    files that it was made of, by their names. All are blobs of the tenant's already. origin: upload, path, or a job's
    id. base_shape: the digest of the names and shapes of the model that it fits. base_digest: the content digest of the
    model that it was trained on, where that is known."""

    digest: str
    size: int
    rank: int
    targets: tuple[str, ...]
    origin: str
    source: Mapping[str, SourceFile]
    base_shape: str
    base_digest: str | None = None
    pixel_budget: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterVersion:
    adapter: str
    version: int
    facts: NewVersion
    created: float


@dataclass(frozen=True)
class Adapter:
    """current_version: what its name alone means; None until a version is promoted."""

    name: str
    current_version: int | None
    pinned: bool
    created: float
    updated: float
    last_used: float | None


@dataclass(frozen=True)
class Alias:
    """kind base: the model itself. version None: the adapter's current one, whichever that is."""

    alias: str
    kind: Literal["base", "adapter"]
    adapter: str | None
    version: int | None
    created: float
    updated: float


def checked_name(name: str, what: str) -> str:
    """A name that both databases can hold and a terminal can show. Raises BadRequest."""
    if not 0 < len(name) <= NAME_CHARACTERS:
        raise BadRequest(f"{what} has {len(name)} characters; it must have 1 to {NAME_CHARACTERS}")
    if bad := next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise BadRequest(f"{what} has the control character U+{ord(bad):04X}")
    return name
