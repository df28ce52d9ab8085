"""What lasts, opened as one: the data directory, the database, the blobs, and the records in them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from sqlalchemy import insert, select

from opsin_server.errors import ConfigError
from opsin_server.storage.adapter_records import AdapterRecords
from opsin_server.storage.alias_records import AliasRecords
from opsin_server.storage.answer_records import AnswerRecords
from opsin_server.storage.batch_records import BatchRecords
from opsin_server.storage.blob_files import BlobFiles, LocalFiles
from opsin_server.storage.blobs import BlobStore
from opsin_server.storage.data_directory import BLOBS, DATABASE, DataDirectory, data_path, open_directory
from opsin_server.storage.database import Database
from opsin_server.storage.file_cache import FileCache
from opsin_server.storage.file_records import FileRecords
from opsin_server.storage.job_records import JobRecords
from opsin_server.storage.postgres import open_postgres
from opsin_server.storage.sqlite import open_sqlite, open_sqlite_to_read
from opsin_server.storage.tables import StoreRow
from opsin_server.storage.webhook_records import WebhookRecords
from opsin_server.storage_config import StorageConfig

CACHE_BYTES = 10 * 2**30


class State:
    """`open`, and `close` at the end. Any thread may use what is in it."""

    def __init__(
        self, directory: DataDirectory, database: Database, files: BlobFiles, now: Callable[[], float]
    ) -> None:
        self.directory, self.database, self.files = directory, database, files
        cache = FileCache(directory.cache, directory.tmp, CACHE_BYTES)
        self.blobs = BlobStore(database, files, directory.tmp, cache, now)
        self.adapters = AdapterRecords(database, now)
        self.aliases = AliasRecords(database, now)
        self.stored_files = FileRecords(database, now)
        self.jobs = JobRecords(database, now)
        self.answers = AnswerRecords(database, now)
        self.batches = BatchRecords(database, now)
        self.webhooks = WebhookRecords(database, now)
        self._open = ExitStack()

    @classmethod
    def open(cls, config: StorageConfig, now: Callable[[], float] = time.time) -> State:
        """now: seconds since 1970. Raises ConfigError, one sentence for the operator, and then has changed nothing but
        to make what was not there."""
        with ExitStack() as until_failed:
            directory = until_failed.enter_context(open_directory(config))
            state = cls.within(directory, config, now)
            until_failed.callback(state._open.close)
            state._open = until_failed.pop_all()
        return state

    @classmethod
    def within(cls, directory: DataDirectory, config: StorageConfig, now: Callable[[], float] = time.time) -> State:
        """As `open`, in a directory that is the caller's to close when this is closed."""
        with ExitStack() as until_failed:
            database = _database(config, directory)
            until_failed.callback(database.close)
            state = cls(directory, database, _files(config, directory.blobs), now)
            _claim(state, config)
            state._open = until_failed.pop_all()
        return state

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> State:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def database_to_read(config: StorageConfig) -> Iterator[Database]:
    """The database as it is, without owning the data directory: a server may be running. Raises ConfigError."""
    if config.database is not None:
        database = open_postgres(config.database, migrate=False)
    else:
        database = open_sqlite_to_read(data_path(config) / DATABASE)
    try:
        yield database
    finally:
        database.close()


def files_to_read(config: StorageConfig) -> BlobFiles:
    return _files(config, data_path(config) / BLOBS)


def _database(config: StorageConfig, directory: DataDirectory) -> Database:
    if config.database is None:
        return open_sqlite(directory.database, directory.tmp)
    return open_postgres(config.database)


def _files(config: StorageConfig, folder: Path) -> BlobFiles:
    if config.blobs is None:
        return LocalFiles(folder)
    from opsin_server.storage.s3_files import open_s3  # with its driver 0.5 s

    return open_s3(config.blobs)


def _claim(state: State, config: StorageConfig) -> None:
    """A database and its files belong together: what another database knows must not be collected as unknown to this
    one. Raises ConfigError for a place that is another's."""
    with state.database.transaction() as connection:
        own = connection.scalar(select(StoreRow.id))
        if own is None:
            own = secrets.token_hex(16)
            connection.execute(insert(StoreRow).values(id=own))
    place = config.blobs or str(state.directory.blobs)
    try:
        owner = state.files.owner()
        if owner is None:
            state.files.claim(own)
    except OSError as error:
        raise ConfigError(f"{place} cannot be used: {error.strerror or error}") from error
    if owner not in (None, own):
        raise ConfigError(f"{place} holds the files of another database than {state.database.name}")
