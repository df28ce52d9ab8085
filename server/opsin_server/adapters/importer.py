"""An adapter from a directory or an archive to a stored version: read from copies that nobody else writes to, checked,
converted, kept as blobs, and then named."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opsin_server.adapters.adapter_files import PICKLES, READ, AdapterFiles, read_adapter_files
from opsin_server.adapters.archive import unpack
from opsin_server.adapters.base_model import BaseModel
from opsin_server.adapters.convert import Converted, convert
from opsin_server.adapters.problems import BadAdapter
from opsin_server.errors import BadRequest, NotFound, StorageFailed
from opsin_server.storage.records import AdapterVersion, NewVersion, SourceFile
from opsin_server.storage.state import State

ENGINE_FILE = "adapter.safetensors"
TRAINED_PROJECTOR = "projector.trained"  # among a version's targets


@dataclass(frozen=True)
class ImportOptions:
    """promote: whether the version becomes the current one. force: also where the adapter says that it was trained on
    another base. origin: where it comes from: upload, path, command line, or a job's id; what the command line names is
    new only where it is not what the command line named the last time. base_digest: of the served model, where it is
    known. within: a directory that no link may lead out of; None: the operator's own paths."""

    promote: bool = True
    force: bool = False
    origin: str = "path"
    within: Path | None = None
    base_digest: str | None = None


class AdapterImporter:
    """Any thread may use it. limit: bytes of an adapter's files. What is refused is raised as BadRequest, and nothing
    is kept of it."""

    def __init__(self, state: State, tenant: str, limit: int) -> None:
        self._state, self._tenant, self._limit = state, tenant, limit

    def from_directory(self, directory: Path, name: str, base: BaseModel, options: ImportOptions) -> AdapterVersion:
        """Raises NotFound where there is no such directory."""
        if not directory.is_dir():
            raise NotFound(f"the adapter {name} cannot be loaded: there is no such directory", code="adapter_not_found")
        with self._scratch() as scratch, _refusals(name):
            self._copy(directory, scratch, options.within)
            return self._keep(scratch, name, base, options)

    def from_archive(self, archive: Path, name: str, base: BaseModel, options: ImportOptions) -> AdapterVersion:
        with self._scratch() as scratch, _refusals(name):
            unpack(archive, scratch, self._limit)
            return self._keep(scratch, name, base, options)

    def _copy(self, directory: Path, scratch: Path, within: Path | None) -> None:
        left = self._limit
        for name in READ:
            source = directory / name
            if not source.is_file():
                continue
            if within is not None and not source.resolve().is_relative_to(within):
                raise BadAdapter(f"{name} is a link that leads out of the server's --adapter-dir")
            left -= source.stat().st_size
            if left < 0:
                raise BadAdapter(f"its files have more than {self._limit:,} bytes")
            shutil.copyfile(source, scratch / name)
        if left == self._limit:
            read_adapter_files(directory)  # raises: it knows what lies there instead
        for name in PICKLES:
            if (directory / name).is_file():
                (scratch / name).touch()  # (that it is there may be a reason to refuse; it is not read)

    def _keep(self, scratch: Path, name: str, base: BaseModel, options: ImportOptions) -> AdapterVersion:
        files = read_adapter_files(scratch)
        warnings = _of_base(files, options)
        converted = convert(files.config, files.weights, base)
        engine_file = scratch / ENGINE_FILE
        converted.write(engine_file)
        kept = {file.name: self._put(file, "adapter source") for file in files.kept}
        digest = self._put(engine_file, "adapter")
        new = NewVersion(
            digest=digest.sha256,
            size=digest.size,
            rank=converted.rank,
            targets=_targets(converted),
            origin=options.origin,
            source=kept,
            base_shape=base.shape_digest,
            base_digest=files.record.base,
            pixel_budget=None if files.record.max_pixels is None else {"max_pixels": files.record.max_pixels},
            warnings=(*warnings, *converted.notes),
        )
        if (same := self._known(name, new, options)) is not None:
            return same
        return self._state.adapters.add_version(self._tenant, name, new, promote=options.promote)

    def _known(self, name: str, new: NewVersion, options: ImportOptions) -> AdapterVersion | None:
        """The version that is this very one already, where that is enough: the current one; or the last that the
        command line named, so that a start does not undo what was promoted since."""
        try:
            current = self._state.adapters.get(self._tenant, name).current_version
        except NotFound:
            return None
        versions = self._state.adapters.versions(self._tenant, name)
        named = [version for version in versions if version.facts.origin == "command line"]
        likely = named[-1:] if options.origin == "command line" else []
        if options.promote:
            likely += [version for version in versions if version.version == current]
        return next((version for version in likely if _content(version.facts) == _content(new)), None)

    def _put(self, file: Path, kind: str) -> SourceFile:
        blob = self._state.blobs.put(self._tenant, file, kind=kind, name=file.name, limit=2 * self._limit)
        return SourceFile(blob.digest, blob.size)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        try:
            with tempfile.TemporaryDirectory(dir=self._state.directory.tmp) as scratch:
                yield Path(scratch)
        except OSError as error:
            raise StorageFailed(f"the adapter's files cannot be copied: {error.strerror or error}") from error


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except BadAdapter as error:
        raise BadRequest(f"the adapter {name} cannot be loaded: {error}", code="invalid_adapter") from error


def _content(facts: NewVersion) -> tuple[object, ...]:
    """What makes a version another one."""
    return facts.digest, facts.base_shape, facts.base_digest, facts.pixel_budget


def _targets(converted: Converted) -> tuple[str, ...]:
    return (*converted.targets, *((TRAINED_PROJECTOR,) if converted.projector else ()))


def _of_base(files: AdapterFiles, options: ImportOptions) -> tuple[str, ...]:
    """What must be said of the base that the adapter names. Raises BadAdapter for another one."""
    said = files.record.base
    if said is None or said == options.base_digest:
        return ()
    if options.base_digest is None:
        return (f"it was trained on the base {said}; this server's own digest was not known yet when it was loaded",)
    if options.force:
        return (f"it was trained on another base ({said}), and loaded by force",)
    raise BadAdapter(
        f"it was trained on the base {said}, and this server serves {options.base_digest}: its answers would be wrong "
        "(force loads it all the same)"
    )
