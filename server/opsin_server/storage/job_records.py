"""Fine-tuning jobs, as rows: what they are, what happened to them, and their checkpoints. A status changes only as
`MOVES` allows, whoever asks at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import and_, func, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.blobs import claim
from opsin_server.storage.database import Database
from opsin_server.storage.file_records import new_id
from opsin_server.storage.records import Job, JobCheckpoint, JobEvent, JobStatus, NewEvent, NewJob, Page
from opsin_server.storage.tables import JobBlobRow, JobCheckpointRow, JobEventRow, JobRow
from opsin_server.storage.webhook_records import announce

OfJob = TypeVar("OfJob", JobEventRow, JobCheckpointRow)

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})
MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled", "paused"}),
    "queued": frozenset({"running", "failed", "cancelled", "paused"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "paused", "queued"}),
    "paused": frozenset({"validating_files", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
ASKED: Mapping[JobStatus, str] = {
    "validating_files": "resumed", "queued": "queued", "running": "started", "paused": "paused",
    "succeeded": "completed", "failed": "ended", "cancelled": "cancelled",
}  # fmt: skip
SAME_SECONDS = 60.0  # within which an equal request is taken for the same one, sent again


class JobRecords:
    """Any thread, and on PostgreSQL any process, may use it. A job that is not there raises NotFound."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    # ------------------------------------------------------------------------------------------------- reading

    def get(self, tenant: str, job_id: str) -> Job:
        with self._database.read() as session:
            return _job(_row(session, tenant, job_id))

    def page(self, tenant: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None) -> Page[Job]:
        """The newest first. metadata: pairs that a job must have been given; None: those that were given none."""
        with self._database.read() as session:
            wanted = [JobRow.tenant == tenant]
            given = JobRow.asked["metadata"]
            if metadata is None:
                wanted.append(given.as_string() == "{}")
            else:
                wanted += [given[name].as_string() == value for name, value in metadata.items()]
            if after is not None:
                last = session.get(JobRow, (tenant, after))
                if last is None:
                    raise NotFound(f"there is no job {after[:100]}", param="after", code="fine_tune_not_found")
                wanted.append(tuple_(JobRow.created, JobRow.id) < tuple_(last.created, last.id))
            order = JobRow.created.desc(), JobRow.id.desc()
            rows = session.scalars(select(JobRow).where(*wanted).order_by(*order).limit(limit + 1)).all()
            return Page(tuple(_job(row) for row in rows[:limit]), len(rows) > limit)

    def events(self, tenant: str, job_id: str, *, after: str | None = None, limit: int | None = None) -> Page[JobEvent]:
        """The newest first."""
        rows, more = self._newest(JobEventRow, JobEventRow.number, "event", tenant, job_id, after, limit)
        return Page(tuple(map(_event, rows)), more)

    def events_since(self, tenant: str, job_id: str, number: int) -> list[tuple[int, JobEvent]]:
        """Those behind the event of a number, with theirs, the oldest first. 0: all."""
        with self._database.read() as session:
            _row(session, tenant, job_id)
            own = and_(JobEventRow.tenant == tenant, JobEventRow.job == job_id, JobEventRow.number > number)
            rows = session.scalars(select(JobEventRow).where(own).order_by(JobEventRow.number)).all()
            return [(row.number, _event(row)) for row in rows]

    def checkpoints(
        self, tenant: str, job_id: str, *, after: str | None = None, limit: int | None = None
    ) -> Page[JobCheckpoint]:
        """The newest first."""
        rows, more = self._newest(JobCheckpointRow, JobCheckpointRow.step, "checkpoint", tenant, job_id, after, limit)
        return Page(tuple(map(_checkpoint, rows)), more)

    def _newest(
        self,
        table: type[OfJob],
        order: InstrumentedAttribute[int],
        what: str,
        tenant: str,
        job_id: str,
        after: str | None,
        limit: int | None,
    ) -> tuple[Sequence[OfJob], bool]:
        """A job's rows of a table that come after one, and whether there are more than `limit`."""
        with self._database.read() as session:
            _row(session, tenant, job_id)
            wanted = [table.tenant == tenant, table.job == job_id]
            if after is not None:
                last = session.scalar(select(order).where(*wanted, table.id == after))
                if last is None:
                    raise NotFound(f"the job {job_id} has no {what} {after[:100]}", param="after")
                wanted.append(order < last)
            found = select(table).where(*wanted).order_by(order.desc())
            rows = session.scalars(found if limit is None else found.limit(limit + 1)).all()
            return rows[:limit], limit is not None and len(rows) > limit

    def unfinished(self, owner: str) -> list[tuple[str, Job]]:
        """With their tenants: what a server that starts goes on with, those that ran first, of each the oldest."""
        with self._database.read() as session:
            going = JobRow.status.in_(("validating_files", "queued", "running"))
            rows = session.scalars(select(JobRow).where(JobRow.owner == owner, going).order_by(JobRow.created)).all()
            going_on = sorted(rows, key=lambda row: row.status != "running")  # (it keeps its order)
            return [(row.tenant, _job(row)) for row in going_on]

    # ------------------------------------------------------------------------------------------------ changing

    def create(self, tenant: str, new: NewJob) -> tuple[Job, bool]:
        """And whether it is new: one with the same key, or with neither key and the same request within a minute, is
        the same. NotFound for a blob that is not the tenant's. BadRequest for a key that came with another request."""
        now = self._now()
        with self._database.hold(f"jobs of {tenant}"), self._database.write() as session:
            if (known := self._known(session, tenant, new, now)) is not None:
                return _job(known), False
            claim(session, tenant, new.blobs)
            row = JobRow(
                tenant=tenant,
                id=new_id("ftjob-"),
                owner=new.owner,
                status="validating_files",
                asked=dict(new.asked),
                request=new.request,
                key=new.key,
                created=now,
            )
            session.add(row)
            session.flush()
            session.add_all(JobBlobRow(tenant=tenant, job=row.id, digest=digest) for digest in sorted(set(new.blobs)))
            _add_events(session, row, [NewEvent(f"Created fine-tuning job: {row.id}"), *new.events], now)
            return _job(row), True

    def move(self, tenant: str, job_id: str, status: JobStatus, events: Sequence[NewEvent] = (), **changes: Any) -> Job:
        """To another status, with what else changes then; an end is announced to webhooks with it. BadRequest where
        the one that it has does not allow that."""
        now = self._now()
        with self._database.write() as session:
            row = _row(session, tenant, job_id, lock=True)
            if status not in MOVES[row.status]:  # type: ignore[index]
                raise BadRequest(
                    f"the job {job_id} is {row.status}: it cannot be {ASKED[status]}", code="invalid_state"
                )
            row.status = status
            for name, value in changes.items():
                setattr(row, name, value)
            if status != "running":
                row.estimated_finish = None
            if status in ENDED:
                row.finished = now
                announce(session, tenant, f"fine_tuning.job.{status}", {"id": job_id}, now)
            _add_events(session, row, events, now)
            return _job(row)

    def note(
        self, tenant: str, job_id: str, events: Sequence[NewEvent], *, estimated_finish: float | None = None
    ) -> bool:
        """Adds events to a job that has not ended; whether it has not. (One that was paused still makes its step.)"""
        with self._database.write() as session:
            row = _row(session, tenant, job_id, lock=True)
            if row.status in ENDED:
                return False
            if estimated_finish is not None and row.status == "running":
                row.estimated_finish = estimated_finish
            _add_events(session, row, events, self._now())
            return True

    def add_checkpoint(
        self, tenant: str, job_id: str, step: int, model: str, metrics: Mapping[str, Any], events: Sequence[NewEvent]
    ) -> None:
        """One that is there already stays as it is."""
        now = self._now()
        with self._database.write() as session:
            row = _row(session, tenant, job_id, lock=True)
            if session.get(JobCheckpointRow, (tenant, job_id, step)) is not None:
                return
            session.add(
                JobCheckpointRow(
                    tenant=tenant, job=job_id, step=step, id=new_id("ftckpt_"), model=model, metrics=dict(metrics),
                    created=now,
                )
            )  # fmt: skip
            _add_events(session, row, events, now)

    def remove_checkpoint(self, tenant: str, job_id: str, step: int) -> None:
        with self._database.write() as session:
            if (row := session.get(JobCheckpointRow, (tenant, job_id, step))) is not None:
                session.delete(row)

    def _known(self, session: Session, tenant: str, new: NewJob, now: float) -> JobRow | None:
        own = JobRow.tenant == tenant
        if new.key is not None:
            row = session.scalar(select(JobRow).where(own, JobRow.key == new.key))
            if row is not None and row.request != new.request:
                raise BadRequest("this Idempotency-Key came with another request before", code="idempotency_key_reused")
            return row
        young = and_(JobRow.request == new.request, JobRow.key.is_(None), JobRow.created > now - SAME_SECONDS)
        ended_badly = or_(JobRow.status == "failed", JobRow.status == "cancelled")
        return session.scalar(select(JobRow).where(own, young, ~ended_badly).order_by(JobRow.created.desc()).limit(1))


