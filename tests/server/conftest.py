"""The databases that the server's storage can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin_server.storage.migrations import HEAD, VERSION_TABLE
from opsin_server.storage.state import State
from opsin_server.storage.tables import Base
from opsin_server.storage_config import StorageConfig
from support.postgres import Absent, Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    try:
        server = Postgres()
    except Absent as why:
        pytest.skip(str(why))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that was opened once: to make its tables takes longer than most tests."""
    path = tmp_path_factory.mktemp("made") / "data"
    State.open(StorageConfig(data_dir=str(path))).close()
    return path


@pytest.fixture(scope="session")
def made_url(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The database that most tests share: its tables are made."""
    url = postgres.url()
    State.open(StorageConfig(data_dir=str(tmp_path_factory.mktemp("made") / "data"), database=url)).close()
    return url


@pytest.fixture
def postgres_url(postgres: Postgres, made_url: str) -> str:
    """A database with empty tables."""
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    name = made_url.rpartition("/")[2]
    postgres.execute(f"TRUNCATE {tables}; UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'", name)
    return made_url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    """What --database is given."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
