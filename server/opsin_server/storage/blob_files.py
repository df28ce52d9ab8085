"""Where the bytes of blobs lie: files of a local directory, by their digest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from opsin_server.durable import sync_folder

DIGEST = re.compile(r"[0-9a-f]{64}")
OWNER = "owner"
OWNER_BYTES = 256


class Stored(NamedTuple):
    digest: str
    modified: float  # seconds since 1970


class BlobFiles(Protocol):
    """A place for bytes. Every method raises OSError for what the place cannot do."""

    def place(self, file: Path, digest: str) -> None:
        """Puts a file there for good, in the place of what the digest may name already. `file` is gone after that."""

    def open(self, digest: str) -> BinaryIO:
        """Raises FileNotFoundError."""

    def size(self, digest: str) -> int | None:
        """None: nothing lies there."""

    def modified(self, digest: str) -> float | None:
        """Seconds since 1970; None: nothing lies there."""

    def delete(self, digest: str) -> None:
        """Whether or not it lies there."""

    def listing(self) -> Iterator[Stored]:
        """All that lies there."""

    def owner(self) -> str | None:
        """Whose place this is, as `claim` said."""

    def claim(self, owner: str) -> None:
        """Marks the place."""


def checked(digest: str) -> str:
    """Raises ValueError for what is no digest, before a path is made of it."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest[:80]!r} is no SHA-256 in 64 small hexadecimal digits")
    return digest


class LocalFiles:
    """blobs/ab/abcd..., which nobody writes to again. Files to be placed lie in the same file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: str) -> Path:
        return self._root / checked(digest)[:2] / digest

    def place(self, file: Path, digest: str) -> None:
        final = self.path(digest)
        if not final.parent.is_dir():
            final.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._root)
        with file.open("rb") as opened:
            os.fchmod(opened.fileno(), 0o400)
            os.fsync(opened.fileno())
        file.rename(final)
        sync_folder(final.parent)

    def open(self, digest: str) -> BinaryIO:
        return self.path(digest).open("rb")

    def size(self, digest: str) -> int | None:
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def modified(self, digest: str) -> float | None:
        try:
            return self.path(digest).stat().st_mtime
        except FileNotFoundError:
            return None

    def delete(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def listing(self) -> Iterator[Stored]:
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            if DIGEST.fullmatch(path.name) and (modified := self.modified(path.name)) is not None:
                yield Stored(path.name, modified)

    def owner(self) -> str | None:
        try:
            with (self._root / OWNER).open("rb") as file:
                return file.read(OWNER_BYTES).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return None

    def claim(self, owner: str) -> None:
        new = self._root / f"{OWNER}.new"
        with new.open("w", encoding="utf-8") as file:
            file.write(f"{owner}\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._root / OWNER)
        sync_folder(self._root)
