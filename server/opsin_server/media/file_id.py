"""An image or a video that a client has uploaded, where others give a URL."""

from collections.abc import Callable

from opsin_server.media.media_kind import IMAGE, MediaKind


class FileId(str):
    """Its id. No URL is one, whatever it says."""

    __slots__ = ()


ReadFile = Callable[[str], bytes]
"""The bytes of an uploaded image, or video. Raises BadRequest."""


def read_file(file_id: str, files: ReadFile | None, kind: MediaKind = IMAGE) -> bytes:
    """files: None where there are none. Raises BadRequest."""
    if files is None:
        raise kind.invalid(f"{kind.some} by the id of a file: only a server has files")
    return files(file_id)
