"""Aliases: names for the model or for an adapter, which may come to mean another one from one moment to the next."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import delete, select

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.database import Database
from opsin_server.storage.records import Alias, checked_name
from opsin_server.storage.tables import AdapterRow, AdapterVersionRow, AliasRow


class AliasRecords:
    """Any thread, and on PostgreSQL any process, may use it."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    def all(self, tenant: str) -> list[Alias]:
        """By name."""
        with self._database.read() as session:
            rows = session.scalars(select(AliasRow).where(AliasRow.tenant == tenant).order_by(AliasRow.alias))
            return [_alias(row) for row in rows]

    def set(self, tenant: str, alias: str, adapter: str | None, version: int | None = None) -> Alias:
        """adapter None: the model itself. version None: the adapter's current one, whichever that is. Raises NotFound
        for what is not there."""
        checked_name(tenant, "the tenant")
        checked_name(alias, "the alias", "alias")
        if adapter is None and version is not None:
            raise BadRequest(f"the alias {alias} names version {version}, but no adapter")
        now = self._now()
        with self._database.write() as session:
            if adapter is not None:
                # Locked: who deletes the adapter, or the version, waits and then sees the alias.
                row = session.get(AdapterRow, (tenant, adapter), with_for_update=True)
                if row is None or row.deleted is not None:
                    raise NotFound(f"there is no adapter {adapter}", code="adapter_not_found")
                if version is not None and session.get(AdapterVersionRow, (tenant, adapter, version)) is None:
                    raise NotFound(f"the adapter {adapter} has no version {version}", code="adapter_not_found")
            kind = "base" if adapter is None else "adapter"
            found = session.get(AliasRow, (tenant, alias), with_for_update=True)
            if found is None:
                found = AliasRow(tenant=tenant, alias=alias, created=now)
                session.add(found)
            found.kind, found.adapter, found.version, found.updated = kind, adapter, version, now
            session.flush()
            return _alias(found)

    def delete(self, tenant: str, alias: str) -> None:
        with self._database.write() as session:
            own = delete(AliasRow).where(AliasRow.tenant == tenant, AliasRow.alias == alias)
            if session.execute(own.returning(AliasRow.alias)).first() is None:
                raise NotFound(f"there is no alias {alias}", param="alias", code="alias_not_found")


def _alias(row: AliasRow) -> Alias:
    return Alias(
        row.alias, "base" if row.adapter is None else "adapter", row.adapter, row.version, row.created, row.updated
    )
