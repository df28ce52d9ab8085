"""A multipart upload as it comes: its file goes to a file of the data directory, its fields are small, and nothing is
larger than was allowed before it came."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message as Headers
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from opsin_server.api.routes.read_body import body_chunks
from opsin_server.errors import BadRequest, StorageFailed, TooLarge

FIELD_BYTES = 64 * 1024
MAX_FIELDS = 32
OVERHEAD = 2**20  # of a body, for its fields and boundaries


@dataclass
class Upload:
    """file: what was sent as `file`. name: the client's own for it; no path is made of it."""

    file: Path
    name: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    received: int = -1  # bytes of the file; -1: none came


@asynccontextmanager
async def read_upload(
    request: Request, folder: Path, limit: int, option: str, part: str = "file"
) -> AsyncIterator[Upload]:
    """option: what sets the limit. part: the name of the form's field that is the file. Raises TooLarge as soon as it
    is known, BadRequest for what is no form or has no file. What was received is gone at the end."""
    boundary = _boundary(request.headers.get("content-type", ""))
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            upload = Upload(Path(file.name))
            parts = _Parts(upload, file, limit, option, part)
            parser = MultipartParser(boundary, parts.callbacks(), limit + OVERHEAD)
            async for chunk in body_chunks(request, limit + OVERHEAD, option):
                parser.write(chunk)
            parser.finalize()
            if not parts.ended:
                raise BadRequest("The body ends before the form's closing boundary")
            file.flush()
            if upload.received < 0:
                sentence = f"Missing required parameter: '{part}'"
                raise BadRequest(sentence, param=part, code="missing_required_parameter")
            yield upload
    except MultipartParseError as error:
        raise BadRequest(f"The body is no multipart form: {error}") from error
    except OSError as error:
        raise StorageFailed("the upload cannot be kept at the moment") from error


def _boundary(content_type: str) -> bytes:
    headers = Headers()
    headers["content-type"] = content_type
    boundary = headers.get_param("boundary") if headers.get_content_type() == "multipart/form-data" else None
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70:
        raise BadRequest(
            f"The content type must be multipart/form-data with a boundary, not {content_type[:100]}",
            code="unsupported_content_type",
        )
    return boundary.encode("latin-1", "replace")


class _Parts:
    """What the parser says of parts, one after the other."""

    def __init__(self, upload: Upload, file: IO[bytes], limit: int, option: str, part: str) -> None:
        self._upload, self._file, self._limit, self._option, self._part = upload, file, limit, option, part
        self._header = self._disposition = b""
        self._value = bytearray()
        self._name = ""
        self.ended = False  # whether the closing boundary came

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._end_of_form,
        }

    def _begin(self) -> None:
        self._header = self._disposition = b""
        self._value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _header_end(self) -> None:
        self._header = b""

    def _headers_finished(self) -> None:
        headers = Headers()
        headers["content-disposition"] = self._disposition.decode("utf-8", "replace").replace("\n", " ")
        name = headers.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise BadRequest("A part of the form has no name")
        if name in self._upload.fields or (name == self._part and self._upload.received >= 0):
            raise BadRequest(f"The form has more than one '{name[:100]}'", param=name[:100])
        if len(self._upload.fields) >= MAX_FIELDS:
            raise BadRequest(f"The form has more than {MAX_FIELDS} fields")
        self._name = name
        if name == self._part:
            self._upload.received = 0
            name = str(headers.get_param("filename", "", header="content-disposition"))
            self._upload.name = name.replace("%22", '"')  # (so forms write it, and no other character)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._part:
            self._upload.received += end - start
            if self._upload.received > self._limit:
                raise TooLarge(f"The file has more than {self._limit:,} bytes ({self._option})", param=self._part)
            self._file.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise TooLarge(
                f"The field '{self._name[:100]}' has more than {FIELD_BYTES:,} bytes", param=self._name[:100]
            )

    def _end(self) -> None:
        if self._name != self._part:
            try:
                self._upload.fields[self._name] = self._value.decode("utf-8")
            except UnicodeDecodeError:
                raise BadRequest(f"The field '{self._name[:100]}' is not UTF-8", param=self._name[:100]) from None

    def _end_of_form(self) -> None:
        self.ended = True
