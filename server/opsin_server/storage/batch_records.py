"""Batches of requests, as rows, and what became of their lines until there are files of it. A status changes only as
`MOVES` allows, whoever asks at the same time; a line has one result, whoever writes it twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, insert, select, tuple_
from sqlalchemy.orm import Session

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.blobs import claim
from opsin_server.storage.database import Database
from opsin_server.storage.file_records import add_file, new_id
from opsin_server.storage.records import Batch, BatchFault, BatchResult, BatchStatus, NewBatch, NewFile, Page
from opsin_server.storage.tables import BatchResultRow, BatchRow
from opsin_server.storage.webhook_records import announce

MOST = 100  # of a tenant that go on: each may have results of gigabytes
ENDED: frozenset[BatchStatus] = frozenset({"completed", "failed", "expired", "cancelled"})
MOVES: Mapping[BatchStatus, frozenset[BatchStatus]] = {
    "validating": frozenset({"in_progress", "failed", "expired", "cancelling"}),
    "in_progress": frozenset({"finalizing", "failed", "expired", "cancelling"}),
    "finalizing": frozenset({"completed", "failed"}),
    "cancelling": frozenset({"cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
}


class BatchRecords:
    """Any thread, and on PostgreSQL any process, may use it. A batch that is not there raises NotFound."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self.now = database, now

    # ------------------------------------------------------------------------------------------------- reading

    def get(self, tenant: str, batch_id: str) -> Batch:
        with self._database.read() as session:
            return _batch(_row(session, tenant, batch_id))

    def page(self, tenant: str, *, after: str | None, limit: int) -> Page[Batch]:
        """The newest first."""
        with self._database.read() as session:
            wanted = [BatchRow.tenant == tenant]
            if after is not None:
                last = _row(session, tenant, after, param="after")
                wanted.append(tuple_(BatchRow.created, BatchRow.id) < tuple_(last.created, last.id))
            order = BatchRow.created.desc(), BatchRow.id.desc()
            rows = session.scalars(select(BatchRow).where(*wanted).order_by(*order).limit(limit + 1)).all()
            return Page(tuple(map(_batch, rows[:limit])), len(rows) > limit)

    def unfinished(self, owner: str) -> list[Batch]:
        """Of all tenants, what a server that starts goes on with, the oldest first."""
        with self._database.read() as session:
            going = BatchRow.owner == owner, BatchRow.status.not_in(ENDED)
            return list(map(_batch, session.scalars(select(BatchRow).where(*going).order_by(BatchRow.created))))

    def done_lines(self, batch: Batch) -> set[int]:
        """Those that have a result."""
        with self._database.read() as session:
            return set(session.scalars(select(BatchResultRow.line).where(*_own(batch.tenant, batch.id))))

    def results(self, batch: Batch, *, failed: bool, after: int, limit: int) -> list[BatchResult]:
        """By their lines, those behind a line. (Without their tokens.)"""
        with self._database.read() as session:
            wanted = *_own(batch.tenant, batch.id), BatchResultRow.failed == failed, BatchResultRow.line > after
            rows = session.scalars(select(BatchResultRow).where(*wanted).order_by(BatchResultRow.line).limit(limit))
            return [BatchResult(row.line, row.data, row.failed) for row in rows]

    # ------------------------------------------------------------------------------------------------ changing

    def create(self, tenant: str, new: NewBatch) -> Batch:
        """NotFound for a blob that is not the tenant's."""
        now = self.now()
        with self._database.hold(f"batches of {tenant}"), self._database.write() as session:
            going = select(func.count()).where(BatchRow.tenant == tenant, BatchRow.status.not_in(ENDED))
            if (session.scalar(going) or 0) >= MOST:
                raise BadRequest(
                    f"there are {MOST} batches that go on, and no more are taken: wait for one, or cancel it"
                )
            claim(session, tenant, [new.digest])
            row = BatchRow(
                tenant=tenant, id=new_id("batch_"), owner=new.owner, status="validating", endpoint=new.endpoint,
                input_file=new.input_file, digest=new.digest, pairs=dict(new.metadata), output_lasts=new.output_lasts,
                total=0, completed=0, failed=0, input_tokens=0, cached_tokens=0, output_tokens=0, errors=[], times={},
                created=now, expires=now + new.seconds,
            )  # fmt: skip
            session.add(row)
            session.flush()
            return _batch(row)

    def move(
        self,
        batch: Batch,
        status: BatchStatus,
        *,
        output: NewFile | None = None,
        error: NewFile | None = None,
        errors: Sequence[BatchFault] = (),
        **changes: Any,
    ) -> Batch:
        """To another status, with what else changes then. With its end come its files, its results are no longer kept
        as rows, and webhooks are told. BadRequest where the status that it has does not allow that."""
        now = self.now()
        with self._database.write() as session:
            row = _row(session, batch.tenant, batch.id, lock=True)
            if status not in MOVES[row.status]:  # type: ignore[index]
                asked = "cancelled" if status == "cancelling" else status
                raise BadRequest(f"the batch {batch.id} is {row.status}: it cannot be {asked}", code="invalid_state")
            row.status, row.times = status, {**row.times, status: now}
            for name, value in changes.items():
                setattr(row, name, value)
            if status in ENDED:
                row.errors = [asdict(fault) for fault in errors]
                row.output_file = None if output is None else add_file(session, batch.tenant, output, now).id
                row.error_file = None if error is None else add_file(session, batch.tenant, error, now).id
                row.digest = None
                session.execute(delete(BatchResultRow).where(*_own(batch.tenant, batch.id)))
                announce(session, batch.tenant, f"batch.{status}", {"id": batch.id}, now)
            return _batch(row)

    def add_results(self, batch: Batch, results: Sequence[BatchResult]) -> Batch:
        """They count from here on. A line that has a result keeps it; a batch that has ended takes none."""
        with self._database.write() as session:
            row = _row(session, batch.tenant, batch.id, lock=True)
            if row.status in ENDED:
                return _batch(row)
            lines = BatchResultRow.line.in_([result.line for result in results])
            known = set(session.scalars(select(BatchResultRow.line).where(*_own(batch.tenant, batch.id), lines)))
            made = []
            for result in results:
                if result.line not in known:
                    known.add(result.line)
                    _count(row, result)
                    said = {"line": result.line, "failed": result.failed, "data": result.data}
                    made.append({"tenant": batch.tenant, "batch": batch.id, **said})
            if made:
                session.execute(insert(BatchResultRow), made)  # (an object for each would hold up the event loop)
            return _batch(row)


