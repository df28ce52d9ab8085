"""`opsin restore`: what a backup holds into a data directory, a database and a bucket in which there is nothing yet."""

from __future__ import annotations

import io
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from sqlalchemy import JSON, Column, Connection, MetaData, exists, insert, inspect, select, text
from sqlalchemy import Table as SqlTable
from sqlalchemy.exc import SQLAlchemyError

from opsin_server.errors import ConfigError
from opsin_server.storage.archive import (
    MANIFEST,
    MANIFEST_BYTES,
    ROW_BYTES,
    Manifest,
    Reader,
    Table,
    blob_member,
    read_manifest,
    table_member,
)
from opsin_server.storage.backup import TABLES
from opsin_server.storage.blob_files import DIGEST
from opsin_server.storage.database import check_known, reason
from opsin_server.storage.migrations import HEAD, VERSION_TABLE, upgrade
from opsin_server.storage.state import State
from opsin_server.storage.tables import Base, BlobRow, StoreRow
from opsin_server.storage_config import StorageConfig

ROWS_AT_ONCE = 500

Spooled = list[tuple[Table, BinaryIO]]


def restore(config: StorageConfig, source: Path) -> str:
    """What was restored, in a sentence. Raises ConfigError, and then the database is as empty as it was."""
    with State.open(config) as state, source.open("rb") as file, ExitStack() as until_done:
        with state.database.transaction() as connection:
            _check_empty(connection, state)
        reader = Reader(file)
        try:
            manifest = _manifest(reader)
            check_known("the backup", manifest.schema)
            tables = [(table, _spool(until_done, reader, table, state)) for table in manifest.tables]
            sizes = _blob_sizes(tables, manifest)
            for digest, size in sizes.items():
                _place(reader, state, digest, size)
            reader.end()
        except OSError as error:
            raise ConfigError(f"{source} cannot be restored: {error.strerror or error}") from error
        with state.database.transaction() as connection:
            _check_empty(connection, state)
            try:
                _fill(connection, manifest, tables)
            except (SQLAlchemyError, ValueError, OverflowError) as error:  # (the drivers' own, of values)
                raise ConfigError(f"the backup's rows do not fit: {reason(error)}") from error
    rows = sum(table.rows for table in manifest.tables)
    return f"{rows:,} rows, {manifest.blobs:,} files of {manifest.blob_bytes:,} bytes restored to {state.database.name}"


def _check_empty(connection: Connection, state: State) -> None:
    for table in TABLES:
        if connection.scalar(select(exists(select(table)))):
            raise ConfigError(f"{state.database.name} is not empty: restore to another --data-dir or --database")


def _manifest(reader: Reader) -> Manifest:
    held = io.BytesIO()
    reader.copy(MANIFEST, reader.begin(MANIFEST, MANIFEST_BYTES), held)
    return read_manifest(held.getvalue())


def _spool(until_done: ExitStack, reader: Reader, table: Table, state: State) -> BinaryIO:
    name = table_member(table.name)
    spool = until_done.enter_context(tempfile.TemporaryFile(dir=state.directory.tmp))  # noqa: SIM115
    if (size := reader.begin(name, table.size)) != table.size:
        raise ConfigError(f"the backup's {name} has {size:,} bytes instead of {table.size:,}")
    if reader.copy(name, size, spool) != table.sha256:
        raise ConfigError(f"the backup's {name} is damaged: its SHA-256 is not the manifest's")
    return spool


def _rows(table: Table, spool: BinaryIO) -> Iterator[dict[str, Any]]:
    """Raises ConfigError for a line that is no object, or too long, or another number of them."""
    spool.seek(0)
    count = 0
    while line := spool.readline(ROW_BYTES + 1):
        count += 1
        try:
            if len(line) > ROW_BYTES:
                raise ValueError(f"it has more than {ROW_BYTES:,} bytes")
            yield msgspec.json.decode(line, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the backup's {table.name}, line {count}: {error}") from None
    if count != table.rows:
        raise ConfigError(f"the backup's {table.name} has {count:,} rows; its manifest says {table.rows:,}")


def _blob_sizes(tables: Spooled, manifest: Manifest) -> dict[str, int]:
    """By digest, in the order in which they follow."""
    found: dict[str, int] = {}
    for table, spool in tables:
        if table.name == BlobRow.__tablename__:
            for row in _rows(table, spool):
                digest, size = row.get("digest"), row.get("size")
                if not isinstance(digest, str) or not DIGEST.fullmatch(digest) or not isinstance(size, int):
                    raise ConfigError(f"the backup's {table.name} has a digest {str(digest)[:80]!r} of size {size!r}")
                if found.setdefault(digest, size) != size:
                    raise ConfigError(f"the backup's {table.name} has two sizes of {digest}")
    if (len(found), sum(found.values())) != (manifest.blobs, manifest.blob_bytes):
        raise ConfigError("the backup's blobs are not those that its manifest counts")
    return dict(sorted(found.items()))


def _place(reader: Reader, state: State, digest: str, size: int) -> None:
    name = blob_member(digest)
    scratch = state.directory.tmp / secrets.token_hex(8)
    try:
        with scratch.open("xb") as out:
            if (found := reader.begin(name, size)) != size:
                raise ConfigError(f"the backup's {name} has {found:,} bytes instead of {size:,}")
            if reader.copy(name, size, out) != digest:
                raise ConfigError(f"the backup's {name} is damaged: its SHA-256 is not its name")
        state.files.place(scratch, digest)
    finally:
        scratch.unlink(missing_ok=True)


def _fill(connection: Connection, manifest: Manifest, tables: Spooled) -> None:
    """The schema as it was when the backup was made, its rows, and then what has changed in the schema since."""
    store = connection.scalars(select(StoreRow.id)).one()
    Base.metadata.drop_all(connection)
    connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    others = set(inspect(connection).get_table_names())  # a database may have tables of another program's, too
    upgrade(connection, manifest.schema)
    ours = set(inspect(connection).get_table_names()) - others - {VERSION_TABLE, StoreRow.__tablename__}
    by_name = {table.name: (table, spool) for table, spool in tables}
    if (names := sorted(table.name for table, _ in tables)) != sorted(ours):
        raise ConfigError(f"the backup has tables {', '.join(names)}, and schema {manifest.schema} has others")
    then = MetaData()
    then.reflect(connection, only=sorted(ours))
    for target in then.sorted_tables:
        _prepare_json(target)
        rows = (_checked(target, row) for row in _rows(*by_name[target.name]))
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            connection.execute(insert(target), batch)
    upgrade(connection, HEAD)
    connection.execute(insert(StoreRow).values(id=store))


def _prepare_json(target: SqlTable) -> None:
    """None in a column of JSON is to be SQL's, as it was."""
    for column in target.columns:
        if isinstance(column.type, JSON):
            column.type = JSON(none_as_null=True)


def _checked(target: SqlTable, row: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns are the table's, each with a value of its type: SQLite would take any."""
    if set(row) != set(target.columns.keys()):
        raise ConfigError(f"the backup's {target.name} has columns {', '.join(sorted(row))[:200]}")
    for column in target.columns:
        if not _fits(column, row[column.name]):
            raise ConfigError(f"the backup's {target.name} has {row[column.name]!r:.80} as {column.name}")
    return row


def _fits(column: Column[Any], value: Any) -> bool:
    if value is None:
        return bool(column.nullable)
    if isinstance(column.type, JSON):
        return True
    kind = column.type.python_type
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
