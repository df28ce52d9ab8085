"""Where a server keeps what must outlive it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from opsin_server.option import Option


class StorageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raises ValueError, naming the flags, for a combination that would lose a half of what belongs together."""

    data_dir: Annotated[
        str | None,
        Option(
            "Directory for what lasts. Default: opsin in XDG_DATA_HOME, which is ~/.local/share where it is not set.",
            metavar="DIR",
        ),
    ] = None
    ephemeral: Annotated[bool, Option("A temporary data directory, which is removed at the end.")] = False
    database: Annotated[
        str | None, Option("A PostgreSQL database instead of a file in the data directory.", metavar="URL")
    ] = None
    blobs: Annotated[
        str | None,
        Option("An S3 bucket for files instead of the data directory.", metavar="s3://BUCKET/PREFIX"),
    ] = None

    def __post_init__(self) -> None:
        for flag, value in (("--data-dir", self.data_dir), ("--database", self.database), ("--blobs", self.blobs)):
            if value is not None and not value.strip():
                raise ValueError(f"{flag} is empty")
        if not self.ephemeral:
            return
        if self.data_dir is not None:
            raise ValueError(f"--ephemeral keeps no directory, --data-dir {self.data_dir} names one: give one of them")
        if (self.database is None) != (self.blobs is None):
            kept, lost = ("--database", "--blobs") if self.blobs is None else ("--blobs", "--database")
            raise ValueError(f"--ephemeral with {kept} would lose half of what belongs together: give {lost} as well")
