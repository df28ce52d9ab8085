"""The images of a training file in its prepared folder, each once, by the SHA-256 of its bytes."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

from opsin_server.errors import BadRequest
from opsin_server.jobs.image_sources import is_data_url, is_remote, read_path
from opsin_server.media.connect import Network
from opsin_server.media.data_url import decode_data_url
from opsin_server.media.detect_format import read_still
from opsin_server.media.encoded_image import EncodedImage, check_size
from opsin_server.media.fetch import fetch
from opsin_server.media.file_id import FileId, ReadFile, read_file
from opsin_server.media.url import parse_url
from opsin_server.media_limits import MediaLimits


class ImageStore:
    """Threads may share one. folder: of the files. most: bytes of all that is stored. base: where paths may lie; None:
    nowhere. files: that rows may name by id."""

    def __init__(
        self,
        folder: Path,
        media: MediaLimits,
        most: int = sys.maxsize,
        base: Path | None = None,
        network: Network | None = None,
        files: ReadFile | None = None,
    ) -> None:
        self._folder, self._media, self._most, self._base = folder, media, most, base
        self._network, self._files = network or Network(), files
        self._stored = 0
        self._lock = Lock()
        self._fetched: dict[tuple[bool, str], Future[str]] = {}

    def keep(self, source: str) -> str:
        """The digest of an image that is stored now. Each address and path is read once, whatever came of it. Raises
        BadRequest."""
        if not isinstance(source, FileId) and is_data_url(source):
            return self._put(decode_data_url(source, self._media))
        key = (isinstance(source, FileId), source)
        with self._lock:
            found = self._fetched.get(key)
            mine = found is None
            if found is None:
                found = self._fetched[key] = Future()
        if mine:
            try:
                found.set_result(self._put(self._read(source)))
            except BadRequest as error:  # (a new one: this one's traceback holds the bytes)
                found.set_exception(BadRequest(error.message, code=error.code))
            except BaseException as error:
                found.set_exception(error)
                raise
        try:
            return found.result()
        except BadRequest as error:  # (a new one: each row says its own place)
            raise BadRequest(error.message, code=error.code) from None

    def still(self, digest: str) -> EncodedImage:
        """An image that is stored, undecoded. Raises BadRequest for what is no picture, or too large a one."""
        still = read_still(self.path(digest).read_bytes())
        check_size(still, self._media)
        return still

    def path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _read(self, source: str) -> bytes:
        if isinstance(source, FileId):
            return read_file(source, self._files)
        if is_remote(source):
            return asyncio.run(fetch(parse_url(source), self._media, self._network))
        if self._base is None:
            raise BadRequest("a path, and no folder is given in which it may lie", code="invalid_image")
        return read_path(source, self._base, self._media)

    def _put(self, data: bytes) -> str:
        """Nothing is stored that is no picture within the limits."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            check_size(read_still(data), self._media)
            with self._lock:
                self._stored += len(data)
                if self._stored > self._most:
                    raise BadRequest(f"the file's images have more than {self._most:,} bytes together")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{digest}.{secrets.token_hex(4)}")
            part.write_bytes(data)
            part.replace(path)
        return digest
