"""Files of clients: kept by their content, named by rows, gone when their time has come."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from opsin_server.api.chores import Chores
from opsin_server.errors import BadRequest, NotFound, TooLarge
from opsin_server.file_config import FileConfig
from opsin_server.media.media_kind import IMAGE, VIDEO, MediaKind
from opsin_server.media_limits import MediaLimits
from opsin_server.storage.file_records import not_pending
from opsin_server.storage.records import TENANT, Blob, NewUpload, Page, StoredFile, Upload, UploadPart, checked_name
from opsin_server.storage.state import State

PART_BYTES = 64 * 2**20  # of a part, as at OpenAI
MEDIA_PURPOSES = ("vision", "user_data")
EXPIRE_SECONDS = 600.0  # between looks at what has expired


class FileService:
    def __init__(self, config: FileConfig, state: State, media: MediaLimits | None = None) -> None:
        self._media = media or MediaLimits()
        self._config, self._state, self._records = config, state, state.stored_files
        self.scratch, self.max_bytes = state.directory.tmp, config.max_file_bytes
        self._chores = Chores()

    def open(self) -> None:
        self._chores.begin(EXPIRE_SECONDS, self._expire)

    async def close(self) -> None:
        await self._chores.end()

    # --------------------------------------------------------------------------------------------------- files

    async def add(self, path: Path, name: str, purpose: str, lasts: int | None) -> StoredFile:
        """It is kept when this returns. lasts: seconds. Raises BadRequest for a name."""
        checked_name(name, "the file's name", "file")

        def kept() -> StoredFile:
            blob = self._put(path, name, self._config.max_file_bytes)
            return self._records.add(TENANT, blob, name, purpose, lasts)

        return await asyncio.to_thread(kept)

    async def get(self, file_id: str) -> StoredFile:
        return await asyncio.to_thread(self._records.get, TENANT, file_id)

    async def page(self, after: str | None, limit: int, newest_first: bool, purpose: str | None) -> Page[StoredFile]:
        return await asyncio.to_thread(
            lambda: self._records.page(TENANT, after=after, limit=limit, newest_first=newest_first, purpose=purpose)
        )

    async def delete(self, file_id: str) -> None:
        await asyncio.to_thread(self._records.delete, TENANT, file_id)

    async def content(self, file_id: str) -> tuple[StoredFile, BinaryIO]:
        """The bytes, for the caller to close."""

        def opened() -> tuple[StoredFile, BinaryIO]:
            file = self._records.get(TENANT, file_id)
            return file, self._state.blobs.open(TENANT, file.digest)

        return await asyncio.to_thread(opened)

    def read_image(self, file_id: str) -> bytes:
        """Of a picture that a request or a row names, on any thread. Raises BadRequest."""
        return self._read_media(file_id, IMAGE)

    def read_video(self, file_id: str) -> bytes:
        """The same of a video."""
        return self._read_media(file_id, VIDEO)

    def _read_media(self, file_id: str, kind: MediaKind) -> bytes:
        try:
            file = self._records.get(TENANT, file_id)
        except NotFound as error:
            raise kind.invalid(error.message) from None
        if file.purpose not in MEDIA_PURPOSES:
            purposes = " or ".join(MEDIA_PURPOSES)
            raise kind.invalid(f"{file.id} has the purpose '{file.purpose}': upload {kind.some} with {purposes}")
        if file.size > kind.max_bytes(self._media):
            raise kind.too_many_bytes(f"{file.size:,}", self._media)
        with self._state.blobs.open(TENANT, file.digest) as opened:
            return opened.read()

    # ------------------------------------------------------------------------------------------------- uploads

    async def begin_upload(self, new: NewUpload) -> Upload:
        if new.size > self._config.max_upload_bytes:
            raise TooLarge(
                f"The upload has {new.size:,} bytes; the limit is {self._config.max_upload_bytes:,} "
                "(--max-upload-bytes)",
                param="bytes",
            )
        return await asyncio.to_thread(self._records.begin_upload, TENANT, new)

    async def check_pending(self, upload_id: str) -> None:
        """Before a part is received."""
        upload = await asyncio.to_thread(self._records.upload, TENANT, upload_id)
        if upload.status != "pending":
            raise not_pending(upload_id, upload.status)

    async def add_part(self, upload_id: str, path: Path) -> UploadPart:
        def added() -> UploadPart:
            blob = self._put(path, "part", PART_BYTES)
            return self._records.add_part(TENANT, upload_id, blob)

        return await asyncio.to_thread(added)

    async def complete_upload(self, upload_id: str, part_ids: Sequence[str], md5: str | None) -> Upload:
        """All of the parts in that order make the file. BadRequest where their number of bytes, or their MD5, is not
        what was said."""
        return await asyncio.to_thread(self._completed, upload_id, part_ids, md5)

    async def cancel_upload(self, upload_id: str) -> Upload:
        return await asyncio.to_thread(self._records.cancel_upload, TENANT, upload_id)

    def _completed(self, upload_id: str, part_ids: Sequence[str], md5: str | None) -> Upload:
        upload = self._records.upload(TENANT, upload_id)
        if upload.status != "pending":
            raise not_pending(upload_id, upload.status)
        parts = self._records.parts(TENANT, upload_id, part_ids)
        size = sum(part.size for part in parts)
        if size != upload.size:
            raise BadRequest(
                f"the parts have {size:,} bytes together, and the upload was begun for {upload.size:,}",
                param="part_ids",
            )
        joined = _Joined(self._opened(parts))
        blob = self._state.blobs.put(TENANT, joined, kind="file", name=upload.name, limit=size)
        if md5 is not None and joined.md5 != md5.lower():
            raise BadRequest(f"the file's MD5 is {joined.md5}, not {md5[:32]}", param="md5")
        return self._records.complete_upload(TENANT, upload_id, blob)

    def _opened(self, parts: Sequence[UploadPart]) -> Iterator[BinaryIO]:
        for part in parts:
            with self._state.blobs.open(TENANT, part.digest) as opened:
                yield opened

    def _put(self, path: Path, name: str, limit: int) -> Blob:
        return self._state.blobs.put(TENANT, path, kind="file", name=name, limit=limit)

    async def _expire(self) -> None:
        await asyncio.to_thread(self._records.expire)


class _Joined:
    """Streams behind each other, hashed as they are read."""

    def __init__(self, streams: Iterator[BinaryIO]) -> None:
        self._streams, self._current = streams, next(streams, None)
        self._hasher = hashlib.md5(usedforsecurity=False)

    @property
    def md5(self) -> str:
        return self._hasher.hexdigest()

    def read(self, size: int, /) -> bytes:
        while self._current is not None:
            if data := self._current.read(size):
                self._hasher.update(data)
                return data
            self._current = next(self._streams, None)
        return b""
