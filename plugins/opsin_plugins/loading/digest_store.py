"""What was hashed of a model's files, kept from one start to the next: beside the model, or, where its folder cannot be
written, in the user's cache.

A kept digest counts for a file of the same size and the same two times of change. The second, ctime, is set by the
system alone: whoever edits a file and gives it its old time back has changed it, and what came with a download or an
archive fits no file here. What cannot be read, is no document of this form or fails its checksum counts for nothing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec

NAME = ".opsin-digest.json"  # hidden, and no name that a program looks for in a model's folder
MAX_BYTES = 64 * 2**20  # 100,000 tensors take 14 MB
SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system: within it a second change may leave the same times

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]  # SHA-256 of a tensor's bytes


class Stamp(msgspec.Struct, frozen=True):
    """What changes with a file, without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class _Hashed(msgspec.Struct, frozen=True):
    stamp: Stamp
    tensors: dict[str, Digest]


class _Document(msgspec.Struct, frozen=True):
    format: Literal[1]
    checksum: str
    files: dict[str, _Hashed]


class DigestStore:
    """Of one model's folder. Its files are known by their names in it; nothing in here raises."""

    def __init__(self, directory: Path) -> None:
        self._beside, self._cached = directory / NAME, _place_in_cache(directory)
        self._found = [_read(place) for place in (self._beside, self._cached) if place is not None]
        self._current: dict[str, _Hashed] = {}

    def find(self, name: str, stamp: Stamp) -> Mapping[str, str] | None:
        """The digests of a file's tensors by name; None: the file was not hashed since it changed."""
        for hashed in (files.get(name) for files in (self._current, *self._found)):
            if hashed is not None and hashed.stamp == stamp:
                self._current[name] = hashed
                return hashed.tensors
        return None

    def keep(self, name: str, stamp: Stamp, tensors: Mapping[str, str], began_ns: int) -> None:
        """began_ns: when hashing began, as of `time.time_ns`. A file that had changed just before may change once more
        and look the same: it is hashed again next time."""
        if began_ns - stamp.ctime_ns < SETTLED_NS:
            return
        self._current[name] = _Hashed(stamp, dict(tensors))
        data = _written(self._current)
        if _replace(self._beside, data) or self._cached is None:
            return
        with suppress(OSError):
            self._cached.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self._cached, data)


def _place_in_cache(directory: Path) -> Path | None:
    """None where nobody says where the user's cache is."""
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not stated.is_absolute():  # (which is to be passed over, says the standard)
        try:
            stated = Path.home() / ".cache"
        except RuntimeError:
            return None
    folder = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]
    return stated / "opsin" / "digests" / f"{folder}.json" if stated.is_absolute() else None


def _read(place: Path) -> Mapping[str, _Hashed]:
    try:
        if not place.is_file():
            return {}
        with place.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return {}
        document = msgspec.json.decode(data, type=_Document)
    except (OSError, ValueError, RecursionError):  # (what msgspec raises are ValueErrors)
        return {}
    return document.files if document.checksum == _checksum(document.files) else {}


def _written(files: dict[str, _Hashed]) -> bytes:
    return msgspec.json.encode(_Document(1, _checksum(files), files))


def _checksum(files: Mapping[str, _Hashed]) -> str:
    """Against a damaged file, which may still be a document."""
    return hashlib.sha256(msgspec.json.encode(files, order="sorted")).hexdigest()


def _replace(place: Path, data: bytes) -> bool:
    """Whether it could be written. Whoever reads at the same time sees the old document or the new one."""
    temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as opened:
            opened.write(data)
        temporary.replace(place)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True
