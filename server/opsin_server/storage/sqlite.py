"""SQLite, in a file that one process owns. Every commit is on the disk when it returns (WAL, synchronous=FULL)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from opsin_server.durable import sync_folder
from opsin_server.errors import ConfigError
from opsin_server.storage.database import Database, check_known
from opsin_server.storage.migrations import VERSION_TABLE

HEAD_OF_FILE = b"SQLite format 3\0"
BUSY_SECONDS = 30.0


def open_sqlite(path: Path, tmp: Path) -> Database:
    """The database in a file, which is made where there is none: in `tmp` first, so that a file of that name is always
    whole. Raises ConfigError for one that is none, is damaged or has a newer schema, and leaves it as it is."""
    if path.exists():
        check(path)
    else:
        made = tmp / path.name
        try:
            first = Database(_engine(made), str(path), NamedLocks())
            try:
                first.migrate()
            finally:
                first.close()  # (which takes the log into the file)
            made.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise ConfigError(f"{path} cannot be made: {error.strerror}") from error
    opened = Database(_engine(path), str(path), NamedLocks())
    try:
        opened.migrate()
    except BaseException:
        opened.close()
        raise
    return opened


def open_sqlite_to_read(path: Path) -> Database:
    """The database in a file that another process may own. Raises ConfigError where there is none."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: --data-dir names the server's data directory")
    check(path)
    return Database(_engine(path), str(path), NamedLocks())


def check(path: Path) -> None:
    """Reads a file through without changing it. Raises ConfigError for what is no sound database of a known schema."""
    try:
        with path.open("rb") as file:
            if file.read(len(HEAD_OF_FILE)) != HEAD_OF_FILE:
                raise ConfigError(f"{path} is no SQLite database: move it away, or restore a backup")
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as connection:
            said = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
            if said != ["ok"]:
                raise ConfigError(f"{path} is damaged ({' '.join(said[0].split())}): restore a backup")
            has = "SELECT 1 FROM sqlite_master WHERE name = ?"
            if connection.execute(has, (VERSION_TABLE,)).fetchone() is None:
                raise ConfigError(f"{path} is a database, but none of Opsin's: move it away")
            found = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608
            check_known(str(path), "none" if found is None else found[0])
    except sqlite3.Error as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore a backup") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, and hold DDL as well
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """A writer waits for its turn before it reads: what it read is then still true when it writes."""
    writes = connection.get_execution_options().get("writes", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class NamedLocks:
    """Locks by name within this process, which is the only one."""

    def __init__(self) -> None:
        self._changed, self._held = threading.Condition(), set[str]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: name not in self._held)
            self._held.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(name)
                self._changed.notify_all()
