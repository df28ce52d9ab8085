"""The form of a backup: one tar file, uncompressed, of plain members in a fixed order.

manifest.json            what is in it: the form's and the schema's number, and each table with its SHA-256
tables/NAME.jsonl        the rows of each table, a JSON object a line, in the order of the manifest
blobs/DIGEST             the bytes of each blob, by digest
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import Annotated, BinaryIO, Final, Literal

import msgspec
from msgspec import Meta

from opsin_server.errors import ConfigError

FORMAT: Final = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 2**20
ROW_BYTES = 16 * 2**20
CHUNK = 2**20

Count = Annotated[int, Meta(ge=0)]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern="^[a-z_]{1,63}$")]
    rows: Count
    size: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """created: seconds since 1970. blobs, blob_bytes: how many different ones, and their bytes together."""

    format: Literal[1]
    schema: str
    version: str
    created: float
    tables: list[Table]
    blobs: Count
    blob_bytes: Count


class _AnyFormat(msgspec.Struct):
    format: int


def table_member(name: str) -> str:
    return f"tables/{name}.jsonl"


def blob_member(digest: str) -> str:
    return f"blobs/{digest}"


def read_manifest(data: bytes) -> Manifest:
    """Raises ConfigError for another form than this."""
    try:
        found = msgspec.json.decode(data, type=_AnyFormat).format
        if found > FORMAT:
            raise ConfigError(f"the backup has format {found}, and this Opsin reads format {FORMAT}: take a newer one")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the backup's {MANIFEST} is not understood: {error}") from None


class Reader:
    """Reads members one after the other, each of which must be the one that is expected: no name in the archive becomes
    a path, and nothing of it is read at once but its 512 byte headers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def begin(self, name: str, most: int) -> int:
        """The size of the next member, of which `copy` is to be given each byte. Raises ConfigError for any other
        member than a plain file of that name, with `most` bytes at most."""
        try:
            info = tarfile.TarInfo.frombuf(self._file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError):
            raise ConfigError(f"the backup is cut off or damaged where {name} should begin") from None
        if info.name != name or info.type != tarfile.REGTYPE:
            raise ConfigError(f"the backup has {info.name[:100]!r} where {name} should be")
        if not 0 <= info.size <= most:
            raise ConfigError(f"the backup's {name} has {info.size:,} bytes; {most:,} are the most")
        return info.size

    def copy(self, name: str, size: int, out: BinaryIO) -> str:
        """The SHA-256 of a member's bytes, which it writes to `out`."""
        hasher, left = hashlib.sha256(), size
        while left:
            chunk = self._file.read(min(CHUNK, left))
            if not chunk:
                raise ConfigError(f"the backup is cut off within {name}")
            left -= len(chunk)
            hasher.update(chunk)
            out.write(chunk)
        self._file.read(-size % tarfile.BLOCKSIZE)
        return hasher.hexdigest()

    def end(self) -> None:
        if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise ConfigError("the backup has more in it than its manifest says")
