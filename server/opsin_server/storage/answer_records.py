"""Answers that clients asked to keep, as rows. One is gone when its time has come, whether its row is there still or
not; of a tenant's too many the oldest leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import ColumnElement, and_, delete, exists, select, tuple_
from sqlalchemy.orm import Session

from opsin_server.errors import NotFound
from opsin_server.storage.database import Database
from opsin_server.storage.records import AnswerKind, NewAnswer, Page, StoredAnswer
from opsin_server.storage.tables import StoredAnswerLabelRow, StoredAnswerRow

WORDS: Mapping[AnswerKind, str] = {"chat.completion": "chat completion", "response": "response"}


class AnswerRecords:
    """Any thread, and on PostgreSQL any process, may use it. What is not there raises NotFound. seconds: for
    which an answer is kept."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    def add(self, tenant: str, new: NewAnswer, most: int) -> None:
        """It is kept when this returns. most: of a tenant's answers, of all kinds."""
        with self._database.hold(f"answers of {tenant}"), self._database.write() as session:
            session.add(
                StoredAnswerRow(
                    tenant=tenant, id=new.id, kind=new.kind, model=new.model, answer=dict(new.answer),
                    said=[dict(item) for item in new.said], created=self._now(),
                )
            )  # fmt: skip
            session.flush()
            _label(session, tenant, new.id, new.metadata)
            _leave(session, tenant, most)

    def get(self, tenant: str, kind: AnswerKind, answer_id: str, seconds: float) -> StoredAnswer:
        with self._database.read() as session:
            row = self._living(session, tenant, kind, answer_id, seconds)
            return _answer(row, _labels(session, tenant, [row.id]))

    def page(
        self,
        tenant: str,
        kind: AnswerKind,
        seconds: float,
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[StoredAnswer]:
        """The `limit` answers that come after one, by the time at which they were made. metadata: pairs that they have
        all of."""
        with self._database.read() as session:
            wanted = [
                *self._own(tenant, kind, seconds),
                *(_has(name, value) for name, value in (metadata or {}).items()),
            ]
            if model is not None:
                wanted.append(StoredAnswerRow.model == model)
            place = tuple_(StoredAnswerRow.created, StoredAnswerRow.id)
            if after is not None:
                last = self._living(session, tenant, kind, after, seconds, "after")
                mark = tuple_(last.created, last.id)
                wanted.append(place < mark if newest_first else place > mark)
            columns = (StoredAnswerRow.created, StoredAnswerRow.id)
            order = [column.desc() if newest_first else column for column in columns]
            rows = session.scalars(select(StoredAnswerRow).where(*wanted).order_by(*order).limit(limit + 1)).all()
            labels = _labels(session, tenant, [row.id for row in rows[:limit]])
            return Page(tuple(_answer(row, labels) for row in rows[:limit]), len(rows) > limit)

    def relabel(
        self, tenant: str, kind: AnswerKind, answer_id: str, metadata: Mapping[str, str], seconds: float
    ) -> StoredAnswer:
        """metadata: in the place of what there was."""
        with self._database.write() as session:
            row = self._living(session, tenant, kind, answer_id, seconds, lock=True)
            own = and_(StoredAnswerLabelRow.tenant == tenant, StoredAnswerLabelRow.answer == answer_id)
            session.execute(delete(StoredAnswerLabelRow).where(own))
            _label(session, tenant, answer_id, metadata)
            return _answer(row, {answer_id: dict(metadata)})

    def delete(self, tenant: str, kind: AnswerKind, answer_id: str, seconds: float) -> None:
        with self._database.write() as session:
            session.delete(self._living(session, tenant, kind, answer_id, seconds))

    def expire(self, seconds: float) -> None:
        """Takes away the rows of all tenants whose time has come."""
        with self._database.write() as session:
            session.execute(delete(StoredAnswerRow).where(StoredAnswerRow.created <= self._now() - seconds))

    # ------------------------------------------------------------------------------------------------- helpers

    def _own(self, tenant: str, kind: AnswerKind, seconds: float) -> list[ColumnElement[bool]]:
        lasts = StoredAnswerRow.created > self._now() - seconds
        return [StoredAnswerRow.tenant == tenant, StoredAnswerRow.kind == kind, lasts]

    def _living(
        self,
        session: Session,
        tenant: str,
        kind: AnswerKind,
        answer_id: str,
        seconds: float,
        param: str = "id",
        *,
        lock: bool = False,
    ) -> StoredAnswerRow:
        wanted = select(StoredAnswerRow).where(*self._own(tenant, kind, seconds), StoredAnswerRow.id == answer_id)
        row = session.scalar(wanted.with_for_update() if lock else wanted)
        if row is None:
            raise NotFound(f"No such {WORDS[kind]} is kept: {answer_id[:100]}", param=param)
        return row


def _has(name: str, value: str) -> ColumnElement[bool]:
    label = StoredAnswerLabelRow
    own = and_(label.tenant == StoredAnswerRow.tenant, label.answer == StoredAnswerRow.id)
    return exists().where(own, label.name == name, label.value == value)


def _label(session: Session, tenant: str, answer_id: str, metadata: Mapping[str, str]) -> None:
    for name, value in metadata.items():
        session.add(StoredAnswerLabelRow(tenant=tenant, answer=answer_id, name=name, value=value))
    session.flush()


def _labels(session: Session, tenant: str, answer_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    label = StoredAnswerLabelRow
    rows = session.scalars(
        select(label).where(label.tenant == tenant, label.answer.in_(answer_ids)).order_by(label.name)
    )
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row.answer, {})[row.name] = row.value
    return found


def _leave(session: Session, tenant: str, most: int) -> None:
    """Of more than `most` the oldest go."""
    row = StoredAnswerRow
    newest = select(row.id).where(row.tenant == tenant).order_by(row.created.desc(), row.id.desc())
    old = session.scalars(newest.offset(most)).all()
    if old:
        session.execute(delete(row).where(row.tenant == tenant, row.id.in_(old)))


def _answer(row: StoredAnswerRow, labels: Mapping[str, Mapping[str, str]]) -> StoredAnswer:
    return StoredAnswer(row.id, row.model, row.answer, tuple(row.said), labels.get(row.id, {}), row.created)
