"""Adapters and their versions, as rows. What a version's files hold is checked by who adds it.

Numbers of versions are never used again, not even after the adapter is deleted and made anew: its row stays as a
tombstone with the next number. What was current is kept as a stack: `promote` puts a version on it, `rollback` takes
the last one off, and `delete_version` takes its own out. So two rollbacks go back twice, and there is no way forward
again but another `promote`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import pairwise

from sqlalchemy import and_, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.blobs import claim
from opsin_server.storage.database import Database
from opsin_server.storage.records import Adapter, AdapterVersion, NewVersion, SourceFile, checked_name
from opsin_server.storage.tables import (
    AdapterRow,
    AdapterVersionBlobRow,
    AdapterVersionRow,
    AliasRow,
    PromotionRow,
)


class AdapterRecords:
    """Any thread, and on PostgreSQL any process, may use it: those who change one adapter take turns. A name or a
    version that is not there raises NotFound, what must not be done BadRequest."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    # ------------------------------------------------------------------------------------------------ reading

    def get(self, tenant: str, name: str) -> Adapter:
        with self._database.read() as session:
            return _adapter(_living(session, tenant, name))

    def all(self, tenant: str) -> list[Adapter]:
        """By name."""
        with self._database.read() as session:
            own = and_(AdapterRow.tenant == tenant, AdapterRow.deleted.is_(None))
            return [_adapter(row) for row in session.scalars(select(AdapterRow).where(own).order_by(AdapterRow.name))]

    def versions(self, tenant: str, name: str) -> list[AdapterVersion]:
        """By number."""
        with self._database.read() as session:
            _living(session, tenant, name)
            own = and_(AdapterVersionRow.tenant == tenant, AdapterVersionRow.adapter == name)
            rows = session.scalars(select(AdapterVersionRow).where(own).order_by(AdapterVersionRow.version))
            return [_version(row) for row in rows]

    def all_versions(self, tenant: str) -> list[AdapterVersion]:
        """Of all adapters, by name and number."""
        with self._database.read() as session:
            own = AdapterVersionRow.tenant == tenant
            order = AdapterVersionRow.adapter, AdapterVersionRow.version
            return [_version(row) for row in session.scalars(select(AdapterVersionRow).where(own).order_by(*order))]

    def version(self, tenant: str, name: str, version: int) -> AdapterVersion:
        with self._database.read() as session:
            return _version(_version_row(session, tenant, name, version))

    def revision(self, tenant: str) -> tuple[object, ...]:
        """Another one after each change of names, whoever made it."""
        adapters = select(func.count(), func.max(AdapterRow.updated), func.max(AdapterRow.deleted))
        versions = select(func.count(), func.max(AdapterVersionRow.created))
        aliases = select(func.count(), func.max(AliasRow.updated))
        with self._database.read() as session:
            return (
                *session.execute(adapters.where(AdapterRow.tenant == tenant)).one(),
                *session.execute(versions.where(AdapterVersionRow.tenant == tenant)).one(),
                *session.execute(aliases.where(AliasRow.tenant == tenant)).one(),
            )

    # ----------------------------------------------------------------------------------------------- changing

    def add_version(self, tenant: str, name: str, new: NewVersion, *, promote: bool) -> AdapterVersion:
        """Makes the adapter where there is none. NotFound for a file that is no blob of the tenant's."""
        checked_name(tenant, "the tenant")
        checked_name(name, "the adapter's name", "name")
        digests = {new.digest, *(file.sha256 for file in new.source.values())}
        now = self._now()
        with self._database.write() as session:
            adapter = self._made(session, tenant, name, now)
            claim(session, tenant, digests)
            number, adapter.next_version = adapter.next_version, adapter.next_version + 1
            own = {"tenant": tenant, "adapter": name, "version": number}
            row = AdapterVersionRow(
                **own,
                digest=new.digest,
                size=new.size,
                rank=new.rank,
                targets=list(new.targets),
                base_shape=new.base_shape,
                base_digest=new.base_digest,
                pixel_budget=None if new.pixel_budget is None else dict(new.pixel_budget),
                source={name: asdict(file) for name, file in new.source.items()},
                warnings=list(new.warnings),
                origin=new.origin,
                created=now,
            )
            session.add(row)
            session.flush()
            session.add_all(AdapterVersionBlobRow(**own, digest=digest) for digest in sorted(digests))
            adapter.updated = now
            if promote:
                _promote(session, adapter, number, now)
            return _version(row)

    def promote(self, tenant: str, name: str, version: int) -> Adapter:
        """Makes a version the current one."""
        now = self._now()
        with self._database.write() as session:
            adapter = _living(session, tenant, name, lock=True)
            _version_row(session, tenant, name, version)
            _promote(session, adapter, version, now)
            adapter.updated = now
            return _adapter(adapter)

    def rollback(self, tenant: str, name: str) -> Adapter:
        """Makes that version current which was before the current one. BadRequest where there was none."""
        with self._database.write() as session:
            adapter = _living(session, tenant, name, lock=True)
            stack = _promotions(session, adapter)
            if len(stack) < 2:
                raise BadRequest(f"no version of the adapter {name} was current before this one")
            session.delete(stack[-1])
            adapter.current_version = stack[-2].version
            adapter.updated = self._now()
            return _adapter(adapter)

    def pin(self, tenant: str, name: str, pinned: bool) -> Adapter:
        with self._database.write() as session:
            adapter = _living(session, tenant, name, lock=True)
            adapter.pinned, adapter.updated = pinned, self._now()
            return _adapter(adapter)

    def touch(self, tenant: str, names: Iterable[str], at: float) -> None:
        """Remembers when adapters were last used. Names that are not there are passed over."""
        with self._database.write() as session:
            wanted = and_(AdapterRow.tenant == tenant, AdapterRow.name.in_(set(names)), AdapterRow.deleted.is_(None))
            for row in session.scalars(select(AdapterRow).where(wanted).order_by(AdapterRow.name).with_for_update()):
                row.last_used = at if row.last_used is None else max(row.last_used, at)

    def delete_version(self, tenant: str, name: str, version: int) -> None:
        """BadRequest for the current one, and for one that an alias names."""
        with self._database.write() as session:
            adapter = _living(session, tenant, name, lock=True)
            row = _version_row(session, tenant, name, version)
            if version == adapter.current_version:
                raise BadRequest(f"version {version} of the adapter {name} is the current one: promote another first")
            _refuse_aliased(session, tenant, name, version)
            session.delete(row)
            session.flush()
            _close_up(session, adapter)
            adapter.updated = self._now()

    def delete_adapter(self, tenant: str, name: str) -> None:
        """With all versions. BadRequest for one that an alias names."""
        with self._database.write() as session:
            adapter = _living(session, tenant, name, lock=True)
            _refuse_aliased(session, tenant, name, None)
            own = and_(AdapterVersionRow.tenant == tenant, AdapterVersionRow.adapter == name)
            session.execute(delete(AdapterVersionRow).where(own))
            adapter.deleted = self._now()
            adapter.current_version, adapter.pinned, adapter.last_used = None, False, None

    def _made(self, session: Session, tenant: str, name: str, now: float) -> AdapterRow:
        """The adapter's row, locked: the one that lives, a tombstone raised, or a new one."""
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        fresh = {"tenant": tenant, "name": name, "next_version": 1, "pinned": False, "created": now, "updated": now}
        session.execute(dialect.insert(AdapterRow).values(**fresh).on_conflict_do_nothing())
        row = session.get_one(AdapterRow, (tenant, name), with_for_update=True)
        if row.deleted is not None:
            row.deleted, row.created = None, now
        return row


