"""What a base model is, as one SHA-256 of its content, whatever its files are called and however they came here.

What an adapter was trained on counts: every tensor as it is stored (its name, type, shape and bytes), the
configuration, and how pictures are prepared. The tokenizer, the chat template and the settings of sampling do not: they
decide which tokens go in and which of the answers is drawn, never what the weights make of them, and publishers correct
them in place, where every adapter of the model should still fit. Nor does anything that belongs to the files alone:
their names, times and folder, how tensors are spread over them, and the metadata in their headers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

from opsin_plugins.loading.digest_store import DigestStore, Stamp
from opsin_plugins.loading.stored_extents import stored_extents
from opsin_plugins.loading.weight_files import Extent
from opsin_plugins.spec import ModelFiles, SpecError

FORMAT = "opsin model 1"  # stands first in what is hashed: another way of counting is another number
CHUNK_BYTES = 256 * 1024  # 0.3 ms: beside 4 MiB the event loop is late by twice as much (p99 of 2 cores) [measured]
SMALL_BYTES = 64 * 2**20  # a model of no more is hashed within a second, so nothing is kept of it
# Of a configuration, what no reader of the weights goes by: where it came from, whose code it brings, and in what it
# would like to be computed, which `--dtype` decides.
NOT_COUNTED = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "torch_dtype", "transformers_version"}
)


def fingerprint(files: ModelFiles, version: str) -> str:
    """What tells a server's model and version from another's, from headers alone: two models of one shape and
    configuration have the same one, which only their content digests tell apart. Raises SpecError, as of
    `ContentDigest.compute`."""
    hasher = hashlib.sha256(_line(version) + _settings(files))
    for name, info in sorted(files.stored_tensors.items()):
        hasher.update(_line([name, info.dtype, info.shape]))
    return f"fp_{hasher.hexdigest()[:16]}"


class ContentDigest:
    """Of a model whose headers are read. It speaks of the files as they are when this is made: what changes later has
    no digest. Raises OSError for files that cannot be looked at."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        stored = {info.file for info in files.stored_tensors.values()}
        self._stamps = {file: Stamp.of(file.stat()) for file in sorted(stored)}
        self.nbytes = sum(stamp.size for stamp in self._stamps.values())
        self._store = DigestStore(files.directory) if self.nbytes > SMALL_BYTES else None

    def known(self) -> str | None:
        """Without reading many bytes: what is kept, or of a small model. None: it has to be computed."""
        if self._store is not None and not all(self._store.find(file.name, s) for file, s in self._stamps.items()):
            return None
        return self.compute()

    def compute(self, between: Callable[[], None] = lambda: None) -> str:
        """64 hexadecimal digits behind "sha256:". Files that are unchanged since they were hashed are not read again.

        between: called after every piece of a tensor that was read; what it raises ends the work, and files that were
        done stay done. Raises SpecError for files that have changed meanwhile and for a configuration that is nested
        too deeply, and OSError for files that cannot be read.
        """
        digests: dict[str, str] = {}
        for file in self._stamps:
            digests |= self._tensor_digests(file, between)
        hasher = hashlib.sha256(_line(FORMAT) + _settings(self._files))
        for name, info in sorted(self._files.stored_tensors.items()):
            hasher.update(_line([name, info.dtype, info.shape, digests[name]]))
        return f"sha256:{hasher.hexdigest()}"

    def _tensor_digests(self, file: Path, between: Callable[[], None]) -> Mapping[str, str]:
        """Of the tensors that are read from a file. (It may hold more, which an index places in another.)"""
        began, stamp = time.time_ns(), self._stamps[file]
        with FileIO(file) as opened:
            self._check_unchanged(file, opened)
            extents = self._extents(file, opened)
            kept = None if self._store is None else self._store.find(file.name, stamp)
            if kept is not None and extents.keys() <= kept.keys():
                return {name: kept[name] for name in extents}
            buffer = memoryview(bytearray(CHUNK_BYTES))
            in_order = sorted(extents.items(), key=lambda item: item[1].begin)
            digests = {name: _digest(opened, extent, buffer, between) for name, extent in in_order}
            self._check_unchanged(file, opened)
        if self._store is not None:
            self._store.keep(file.name, stamp, digests, began)
        return digests

    def _check_unchanged(self, file: Path, opened: FileIO) -> None:
        if Stamp.of(os.fstat(opened.fileno())) != self._stamps[file]:
            raise _changed(file)

    def _extents(self, file: Path, opened: FileIO) -> Mapping[str, Extent]:
        """Of the tensors that are read from this file. Its header is the one that the model was opened with."""
        there = stored_extents(file, opened)
        known = {name: info for name, info in self._files.stored_tensors.items() if info.file == file}
        for name, info in known.items():
            if name not in there or there[name][:2] != (info.dtype, info.shape):
                raise _changed(file)
        return {name: there[name] for name in known}


def _digest(opened: FileIO, extent: Extent, buffer: memoryview, between: Callable[[], None]) -> str:
    """Of a tensor's bytes. hashlib lets other threads run meanwhile."""
    hasher, left = hashlib.sha256(), extent.end - extent.begin
    opened.seek(extent.begin)
    while left:
        count = opened.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise _changed(Path(os.fsdecode(opened.name)))
        hasher.update(buffer[:count])
        left -= count
        between()
    return hasher.hexdigest()


def _changed(file: Path) -> SpecError:
    return SpecError(f"{file} has changed since the model was opened")


def _settings(files: ModelFiles) -> bytes:
    try:
        return _line({"config": _counted(files.config), "preprocessor": _counted(files.preprocessor)})
    except RecursionError as error:
        raise SpecError(f"{files.directory}: the configuration is nested too deeply") from error


def _counted(value: object, key: str = "") -> object:
    """A part of a configuration, by the key that it stands under, less what does not count. 1.0 is 1: which of them a
    file has depends on the program that wrote it."""
    if isinstance(value, Mapping) and key != "quantization_config":  # (there, a dtype says what the bytes mean)
        return {name: _counted(inner, name) for name, inner in value.items() if name not in NOT_COUNTED}
    if isinstance(value, list | tuple):
        return [_counted(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _line(value: object) -> bytes:
    """JSON in ASCII with its keys in order, so that the same is always the same bytes, and no line end in it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
