"""Rows under the ids that the SDK's tests name. They are copies of rows that the server wrote itself, put into its
database beside it: an id is the one thing that the API lets nobody choose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, inspect, select
from sqlalchemy.orm import Session

from opsin_server.storage.file_records import UPLOAD_SECONDS
from opsin_server.storage.job_records import ENDED
from opsin_server.storage.records import TENANT
from opsin_server.storage.sqlite import open_sqlite_to_read
from opsin_server.storage.tables import (
    Base,
    BatchRow,
    FileRow,
    JobBlobRow,
    JobCheckpointRow,
    JobEventRow,
    JobRow,
    StoredAnswerLabelRow,
    StoredAnswerRow,
    UploadPartRow,
    UploadRow,
    WebhookEndpointRow,
)
from sdk.originals import Originals

FILES = ("file_id", "file-abc123")
UPLOAD, PART = "upload_abc123", "string"
JOB = "ft-AF1WoRqd3aJAHsqc9NY7iL8F"
HOOK = "whe_123"
BATCH, BATCH_FILE = "batch_id", "input_file_id"
CHAT = "completion_id"
RESPONSES = ("resp_677efb5139a88190b512bc3fef8e535d", "response_id", "previous_response_id", "resp_123")
AFTER = "after"  # the id of the last one of the page before
NOT_ENDED: dict[str, Any] = {"finished": None, "model": None, "result_file": None, "trained_tokens": None}

TABLES = (FileRow, UploadRow, JobRow, BatchRow, StoredAnswerRow, WebhookEndpointRow)

Row = TypeVar("Row", bound=Base)


class Placeholders:
    """The originals stay as they are; what else the tests made is taken away."""

    def __init__(self, database: Path, originals: Originals) -> None:
        self._database, self._originals = open_sqlite_to_read(database), originals
        with self._database.read() as session:
            self._kept = {table: session.scalars(select(table.id)).all() for table in TABLES}

    def going(self) -> list[str]:
        """Jobs that have not ended."""
        with self._database.read() as session:
            return list(session.scalars(select(JobRow.id).where(JobRow.status.not_in(ENDED))))

    def put_back(self, status: str) -> None:
        """status: that the job then has, and the batch."""
        with self._database.write() as session:
            for table, kept in self._kept.items():
                session.execute(delete(table).where(table.id.not_in(kept)))
            now = time.time()
            self._put_files(session, now)
            self._put_upload(session, now)
            self._put_answers(session, now)
            self._put_batches(session, now, status)
            hook = session.get_one(WebhookEndpointRow, (TENANT, self._originals.webhook))
            session.add(_copy(hook, id=HOOK, created=now))
            changes = {} if status == "succeeded" else {"status": status, **NOT_ENDED}
            self._put_job(session, JOB, created=now, **changes)
            self._put_job(session, AFTER, created=now + 1)  # of jobs the newest come first

    def close(self) -> None:
        self._database.close()

    def _put_files(self, session: Session, now: float) -> None:
        original = session.get_one(FileRow, (TENANT, self._originals.file))
        session.add_all(_copy(original, id=one, created=now) for one in FILES)
        session.add(_copy(original, id=AFTER, created=0.0))  # the test asks for the oldest first

    def _put_upload(self, session: Session, now: float) -> None:
        upload = session.get_one(UploadRow, (TENANT, self._originals.upload))
        session.add(_copy(upload, id=UPLOAD, created=now, expires=now + UPLOAD_SECONDS))
        session.flush()
        part = session.get_one(UploadPartRow, (TENANT, self._originals.part))
        session.add(_copy(part, id=PART, upload=UPLOAD))

    def _put_batches(self, session: Session, now: float, status: str) -> None:
        original = session.get_one(BatchRow, (TENANT, self._originals.batch))
        changes = {} if status == "succeeded" else {"status": "in_progress", "output_file": None, "times": {}}
        session.add(_copy(original, id=BATCH, created=now, **changes))
        session.add(_copy(original, id=AFTER, created=now + 1))
        file = session.get_one(FileRow, (TENANT, self._originals.batch_file))
        session.add(_copy(file, id=BATCH_FILE, created=now))

    def _put_answers(self, session: Session, now: float) -> None:
        """With an answer and an item more for the page to come after."""
        chat = session.get_one(StoredAnswerRow, (TENANT, self._originals.chat))
        session.add(_copy(chat, id=CHAT, answer={**chat.answer, "id": CHAT}, created=now))
        session.add(_copy(chat, id=AFTER, created=now - 1))
        session.flush()
        label = session.get_one(StoredAnswerLabelRow, (TENANT, self._originals.chat, "foo"))
        session.add(_copy(label, answer=CHAT))
        response = session.get_one(StoredAnswerRow, (TENANT, self._originals.response))
        said = [{**response.said[0], "id": AFTER}, *response.said]
        for one in RESPONSES:
            session.add(_copy(response, id=one, answer={**response.answer, "id": one}, said=said, created=now))

    def _put_job(self, session: Session, job_id: str, **changes: Any) -> None:
        """With all that belongs to it, and an event and a checkpoint more for the page to come after."""
        session.add(_copy(session.get_one(JobRow, (TENANT, self._originals.job)), id=job_id, **changes))
        session.flush()
        for table in (JobBlobRow, JobEventRow, JobCheckpointRow):
            rows = self._of_job(session, table)
            session.add_all(_copy(row, job=job_id) for row in rows)
        event = max(self._of_job(session, JobEventRow), key=lambda row: row.number)
        session.add(_copy(event, job=job_id, id=AFTER, number=event.number + 1))
        checkpoint = max(self._of_job(session, JobCheckpointRow), key=lambda row: row.step)
        session.add(_copy(checkpoint, job=job_id, id=AFTER, step=checkpoint.step + 1))

    def _of_job(self, session: Session, table: type[Row]) -> list[Row]:
        return list(session.scalars(select(table).where(table.job == self._originals.job)))


def _copy(row: Row, **changes: Any) -> Row:
    values = {column.key: getattr(row, column.key) for column in inspect(type(row)).column_attrs}
    return type(row)(**(values | changes))
