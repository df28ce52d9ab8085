"""Files of clients, as rows: what OpenAI's Files and Uploads keep. A file is gone when its time has come, whether its
row is there still or not; its bytes go with the collection of blobs."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable, Sequence
from typing import Literal

from sqlalchemy import ColumnElement, and_, delete, or_, select, tuple_
from sqlalchemy.orm import Session

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.blobs import claim
from opsin_server.storage.database import Database
from opsin_server.storage.records import Blob, NewFile, NewUpload, Page, StoredFile, Upload, UploadPart, checked_name
from opsin_server.storage.tables import FileRow, UploadPartRow, UploadRow

LETTERS = string.ascii_letters + string.digits
UPLOAD_SECONDS = 3600  # from its creation on, as at OpenAI


def new_id(prefix: str) -> str:
    """As OpenAI's are: file-AbC123..."""
    return prefix + "".join(secrets.choice(LETTERS) for _ in range(24))


class FileRecords:
    """Any thread, and on PostgreSQL any process, may use it. What is not there raises NotFound."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    # --------------------------------------------------------------------------------------------------- files

    def add(self, tenant: str, blob: Blob, name: str, purpose: str, lasts: int | None = None) -> StoredFile:
        """lasts: seconds; None: until it is deleted. NotFound for what is no blob of the tenant's."""
        checked_name(name, "the file's name")
        with self._database.write() as session:
            return _file(add_file(session, tenant, NewFile(blob, name, purpose, lasts), self._now()))

    def get(self, tenant: str, file_id: str) -> StoredFile:
        with self._database.read() as session:
            return _file(self._living(session, tenant, file_id))

    def page(
        self, tenant: str, *, after: str | None, limit: int, newest_first: bool, purpose: str | None = None
    ) -> Page[StoredFile]:
        """The `limit` files that come after one, by the time at which they were made."""
        with self._database.read() as session:
            wanted = [FileRow.tenant == tenant, self._lasts()]
            if purpose is not None:
                wanted.append(FileRow.purpose == purpose)
            place = tuple_(FileRow.created, FileRow.id)
            if after is not None:
                last = self._living(session, tenant, after, "after")
                mark = tuple_(last.created, last.id)
                wanted.append(place < mark if newest_first else place > mark)
            order = [column.desc() if newest_first else column for column in (FileRow.created, FileRow.id)]
            rows = session.scalars(select(FileRow).where(*wanted).order_by(*order).limit(limit + 1)).all()
            return Page(tuple(_file(row) for row in rows[:limit]), len(rows) > limit)

    def delete(self, tenant: str, file_id: str) -> None:
        with self._database.write() as session:
            session.delete(self._living(session, tenant, file_id))

    def expire(self) -> None:
        """Takes away the rows of all tenants whose time has come."""
        with self._database.write() as session:
            session.execute(delete(FileRow).where(FileRow.expires <= self._now()))
            session.execute(delete(UploadRow).where(UploadRow.expires <= self._now()))

    # ------------------------------------------------------------------------------------------------- uploads

    def begin_upload(self, tenant: str, new: NewUpload) -> Upload:
        checked_name(new.name, "the file's name", "filename")
        now = self._now()
        with self._database.write() as session:
            row = UploadRow(
                tenant=tenant,
                id=new_id("upload_"),
                purpose=new.purpose,
                name=new.name,
                size=new.size,
                status="pending",
                lasts=new.lasts,
                created=now,
                expires=now + UPLOAD_SECONDS,
            )
            session.add(row)
            return self._upload(session, row)

    def upload(self, tenant: str, upload_id: str) -> Upload:
        with self._database.read() as session:
            return self._upload(session, _upload_row(session, tenant, upload_id))

    def add_part(self, tenant: str, upload_id: str, blob: Blob) -> UploadPart:
        """BadRequest once the upload is completed, cancelled or too late."""
        with self._database.write() as session:
            self._pending(session, tenant, upload_id)
            claim(session, tenant, [blob.digest])
            row = UploadPartRow(
                tenant=tenant, id=new_id("part_"), upload=upload_id, digest=blob.digest, size=blob.size,
                created=self._now(),
            )  # fmt: skip
            session.add(row)
            return _part(row)

    def parts(self, tenant: str, upload_id: str, part_ids: Sequence[str]) -> list[UploadPart]:
        """Those named, in that order. BadRequest for one that is not the upload's, or is named twice."""
        with self._database.read() as session:
            own = and_(UploadPartRow.tenant == tenant, UploadPartRow.upload == upload_id)
            found = {row.id: _part(row) for row in session.scalars(select(UploadPartRow).where(own))}
        if len(set(part_ids)) != len(part_ids):
            raise BadRequest("a part is named twice", param="part_ids")
        if unknown := next((part for part in part_ids if part not in found), None):
            raise BadRequest(f"the upload has no part {unknown[:100]}", param="part_ids")
        return [found[part] for part in part_ids]

    def complete_upload(self, tenant: str, upload_id: str, blob: Blob) -> Upload:
        """blob: all parts, one after the other. BadRequest once it is completed, cancelled or too late."""
        with self._database.write() as session:
            row = self._pending(session, tenant, upload_id)
            row.file = add_file(session, tenant, NewFile(blob, row.name, row.purpose, row.lasts), self._now()).id
            row.status = "completed"
            self._forget_parts(session, tenant, upload_id)
            return self._upload(session, row)

    def cancel_upload(self, tenant: str, upload_id: str) -> Upload:
        with self._database.write() as session:
            row = self._pending(session, tenant, upload_id)
            row.status = "cancelled"
            self._forget_parts(session, tenant, upload_id)
            return self._upload(session, row)

    # ------------------------------------------------------------------------------------------------- helpers

    def _lasts(self) -> ColumnElement[bool]:
        return or_(FileRow.expires.is_(None), FileRow.expires > self._now())

    def _living(self, session: Session, tenant: str, file_id: str, param: str = "id") -> FileRow:
        row = session.scalar(select(FileRow).where(FileRow.tenant == tenant, FileRow.id == file_id, self._lasts()))
        if row is None:
            raise NotFound(f"No such File object: {file_id[:100]}", param=param)
        return row

    def _pending(self, session: Session, tenant: str, upload_id: str) -> UploadRow:
        row = _upload_row(session, tenant, upload_id, lock=True)
        status = self._status(row)
        if status != "pending":
            raise not_pending(upload_id, status)
        return row

    def _status(self, row: UploadRow) -> Literal["pending", "completed", "cancelled", "expired"]:
        if row.status == "pending" and row.expires <= self._now():
            return "expired"
        return row.status  # type: ignore[return-value]

    def _upload(self, session: Session, row: UploadRow) -> Upload:
        file = None if row.file is None else session.get(FileRow, (row.tenant, row.file))
        return Upload(
            row.id, row.purpose, row.name, row.size, self._status(row), row.created, row.expires,
            None if file is None else _file(file),
        )  # fmt: skip

    def _forget_parts(self, session: Session, tenant: str, upload_id: str) -> None:
        own = and_(UploadPartRow.tenant == tenant, UploadPartRow.upload == upload_id)
        session.execute(delete(UploadPartRow).where(own))


