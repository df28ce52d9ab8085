"""What a server is told of files that clients keep with it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from opsin_server.option import Option

Bytes = Annotated[int, Meta(ge=1)]


class FileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_file_bytes: Annotated[Bytes, Option("A file of /v1/files.", metavar="SIZE")] = 512 * 2**20
    max_upload_bytes: Annotated[Bytes, Option("A file that comes in parts, of /v1/uploads.", metavar="SIZE")] = (
        8 * 2**30
    )