def _own(tenant: str, batch_id: str) -> tuple[Any, Any]:
    return BatchResultRow.tenant == tenant, BatchResultRow.batch == batch_id


def _count(row: BatchRow, result: BatchResult) -> None:
    row.completed += not result.failed
    row.failed += result.failed
    row.input_tokens += result.input_tokens
    row.cached_tokens += result.cached_tokens
    row.output_tokens += result.output_tokens


def _row(session: Session, tenant: str, batch_id: str, *, lock: bool = False, param: str = "batch_id") -> BatchRow:
    row = session.get(BatchRow, (tenant, batch_id), with_for_update=lock or None)
    if row is None:
        raise NotFound(f"No batch found with id '{batch_id[:100]}'.", param=param)
    return row


def _batch(row: BatchRow) -> Batch:
    return Batch(
        tenant=row.tenant,
        id=row.id,
        status=row.status,  # type: ignore[arg-type]
        endpoint=row.endpoint,
        input_file=row.input_file,
        digest=row.digest,
        metadata=row.pairs,
        output_lasts=row.output_lasts,
        model=row.model,
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        errors=tuple(BatchFault(**fault) for fault in row.errors),
        output_file=row.output_file,
        error_file=row.error_file,
        times=row.times,
        created=row.created,
        expires=row.expires,
    )
