"""Copies of remote files on this machine's disk, within a number of bytes."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

from opsin_server.errors import BlobDamaged
from opsin_server.storage.blob_files import BlobFiles, checked
from opsin_server.storage.records import Blob

CHUNK = 2**20
YOUNG_SECONDS = 600.0  # whoever was given a path has opened it within this time


class FileCache:
    """Files by their digest. The least recently used make room, but never those asked for in the last ten minutes: when
    these are more than `limit` bytes, so are the files in the folder."""

    def __init__(self, folder: Path, tmp: Path, limit: int) -> None:
        """tmp: where files are while they come, in the same file system."""
        self._folder, self._tmp, self._limit = folder, tmp, limit
        self._lock = threading.Lock()  # one file is fetched at a time

    def path(self, blob: Blob, files: BlobFiles) -> Path:
        """A file with a blob's bytes, fetched and checked if it is not there. Raises OSError, or BlobDamaged for bytes
        that are missing there or are others."""
        kept = self._folder / checked(blob.digest)
        if _touch(kept, blob.size):
            return kept
        with self._lock:
            if not _touch(kept, blob.size):
                self._make_room(blob.size)
                self._fetch(blob, files, kept)
            return kept

    def _fetch(self, blob: Blob, files: BlobFiles, kept: Path) -> None:
        hasher, size = hashlib.sha256(), 0
        new = self._tmp / secrets.token_hex(8)
        try:
            with files.open(blob.digest) as source, new.open("xb") as copy:
                while chunk := source.read(CHUNK):
                    size += len(chunk)
                    if size > blob.size:
                        raise BlobDamaged(blob.digest, f"has more than {blob.size:,} bytes")
                    hasher.update(chunk)
                    copy.write(chunk)
            if size != blob.size:
                raise BlobDamaged(blob.digest, f"has {size:,} bytes instead of {blob.size:,}")
            if hasher.hexdigest() != blob.digest:
                raise BlobDamaged(blob.digest, f"holds other bytes (their SHA-256 is {hasher.hexdigest()})")
            new.rename(kept)
        except FileNotFoundError:
            raise BlobDamaged(blob.digest, "is missing") from None
        finally:
            new.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.iterdir())
        total, young = sum(size for _, size, _ in files) + size, time.time() - YOUNG_SECONDS
        for used, freed, path in files:
            if total <= self._limit or used >= young:
                break
            path.unlink()
            total -= freed


def _touch(kept: Path, size: int) -> bool:
    """Whether a file is there, which then counts as just used."""
    try:
        if kept.stat().st_size != size:
            return False
        os.utime(kept)
    except FileNotFoundError:
        return False
    return True
