"""A stored version as an archive that PEFT reads once it is unpacked."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from typing import IO, BinaryIO

from opsin_server.errors import BlobDamaged, StorageFailed
from opsin_server.storage.records import AdapterVersion
from opsin_server.storage.state import State


def archived(state: State, tenant: str, version: AdapterVersion) -> IO[bytes]:
    """A tar of the files that the version was made of, at its beginning, for the caller to close. Raises BlobDamaged
    for one that is not what was stored: nothing of the archive has left then."""
    try:
        return _written(state, tenant, version)
    except OSError as error:
        raise StorageFailed("the archive cannot be written at the moment") from error


def _written(state: State, tenant: str, version: AdapterVersion) -> IO[bytes]:
    made = tempfile.TemporaryFile(dir=state.directory.tmp)  # noqa: SIM115
    try:
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, file in sorted(version.facts.source.items()):
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = file.size, int(version.created), 0o644
                with state.blobs.open(tenant, file.sha256) as opened:
                    hashed = _Hashed(opened)
                    archive.addfile(info, hashed)
                if hashed.hexdigest() != file.sha256:
                    raise BlobDamaged(file.sha256, "holds other bytes than were stored")
        made.seek(0)
    except BaseException:
        made.close()
        raise
    return made


class _Hashed:
    """A stream whose bytes are hashed as they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hasher = stream, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        data = self._stream.read(count)
        self._hasher.update(data)
        return data

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()
