"""The schema's history, one module of `versions` a step. A revision is a number of four digits that grows."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

HERE = Path(__file__).parent
VERSION_TABLE = "opsin_revision"
REVISIONS = tuple(sorted(path.stem.split("_")[0].removeprefix("r") for path in (HERE / "versions").glob("r*.py")))
HEAD = REVISIONS[-1]


def revision(connection: Connection) -> str | None:
    """None: a database in which Opsin has made no tables."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def upgrade(connection: Connection, target: str = HEAD) -> None:
    """Brings the schema to a revision, in the connection's transaction, which the caller commits."""
    from alembic import command  # 0.2 s, which a start without a migration need not spend
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    command.upgrade(config, target)
