"""The schema, what SQLite is told, and every database that is refused: in one sentence, and left as it was."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text

from opsin_server.errors import ConfigError, StorageFailed
from opsin_server.storage.migrations import HEAD, HERE, VERSION_TABLE, revision, upgrade
from opsin_server.storage.postgres import open_postgres
from opsin_server.storage.state import State
from opsin_server.storage.tables import Base, StoreRow
from opsin_server.storage_config import StorageConfig
from support.postgres import Postgres
from support.served import free_port
from support.stored import TENANT, add, rows


def refusal(config: StorageConfig) -> str:
    with pytest.raises(ConfigError) as refused:
        State.open(config).close()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_migrations_make_what_the_tables_say(state: State):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with state.database.transaction() as connection:
        new = described(connection)
        Base.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        upgrade(connection)
        assert described(connection) == new
        assert revision(connection) == HEAD
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def described(connection: Connection) -> dict[str, Any]:
    """All that makes up the tables, by their names."""
    seen = inspect(connection)
    parts = {
        "columns": seen.get_multi_columns(),
        "keys": seen.get_multi_pk_constraint(),
        "references": seen.get_multi_foreign_keys(),
        "indexes": seen.get_multi_indexes(),
        "unique": seen.get_multi_unique_constraints(),
        "checks": seen.get_multi_check_constraints(),
    }
    assert len(parts["columns"]) == len(Base.metadata.tables) + 1
    return {what: {table: repr(made) for (_, table), made in found.items()} for what, found in parts.items()}


def test_another_programs_table_is_not_taken_over(postgres: Postgres, tmp_path: Path):
    url = postgres.url()
    name = url.rpartition("/")[2]
    postgres.execute("CREATE TABLE aliases (alias text)", name)
    config = StorageConfig(data_dir=str(tmp_path / "data"), database=url)
    assert "aliases" in refusal(config)
    postgres.execute("DROP TABLE aliases", name)  # and nothing else was made
    State.open(config).close()


def test_the_newest_revision_is_the_end_of_the_history():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(HERE))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_every_key_begins_with_the_tenant():
    for table in Base.metadata.sorted_tables:
        if table.name != StoreRow.__tablename__:
            assert next(iter(table.primary_key.columns)).name == "tenant", table.name
            assert not table.columns["tenant"].nullable


def test_a_commit_of_sqlites_is_on_the_disk(local_config: StorageConfig):
    with State.open(local_config) as state, state.database.read() as session:
        found = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_what_raises_is_undone(state: State):
    add(state, "a", b"1")
    before = rows(state)

    def change_and_fail() -> None:
        with state.database.write() as session:
            session.execute(text("UPDATE adapters SET pinned = true"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert rows(state) == before


def test_what_the_database_cannot_do_is_said_without_its_reason(state: State, caplog: pytest.LogCaptureFixture):
    with pytest.raises(StorageFailed) as failed, state.database.write() as session:
        session.execute(text("SELECT secret FROM nowhere"))
    assert "nowhere" not in str(failed.value)
    assert "nowhere" in caplog.text
    add(state, "a", b"1")


def test_two_servers_may_begin_with_one_new_database(postgres: Postgres, tmp_path: Path):
    url, opened, failures = postgres.url(), [], []

    def begin(number: int) -> None:
        config = StorageConfig(data_dir=str(tmp_path / str(number)), database=url)
        try:
            with State.open(config) as state:
                add(state, f"adapter-{number}", b"1")
                opened.append(number)
        except ConfigError as error:
            failures.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(opened), failures) == ([0, 1, 2, 3], [])
    with State.open(StorageConfig(data_dir=str(tmp_path / "0"), database=url)) as state:
        assert [adapter.name for adapter in state.adapters.all(TENANT)] == [f"adapter-{number}" for number in range(4)]


def test_a_connection_that_was_ended_is_made_anew(postgres: Postgres, tmp_path: Path):
    url = postgres.url()
    with State.open(StorageConfig(data_dir=str(tmp_path / "data"), database=url)) as state:
        add(state, "a", b"1")
        name = url.rpartition("/")[2]
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        assert [adapter.name for adapter in state.adapters.all(TENANT)] == ["a"]


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_newer_schema_is_refused_and_left_alone(config: StorageConfig):
    with State.open(config) as state:
        add(state, "a", b"1")
        with state.database.transaction() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9876'"))
        before = rows(state)
    said = refusal(config)
    assert "9876" in said
    assert HEAD in said
    with pytest.raises(ConfigError, match="9876"):
        State.open(config)
    if config.database is not None:
        left = open_postgres(config.database, migrate=False)
        with left.transaction() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'"))
        left.close()
        with State.open(config) as state:
            assert rows(state) == before


def _no_database(path: Path) -> str:
    path.write_text("a letter to a friend")
    return "is no SQLite database"


def _nothing(path: Path) -> str:
    path.write_bytes(b"")
    return "is no SQLite database"


def _cut_off(path: Path) -> str:
    path.write_bytes(path.read_bytes()[: 3 * 4096])
    return ""


def _other_bytes(path: Path) -> str:
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    return ""


def _another_programs(path: Path) -> str:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    return "none of Opsin's"


def _newer(path: Path) -> str:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    connection.commit()
    connection.close()
    return "schema 0099"


@pytest.mark.parametrize("spoil", [_no_database, _nothing, _cut_off, _other_bytes, _another_programs, _newer])
def test_a_file_that_is_no_sound_database_is_left_as_it_is(local_config: StorageConfig, spoil: Callable[[Path], str]):
    with State.open(local_config) as state:
        for number in range(4):
            add(state, f"adapter-{number}", b"1")
        path = state.directory.database
    words = spoil(path)
    before = path.read_bytes()
    said = refusal(local_config)
    assert str(path) in said
    assert words in said
    assert path.read_bytes() == before
    with pytest.raises(ConfigError):
        State.open(local_config)
    assert path.read_bytes() == before


def test_a_start_that_was_killed_before_the_database_was_whole_is_none(tmp_path: Path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "tmp" / "opsin.db").write_bytes(b"half of it")
    with State.open(StorageConfig(data_dir=str(tmp_path))) as state:
        add(state, "a", b"1")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "postgresql://me:hunter2@127.0.0.1:{port}/x?sslmode=disable",
            "postgresql://127.0.0.1:{port}/x cannot be used",
        ),
        ("postgresql://me@127.0.0.1:{port}/x?password=hunter2", "postgresql://127.0.0.1:{port}/x cannot be used"),
        ("postgresql://me:hunter2@127.0.0.1:port/x", "--database is no URL"),
        ("hunter2", "--database is no URL"),
        ("mysql://me:hunter2@host/x", "--database takes postgresql://..., not mysql"),
        ("sqlite:///hunter2.db", "--database takes postgresql://..., not sqlite"),
    ],
)
def test_a_database_that_cannot_be_is_one_sentence_without_a_password(
    tmp_path: Path, url: str, words: str, caplog: pytest.LogCaptureFixture
):
    port = free_port()
    said = refusal(StorageConfig(data_dir=str(tmp_path / "data"), database=url.format(port=port)))
    assert words.format(port=port) in said
    assert "hunter2" not in said + caplog.text


def test_a_missing_driver_is_named(local_config: StorageConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    config = StorageConfig(data_dir=local_config.data_dir, database="postgresql://me@127.0.0.1/x")
    assert "pip install 'opsin[postgres]'" in refusal(config)


def test_a_wrong_password_is_not_repeated(postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    url = postgres.url().replace("tester@", "stranger:hunter2@")
    said = refusal(StorageConfig(data_dir=str(tmp_path / "data"), database=url))
    assert "stranger" in said
    assert "hunter2" not in said + caplog.text