def _living(session: Session, tenant: str, name: str, *, lock: bool = False) -> AdapterRow:
    row = session.get(AdapterRow, (tenant, name), with_for_update=lock or None)
    if row is None or row.deleted is not None:
        raise NotFound(f"there is no adapter {name}", param="name", code="adapter_not_found")
    return row


def _version_row(session: Session, tenant: str, name: str, version: int) -> AdapterVersionRow:
    row = session.get(AdapterVersionRow, (tenant, name, version))
    if row is None:
        raise NotFound(f"the adapter {name} has no version {version}", param="version", code="adapter_not_found")
    return row


def _promotions(session: Session, adapter: AdapterRow) -> list[PromotionRow]:
    own = and_(PromotionRow.tenant == adapter.tenant, PromotionRow.adapter == adapter.name)
    return list(session.scalars(select(PromotionRow).where(own).order_by(PromotionRow.place)))


def _promote(session: Session, adapter: AdapterRow, version: int, now: float) -> None:
    """What is current already stays so, and a rollback after it goes back to what was before."""
    if adapter.current_version == version:
        return
    stack = _promotions(session, adapter)
    place = stack[-1].place + 1 if stack else 0
    own = {"tenant": adapter.tenant, "adapter": adapter.name}
    session.add(PromotionRow(**own, place=place, version=version, created=now))
    adapter.current_version = version


def _close_up(session: Session, adapter: AdapterRow) -> None:
    """Where a version was taken out of the stack, one must not stand upon itself: a rollback would change nothing."""
    stack = _promotions(session, adapter)
    for below, above in pairwise(stack):
        if below.version == above.version:
            session.delete(below)


def _refuse_aliased(session: Session, tenant: str, name: str, version: int | None) -> None:
    """version None: any."""
    own = and_(AliasRow.tenant == tenant, AliasRow.adapter == name)
    if version is not None:
        own = and_(own, AliasRow.version == version)
    if (alias := session.scalar(select(func.min(AliasRow.alias)).where(own))) is not None:
        what = f"the adapter {name}" if version is None else f"version {version} of the adapter {name}"
        raise BadRequest(f"the alias {alias} names {what}: delete or move it first")


def _adapter(row: AdapterRow) -> Adapter:
    return Adapter(row.name, row.current_version, row.pinned, row.created, row.updated, row.last_used)


def _version(row: AdapterVersionRow) -> AdapterVersion:
    facts = NewVersion(
        digest=row.digest,
        size=row.size,
        rank=row.rank,
        targets=tuple(row.targets),
        origin=row.origin,
        source={name: SourceFile(**file) for name, file in row.source.items()},
        base_shape=row.base_shape,
        base_digest=row.base_digest,
        pixel_budget=row.pixel_budget,
        warnings=tuple(row.warnings),
    )
    return AdapterVersion(row.adapter, row.version, facts, row.created)