def add_file(session: Session, tenant: str, new: NewFile, now: float) -> FileRow:
    """Within a transaction. NotFound for what is no blob of the tenant's."""
    claim(session, tenant, [new.blob.digest])
    row = FileRow(
        tenant=tenant,
        id=new_id("file-"),
        purpose=new.purpose,
        name=new.name,
        digest=new.blob.digest,
        size=new.blob.size,
        created=now,
        expires=None if new.lasts is None else now + new.lasts,
    )
    session.add(row)
    session.flush()
    return row


def not_pending(upload_id: str, status: str) -> BadRequest:
    """For who asks more of an upload that is over."""
    return BadRequest(f"the upload {upload_id} is {status}", code="invalid_state")


def _upload_row(session: Session, tenant: str, upload_id: str, *, lock: bool = False) -> UploadRow:
    row = session.get(UploadRow, (tenant, upload_id), with_for_update=lock or None)
    if row is None:
        raise NotFound(f"No such Upload object: {upload_id[:100]}", param="id")
    return row


def _file(row: FileRow) -> StoredFile:
    return StoredFile(row.id, row.purpose, row.name, row.digest, row.size, row.created, row.expires)


def _part(row: UploadPartRow) -> UploadPart:
    return UploadPart(row.id, row.upload, row.digest, row.size, row.created)
