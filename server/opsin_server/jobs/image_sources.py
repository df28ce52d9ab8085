"""Where a row's images may come from, and their bytes where they lie on this disk."""

from __future__ import annotations

import re
from pathlib import Path

from opsin_server.chat.fields import shown
from opsin_server.errors import BadRequest
from opsin_server.media.file_id import FileId
from opsin_server.media.media_kind import IMAGE
from opsin_server.media.url import parse_url
from opsin_server.media_limits import MediaLimits
from opsin_server.text.conversation import ImagePart

_REMOTE = re.compile(r"(data|https?):", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


def is_data_url(source: str) -> bool:
    return source[:5].lower() == "data:"


def is_remote(source: str) -> bool:
    """A URL that is read as a chat's is; all others are paths."""
    return _REMOTE.match(source) is not None


def check_source(part: ImagePart, base: Path | None) -> None:
    """Before anything is fetched. base: the folder in which paths may lie; None: no path is read, since it is a
    stranger who says it. Raises BadRequest."""
    source = part.source
    if isinstance(source, FileId) or is_data_url(source):
        return
    if is_remote(source):
        parse_url(source)
    elif not source:
        raise BadRequest(f"{part.param}: the image has no source", param=part.param)
    elif _SCHEME.match(source):
        raise BadRequest(f"{part.param}: {shown(source)} is neither a data: nor an http(s) URL", param=part.param)
    elif base is None:
        raise BadRequest(
            f"{part.param}: {shown(source)} is a path: an uploaded file may hold data: and http(s) URLs only",
            param=part.param,
        )


def read_path(source: str, base: Path, limits: MediaLimits) -> bytes:
    """The bytes of a file below `base`, links followed. Raises BadRequest."""
    root = base.resolve()
    try:
        path = (root / source).resolve(strict=True)
        if not path.is_relative_to(root):
            raise BadRequest(f"{shown(source)} lies outside of {root}", code="invalid_image")
        if not path.is_file():
            raise BadRequest(f"{shown(source)} is no file", code="invalid_image")
        if (size := path.stat().st_size) > limits.max_image_bytes:
            raise IMAGE.too_many_bytes(f"{size:,}", limits)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # (a NUL in a path)
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadRequest(f"{shown(source)} cannot be read: {why}", code="invalid_image") from None
