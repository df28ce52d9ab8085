"""The one door: what its options may be together, and what it costs to come in."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from opsin_server.cli import SERVE, STORED
from opsin_server.config import ServerConfig
from opsin_server.errors import ConfigError
from opsin_server.options import build
from opsin_server.storage.state import State
from opsin_server.storage_config import StorageConfig
from support.stored import TENANT, add


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ephemeral": True, "data_dir": "x"}, "--ephemeral keeps no directory, --data-dir x names one"),
        ({"ephemeral": True, "database": "postgresql://h/x"}, "give --blobs as well"),
        ({"ephemeral": True, "blobs": "s3://bucket"}, "give --database as well"),
        ({"data_dir": " "}, "--data-dir is empty"),
        ({"database": ""}, "--database is empty"),
        ({"blobs": ""}, "--blobs is empty"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(given: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        build(ServerConfig, given, SERVE, {"engine": {"model": "m"}})


def test_a_backup_takes_the_servers_options():
    assert {field.name for field in STORED} == {"data-dir", "database", "blobs"}
    assert {field.name for field in STORED} < {field.name for field in SERVE}


def test_what_is_ephemeral_is_gone(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with State.open(StorageConfig(ephemeral=True)) as state:
        assert add(state, "a", b"1").version == 1
        assert state.directory.path.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_does_not_open_lets_go(tmp_path):
    config = StorageConfig(data_dir=str(tmp_path / "data"), database="mysql://h/x")
    for _ in range(2):
        with pytest.raises(ConfigError, match="--database takes"):
            State.open(config)
    with State.open(msgspec.structs.replace(config, database=None)) as state:
        assert state.adapters.all(TENANT) == []


NEW_STATE = (
    "from opsin_server.storage.state import State; from opsin_server.storage_config import StorageConfig; "
    "State.open(StorageConfig(ephemeral=True)).close()"
)


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import opsin_server.cli", {"sqlalchemy", "alembic", "fsspec", "s3fs"}),
        ("import opsin_server.api.process", {"sqlalchemy", "fastapi", "torch"}),  # (the engine is started first)
        ("import opsin_server.storage.state", {"alembic", "fsspec", "s3fs", "psycopg", "torch"}),
        (NEW_STATE, {"alembic", "fsspec", "s3fs", "psycopg", "torch"}),
    ],
)
def test_what_is_not_needed_is_not_imported(program: str, absent: set[str]):
    program = f"{program}; import sys; print(*{absent!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
