"""What a server and the process that prepares a training file for it tell each other: a line of JSON each, over the
process's standard streams. Behind an answer that has bytes, these follow."""

from __future__ import annotations

import msgspec

from opsin_server.config import EngineConfig
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.options import DataOptions
from opsin_server.jobs.prepared import Report
from opsin_server.media_limits import MediaLimits


class PrepareFile(msgspec.Struct, frozen=True):
    """The first line: what is prepared, and with what. See `prepare.Source`."""

    config: EngineConfig
    file: str
    out: str
    options: DataOptions
    version: str
    max_image_tokens: int | None
    media: MediaLimits
    limits: DataLimits
    role: str
    threads: int


class FileBytes(msgspec.Struct, frozen=True):
    """The server's answer to WantFile: so many bytes follow; or why there are none."""

    size: int = 0
    refusal: str = ""
    code: str | None = None


class Lines(msgspec.Struct, frozen=True, tag=True):
    """So many are done; told again while no more are."""

    number: int


class WantFile(msgspec.Struct, frozen=True, tag=True):
    """An uploaded file, by its id."""

    id: str


class Done(msgspec.Struct, frozen=True, tag=True):
    pass


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The file cannot be used; report: of a DataRefused."""

    message: str
    param: str | None
    code: str | None
    report: Report | None = None


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The machine, not the file. number: of an OSError."""

    message: str
    number: int | None = None


FromProcess = Lines | WantFile | Done | Refused | Broken
from_process = msgspec.json.Decoder(FromProcess)
