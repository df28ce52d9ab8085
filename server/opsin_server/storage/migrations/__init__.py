"""The schema's history, one module of `versions` a step. A revision is a number of four digits that grows."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, text

from opsin_server.storage.tables import Base

HERE = Path(__file__).parent
VERSION_TABLE = "opsin_revision"
REVISIONS = tuple(sorted(path.stem.split("_")[0].removeprefix("r") for path in (HERE / "versions").glob("r*.py")))
HEAD = REVISIONS[-1]


def revision(connection: Connection) -> str | None:
    """None: a database in which Opsin has made no tables."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def create(connection: Connection) -> None:
    """Makes what all revisions together would, in a database in which there is nothing of it, within the connection's
    transaction. It takes a tenth of their time; a test keeps the two equal."""
    Base.metadata.create_all(connection, checkfirst=False)  # (a table of such a name would be another program's)
    version = Column("version_num", String(32), nullable=False)
    table = Table(VERSION_TABLE, MetaData(), version, PrimaryKeyConstraint(version, name=f"{VERSION_TABLE}_pkc"))
    table.create(connection)
    connection.execute(insert(table).values(version_num=HEAD))


def upgrade(connection: Connection, target: str = HEAD) -> None:
    """Brings the schema to a revision, in the connection's transaction, which the caller commits."""
    from alembic import command  # 0.2 s, which a start that has nothing to change need not spend
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    command.upgrade(config, target)
