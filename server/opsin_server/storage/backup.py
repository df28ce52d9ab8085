"""`opsin backup`: everything that lasts in one file, while a server runs or while none does."""

from __future__ import annotations

import hashlib
import os
import secrets
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from sqlalchemy import Connection, Select, select
from sqlalchemy import Table as SqlTable

from opsin_server import __version__
from opsin_server.durable import sync_folder
from opsin_server.errors import BlobDamaged, ConfigError
from opsin_server.signals import signals_raise
from opsin_server.storage.archive import FORMAT, MANIFEST, Manifest, Table, blob_member, table_member
from opsin_server.storage.blob_files import BlobFiles
from opsin_server.storage.blobs import referenced
from opsin_server.storage.migrations import HEAD, revision
from opsin_server.storage.state import database_to_read, files_to_read
from opsin_server.storage.tables import Base, BlobRow, StoreRow
from opsin_server.storage_config import StorageConfig

ROWS_AT_ONCE = 1000
TABLES = [table for table in Base.metadata.sorted_tables if table.name != StoreRow.__tablename__]


def backup(config: StorageConfig, out: Path, *, force: bool = False) -> str:
    """What was written, in a sentence. The rows are of one moment; blobs that no row names are left out. Raises
    ConfigError, and then leaves `out` as it was. force: `out` may be a file already."""
    if out.exists() and not (force and out.is_file()):
        raise ConfigError(f"{out} exists: give another name, or --force for a file to be replaced")
    with ExitStack() as until_done:
        database = until_done.enter_context(database_to_read(config))
        files = files_to_read(config)
        with database.snapshot() as connection:
            found = revision(connection)
            if found != HEAD:
                raise ConfigError(f"{database.name} has schema {found}, not {HEAD}: `opsin serve` brings it up to date")
            spooled = [(str(table.name), *_spool(until_done, connection, table)) for table in TABLES]
            blobs = _blobs(connection)
        manifest = Manifest(
            FORMAT,
            HEAD,
            __version__,
            time.time(),
            [Table(name, rows, size, sha) for name, rows, size, sha, _ in spooled],
            len(blobs),
            sum(blobs.values()),
        )
        with _written(out) as target, tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
            _add_bytes(archive, MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
            for name, _, size, _, spool in spooled:
                archive.addfile(_info(table_member(name), size), spool)
            for digest, size in blobs.items():
                _add_blob(archive, files, digest, size)
    rows = sum(table.rows for table in manifest.tables)
    return f"{out}: {rows:,} rows, {manifest.blobs:,} files of {manifest.blob_bytes:,} bytes"


def _selected(table: SqlTable) -> Select[tuple[object, ...]]:
    rows = select(table).order_by(*table.primary_key.columns)
    return rows.where(referenced()) if table.name == BlobRow.__tablename__ else rows


def _spool(until_done: ExitStack, connection: Connection, table: SqlTable) -> tuple[int, int, str, BinaryIO]:
    """How many rows, how many bytes, their SHA-256, and where they are."""
    spool = until_done.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    hasher, count = hashlib.sha256(), 0
    rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(_selected(table))
    for row in rows.mappings():
        line = msgspec.json.encode(dict(row)) + b"\n"
        hasher.update(line)
        spool.write(line)
        count += 1
    size = spool.tell()
    spool.seek(0)
    return count, size, hasher.hexdigest(), spool


def _blobs(connection: Connection) -> dict[str, int]:
    """Sizes by digest, of all tenants together."""
    rows = select(BlobRow.digest, BlobRow.size).where(referenced()).distinct().order_by(BlobRow.digest)
    return {digest: size for digest, size in connection.execute(rows)}  # noqa: C416  # (a result has `keys`)


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    with tempfile.SpooledTemporaryFile(max_size=2**20) as file:
        file.write(data)
        file.seek(0)
        archive.addfile(_info(name, len(data)), file)


def _add_blob(archive: tarfile.TarFile, files: BlobFiles, digest: str, size: int) -> None:
    """Read through on the way: a backup of damaged files would be none."""
    try:
        if (found := files.size(digest)) != size:
            raise BlobDamaged(digest, "is missing" if found is None else f"has {found:,} bytes instead of {size:,}")
        with files.open(digest) as opened:
            hashed = _Hashed(opened)
            archive.addfile(_info(blob_member(digest), size), hashed)  # type: ignore[arg-type]  # it only reads
    except FileNotFoundError:
        raise BlobDamaged(digest, "is missing") from None
    if hashed.hasher.hexdigest() != digest:
        raise BlobDamaged(digest, f"holds other bytes (their SHA-256 is {hashed.hasher.hexdigest()})")


class _Hashed:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hasher = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.hasher.update(data)
        return data


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


@contextmanager
def _written(out: Path) -> Iterator[BinaryIO]:
    """A file beside `out` that becomes `out` when all is written, or is removed."""
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    with signals_raise():
        try:
            with open(new, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as target:
                yield target
                target.flush()
                os.fsync(target.fileno())
            new.rename(out)
            sync_folder(out.absolute().parent)
        except OSError as error:
            raise ConfigError(f"{out} is not written: {error.strerror or error}") from error
        except BlobDamaged as error:
            raise ConfigError(f"{out} is not written: {error}") from error
        finally:
            new.unlink(missing_ok=True)