def _row(session: Session, tenant: str, job_id: str, *, lock: bool = False) -> JobRow:
    row = session.get(JobRow, (tenant, job_id), with_for_update=lock or None)
    if row is None:
        raise NotFound(
            f"Could not find fine tune: {job_id[:100]}", param="fine_tuning_job_id", code="fine_tune_not_found"
        )
    return row


def _add_events(session: Session, row: JobRow, events: Sequence[NewEvent], now: float) -> None:
    if not events:
        return
    own = and_(JobEventRow.tenant == row.tenant, JobEventRow.job == row.id)
    last = session.scalar(select(func.max(JobEventRow.number)).where(own)) or 0
    session.add_all(
        JobEventRow(
            tenant=row.tenant,
            job=row.id,
            number=number,
            id=new_id("ftevent-"),
            level=event.level,
            kind="metrics" if event.data is not None and event.metrics else "message",
            message=event.message,
            data=None if event.data is None else dict(event.data),
            created=now,
        )
        for number, event in enumerate(events, last + 1)
    )


def _job(row: JobRow) -> Job:
    return Job(
        id=row.id,
        status=row.status,  # type: ignore[arg-type]
        asked=row.asked,
        resolved=row.resolved,
        error=row.error,
        trained_tokens=row.trained_tokens,
        model=row.model,
        result_file=row.result_file,
        created=row.created,
        finished=row.finished,
        estimated_finish=row.estimated_finish,
    )


def _event(row: JobEventRow) -> JobEvent:
    return JobEvent(row.id, row.level, row.kind, row.message, row.data, row.created)  # type: ignore[arg-type]


def _checkpoint(row: JobCheckpointRow) -> JobCheckpoint:
    return JobCheckpoint(row.id, row.step, row.model, row.metrics, row.created)
