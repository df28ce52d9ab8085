"""Files by their content. `put` returns when the bytes and then the row that names them would outlive a loss of power;
`collect` takes them away in the other order, so that a row is never without its bytes."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from sqlalchemy import ColumnElement, and_, delete, exists, not_, or_, select, update
from sqlalchemy.orm import Session

from opsin_server.errors import BlobDamaged, NotFound, StorageFailed, TooLarge
from opsin_server.storage.blob_files import BlobFiles, LocalFiles, checked
from opsin_server.storage.database import Database, log
from opsin_server.storage.file_cache import FileCache
from opsin_server.storage.records import Blob, checked_name
from opsin_server.storage.tables import Base, BlobRow

CHUNK = 2**20
GRACE_SECONDS = 24 * 3600.0


class Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


@dataclass(frozen=True)
class Collected:
    """What `collect` took away: rows, and files (of which some had no row)."""

    rows: int
    files: int


class BlobStore:
    """Any thread may use it. A digest that no blob of the tenant's has raises NotFound; a place that cannot be read or
    written raises StorageFailed, and the log has the reason."""

    def __init__(
        self,
        database: Database,
        files: BlobFiles,
        tmp: Path,
        cache: FileCache,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._files, self._tmp, self._cache, self._now = database, files, tmp, cache, now

    @property
    def is_local(self) -> bool:
        """Whether they lie on this machine."""
        return isinstance(self._files, LocalFiles)

    def put(self, tenant: str, source: Readable | Path, *, kind: str, name: str, limit: int) -> Blob:
        """Keeps what a stream gives, or a file holds, of `limit` bytes at most. Nothing that names it is needed for the
        time of the collection's grace. Raises TooLarge, and BadRequest for a name."""
        checked_name(tenant, "the tenant")
        checked_name(kind, "the file's kind")
        checked_name(name, "the file's name")
        if isinstance(source, Path):
            with source.open("rb") as opened:
                return self.put(tenant, opened, kind=kind, name=name, limit=limit)
        with self._scratch() as scratch:
            digest, size = self._receive(source, scratch, name, limit)
            with self._database.hold(f"blob {digest}"):
                with self._reachable():
                    self._files.place(scratch, digest)
                return self._record(tenant, Blob(digest, size, kind, name, self._now()))

    def get(self, tenant: str, digest: str) -> Blob:
        with self._database.read() as session:
            row = session.get(BlobRow, (tenant, digest))
            if row is None:
                raise NotFound(f"there is no stored file {digest}")
            return _blob(row)

    def open(self, tenant: str, digest: str) -> BinaryIO:
        """Its bytes, of which only the number is checked. Raises BlobDamaged for another number, or none."""
        blob = self.get(tenant, digest)
        with self._reachable():
            self._check_size(blob, self._files.size(digest))
            return self._files.open(digest)

    def verify(self, tenant: str, digest: str) -> Blob:
        """Reads it through. Raises BlobDamaged unless it holds the bytes that were put."""
        blob = self.get(tenant, digest)
        with self._reachable():
            self._check_size(blob, self._files.size(digest))
            with self._files.open(digest) as opened:
                _check_bytes(blob, opened)
        return blob

    def local_path(self, tenant: str, digest: str, *, verify: bool = False) -> Path:
        """A file of this machine with its bytes: open it soon, since a copy of a remote one makes room for others in
        time. The size is always checked; the bytes if `verify` says so, and when they are fetched. Raises
        BlobDamaged."""
        blob = self.get(tenant, digest)
        with self._reachable():
            if isinstance(self._files, LocalFiles):
                self._check_size(blob, self._files.size(digest))
                path = self._files.path(digest)
            else:
                path = self._cache.path(blob, self._files)
            if verify:
                with path.open("rb") as opened:
                    _check_bytes(blob, opened)
        return path

    def collect(self, grace: float = GRACE_SECONDS) -> Collected:
        """Takes away what nothing has named for `grace` seconds, and bytes of that age without a row."""
        with self._database.hold("collect"):
            before = self._now() - grace
            with self._database.write() as session:
                newly = and_(BlobRow.unreferenced_since.is_(None), not_(referenced()))
                session.execute(update(BlobRow).where(newly).values(unreferenced_since=self._now()))
                gone = select(BlobRow.tenant, BlobRow.digest).where(_collectable(before))
                found = session.execute(gone.order_by(BlobRow.digest)).all()
            rows = sum(self._collect_row(tenant, digest, before) for tenant, digest in found)
            with self._reachable():
                files = sum(self._collect_file(stored.digest, before) for stored in self._files.listing())
            return Collected(rows, files)

    def _collect_row(self, tenant: str, digest: str, before: float) -> bool:
        with self._database.write() as session:
            own = and_(BlobRow.tenant == tenant, BlobRow.digest == digest)
            locked = session.scalar(select(BlobRow).where(own).with_for_update())
            if locked is None:
                return False
            # Asked again behind the lock: a version may have come to name it meanwhile.
            taken = session.execute(delete(BlobRow).where(own, _collectable(before)).returning(BlobRow.digest))
            return taken.first() is not None

    def _collect_file(self, digest: str, before: float) -> bool:
        """Whether there was one to take: it has no row of any tenant's, and is older."""
        with self._database.hold(f"blob {digest}"):
            with self._database.read() as session:
                if session.scalar(select(exists().where(BlobRow.digest == digest))):
                    return False
            modified = self._files.modified(digest)
            if modified is None or modified >= before:
                return False
            self._files.delete(digest)
            return True

    def _receive(self, source: Readable, scratch: Path, name: str, limit: int) -> tuple[str, int]:
        hasher, size = hashlib.sha256(), 0
        with self._reachable():
            opened = scratch.open("xb", buffering=0)  # what a buffer holds would fail once more when it is closed
        with opened:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise TooLarge(f"{name} has more than {limit:,} bytes, which is the limit")
                hasher.update(chunk)
                with self._reachable():
                    _write(opened, chunk)
            with self._reachable():
                os.fsync(opened.fileno())
        return hasher.hexdigest(), size

    def _record(self, tenant: str, blob: Blob) -> Blob:
        """A row for bytes that lie there. One that is known keeps its first name, and lives on."""
        with self._database.write() as session:
            row = session.get(BlobRow, (tenant, blob.digest), with_for_update=True)
            if row is None:
                row = BlobRow(
                    tenant=tenant,
                    digest=blob.digest,
                    size=blob.size,
                    kind=blob.kind,
                    name=blob.name,
                    created=blob.created,
                    unreferenced_since=blob.created,
                )
                session.add(row)
            elif row.unreferenced_since is not None:
                row.unreferenced_since = blob.created
            return _blob(row)

    def _check_size(self, blob: Blob, size: int | None) -> None:
        if size is None:
            raise BlobDamaged(blob.digest, "is missing")
        if size != blob.size:
            raise BlobDamaged(blob.digest, f"has {size:,} bytes instead of {blob.size:,}")

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A name for a file that is being written. It is gone at the end unless it was placed."""
        scratch = self._tmp / secrets.token_hex(8)
        try:
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.error("blobs: %s", error)
            raise StorageFailed("a file cannot be read or written at the moment") from error


def claim(session: Session, tenant: str, digests: Iterable[str]) -> None:
    """For a transaction that adds rows which name blobs: they are there, and are not collected meanwhile. Raises
    NotFound for the first that is not."""
    wanted = sorted(set(digests))
    own = and_(BlobRow.tenant == tenant, BlobRow.digest.in_(wanted))
    found = session.scalars(select(BlobRow).where(own).order_by(BlobRow.digest).with_for_update()).all()
    if missing := sorted(set(wanted) - {row.digest for row in found}):
        raise NotFound(f"there is no stored file {missing[0]}")
    for row in found:
        row.unreferenced_since = None


def referenced() -> ColumnElement[bool]:
    """Whether a row of any table names a blob, by the foreign keys that there are."""
    blobs = Base.metadata.tables[BlobRow.__tablename__]
    keys = (key for table in Base.metadata.tables.values() for key in table.foreign_key_constraints)
    naming = [key.elements for key in keys if key.referred_table is blobs]
    return or_(*(exists().where(*(element.parent == element.column for element in elements)) for elements in naming))


def _collectable(before: float) -> ColumnElement[bool]:
    return and_(BlobRow.unreferenced_since < before, not_(referenced()))


def _write(opened: FileIO, chunk: bytes) -> None:
    """All of it: a disk that is nearly full takes a part."""
    view = memoryview(chunk)
    while view:
        view = view[opened.write(view) :]


def _check_bytes(blob: Blob, opened: BinaryIO) -> None:
    hasher = hashlib.sha256()
    while chunk := opened.read(CHUNK):
        hasher.update(chunk)
    if hasher.hexdigest() != blob.digest:
        raise BlobDamaged(blob.digest, f"holds other bytes (their SHA-256 is {hasher.hexdigest()})")


def _blob(row: BlobRow) -> Blob:
    return Blob(checked(row.digest), row.size, row.kind, row.name, row.created)
