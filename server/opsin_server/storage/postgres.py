"""PostgreSQL, by a URL. Several processes on several machines may share one database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from opsin_server.errors import ConfigError
from opsin_server.storage.database import Database

CONNECT_SECONDS = 10


def open_postgres(url: str, *, migrate: bool = True) -> Database:
    """Raises ConfigError for a URL, a driver, a server or a schema with which it cannot be. No message has a password,
    and none has the URL where it is not understood."""
    parsed = _parsed(url)
    name = (
        f"postgresql://{parsed.host or 'localhost'}{f':{parsed.port}' if parsed.port else ''}/{parsed.database or ''}"
    )
    try:
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "opsin"},
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except ImportError:
        raise ConfigError("--database postgresql://... needs a driver: pip install 'opsin[postgres]'") from None
    # A connection of its own for each lock: holders that wait for a connection of the pool would block each other.
    locks = create_engine(engine.url, connect_args={"connect_timeout": CONNECT_SECONDS}, poolclass=NullPool)

    @contextmanager
    def hold(held: str) -> Iterator[None]:
        key = int.from_bytes(hashlib.sha256(f"opsin {held}".encode()).digest()[:8], "big", signed=True)
        with locks.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield

    opened = Database(engine, name, hold)
    try:
        if migrate:
            opened.migrate()
    except BaseException:
        opened.close()
        raise
    return opened


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError("--database is no URL: write postgresql://USER@HOST:PORT/NAME") from None
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ConfigError(
            f"--database takes postgresql://..., not {parsed.drivername}: without it the data directory has a file"
        )
    return parsed
