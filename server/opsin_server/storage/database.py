"""The database: one engine, sessions that read or write, and locks by name. SQLite or PostgreSQL, by what `sqlite.py`
and `postgres.py` make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from opsin_server import __version__
from opsin_server.errors import ConfigError, StorageFailed
from opsin_server.storage.migrations import HEAD, REVISIONS, create, revision, upgrade

log = logging.getLogger("opsin.storage")

Hold = Callable[[str], AbstractContextManager[None]]


class Database:
    """What `read` and `write` raise for what the database itself cannot do is StorageFailed; the log has the reason.
    Any thread may use it."""

    def __init__(self, engine: Engine, name: str, hold: Hold) -> None:
        """name: for people, without a password. hold: what the method of that name does, where nothing goes wrong."""
        self.name = name
        self._engine, self._hold = engine, hold
        self._reader = engine.execution_options(writes=False)
        self._writer = engine.execution_options(writes=True)

    @property
    def shared(self) -> bool:
        """Whether other processes may change it."""
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the data, on PostgreSQL one state a statement."""
        with self._answers(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes last when the context ends, or are undone when it raises."""
        with self._answers(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """A lock: of all threads and processes at this database, one is in this context with a name."""
        with self._answers(), self._hold(name):
            yield

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # a bug of ours
            raise
        except (DBAPIError, PoolTimeout) as error:
            log.error("%s: %s", self.name, reason(error))
            raise StorageFailed("what must last cannot be read or written at the moment") from error

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that sees one state of the data and changes nothing. Raises ConfigError."""
        with self.sentence("cannot be read"), self._reader.connect() as connection:
            if connection.dialect.name == "postgresql":  # (a transaction of SQLite's does so anyway)
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """The only one of all processes, before the server runs: for migrations. Raises ConfigError."""
        with self.sentence("cannot be used"), self._hold("transaction"), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def sentence(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise ConfigError(f"{self.name} {what}: {reason(error)}") from error

    def migrate(self) -> None:
        """Brings the schema to this program's, in one transaction. Raises ConfigError for a newer one, untouched."""
        with self.transaction() as connection:
            check_known(self.name, found := revision(connection))
            if found is None:
                create(connection)
            elif found != HEAD:
                upgrade(connection)

    def close(self) -> None:
        self._engine.dispose()


def check_known(name: str, found: str | None) -> None:
    """Raises ConfigError for a schema that this program does not know."""
    if found is not None and found not in REVISIONS:
        raise ConfigError(
            f"{name} has schema {found}, and Opsin {__version__} knows schemas up to {HEAD}: start it with the newer "
            "Opsin that wrote it"
        )


def reason(error: Exception) -> str:
    """The database's own first line, without statement and parameters."""
    own = getattr(error, "orig", None) or error
    lines = str(own).strip().splitlines()
    return lines[0].strip() if lines else type(own).__name__
