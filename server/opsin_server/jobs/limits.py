"""What a training file may hold."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]


class DataLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """max_line_bytes: ten images of 10 MB in base64, and room. max_image_rows: rows with images, which OpenAI's limit
    counts. max_stored_bytes: of all images, each once, in a prepared folder. How large an image may be, and how many a
    row may have, the limits of the server's media say. max_seconds: after which no other row is waited for; None:
    however long it takes."""

    max_line_bytes: Count = 160 * 2**20
    max_rows: Count = 1_000_000
    max_image_rows: Count = 50_000
    max_stored_bytes: Count = 64 * 2**30
    max_messages: Count = 1_000
    max_separators: Count = 1_000_000  # commas and brackets of a line: each may be a value of 100 bytes in memory
    max_seconds: float | None = None
