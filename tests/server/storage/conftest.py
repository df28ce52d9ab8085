"""Storage on each database and each place for files that it can have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.postgres import Absent, Postgres
from support.s3 import S3


class Clock:
    """The time, which a test may let pass."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
def s3() -> Iterator[S3]:
    server = S3()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place in a bucket of its own."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.bucket()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    """What --database is given: a new database each time."""
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("postgres").url()


@pytest.fixture
def local_config(tmp_path: Path) -> StorageConfig:
    return StorageConfig(data_dir=str(tmp_path / "data"))


@pytest.fixture
def config(tmp_path: Path, database: str | None) -> StorageConfig:
    """Each database, with files in the data directory."""
    return StorageConfig(data_dir=str(tmp_path / "data"), database=database)


@pytest.fixture
def state(config: StorageConfig, clock: Clock) -> Iterator[State]:
    with State.open(config, clock) as opened:
        yield opened
