"""Storage on each place for files that it can have, and on each database (tests/server/conftest.py)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.clock import Clock
from support.s3 import S3


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


@pytest.fixture
def local_config(tmp_path: Path, made: Path) -> StorageConfig:
    shutil.copytree(made, tmp_path / "data")
    return StorageConfig(data_dir=str(tmp_path / "data"))


@pytest.fixture
def config(tmp_path: Path, database: str | None, request: pytest.FixtureRequest) -> StorageConfig:
    """Each database, with files in the data directory."""
    if database is None:
        return request.getfixturevalue("local_config")
    return StorageConfig(data_dir=str(tmp_path / "data"), database=database)


@pytest.fixture
def state(config: StorageConfig, clock: Clock) -> Iterator[State]:
    with State.open(config, clock) as opened:
        yield opened
