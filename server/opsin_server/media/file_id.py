"""An image that a client has uploaded, where others give a URL."""

from collections.abc import Callable

from opsin_server.errors import BadRequest


class FileId(str):
    """Its id. No URL is one, whatever it says."""

    __slots__ = ()


ReadFile = Callable[[str], bytes]
"""The bytes of an uploaded image. Raises BadRequest."""


def read_file(file_id: str, files: ReadFile | None) -> bytes:
    """files: None where there are none. Raises BadRequest."""
    if files is None:
        raise BadRequest("an image by the id of a file: only a server has files", code="invalid_image")
    return files(file_id)
