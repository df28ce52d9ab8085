"""The tables. Each has a tenant, with which every unique key begins, but `store`. Times are seconds since 1970.

A new database gets them as they stand here, an older one by `migrations`; a test keeps the two equal."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Double, ForeignKeyConstraint, Index, Integer, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar = {
        str: Text(),
        int: Integer(),
        float: Double(),
        bool: Boolean(),
        dict[str, Any]: JSON(),
    }


class StoreRow(Base):
    """One row: the name by which a blob store knows the database that it belongs to. It is no part of a backup."""

    __tablename__ = "store"

    id: Mapped[str] = mapped_column(primary_key=True)


class BlobRow(Base):
    """A file of the blob store: a row exists only while its bytes lie there, durably. unreferenced_since: when the last
    row that named it went, or its bytes came; None while one names it."""

    __tablename__ = "blobs"
    __table_args__ = (Index(None, "unreferenced_since"), Index(None, "digest"))

    tenant: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str]
    name: Mapped[str]
    created: Mapped[float]
    unreferenced_since: Mapped[float | None]


class AdapterRow(Base):
    """deleted: since when there is no such adapter. The row stays, so that its version numbers go on."""

    __tablename__ = "adapters"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    current_version: Mapped[int | None]
    next_version: Mapped[int]
    pinned: Mapped[bool]
    created: Mapped[float]
    updated: Mapped[float]
    last_used: Mapped[float | None]
    deleted: Mapped[float | None]


class AdapterVersionRow(Base):
    """digest: of the file that the engine reads. source: {name: {"sha256", "size"}} of the files it was made of."""

    __tablename__ = "adapter_versions"
    __table_args__ = (ForeignKeyConstraint(["tenant", "adapter"], ["adapters.tenant", "adapters.name"]),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int]
    targets: Mapped[list[str]] = mapped_column(JSON)
    base_shape: Mapped[str]
    base_digest: Mapped[str | None]
    pixel_budget: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    source: Mapped[dict[str, Any]] = mapped_column(JSON)
    warnings: Mapped[list[str]] = mapped_column(JSON)
    origin: Mapped[str]
    created: Mapped[float]


class AdapterVersionBlobRow(Base):
    """Which blobs a version names. A table whose foreign key is blobs keeps what it names from being collected."""

    __tablename__ = "adapter_version_blobs"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "adapter", "version"],
            ["adapter_versions.tenant", "adapter_versions.adapter", "adapter_versions.version"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"]),
        Index(None, "tenant", "digest"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)


class PromotionRow(Base):
    """The versions that were current, oldest first by place; the last one is current. A rollback takes it away."""

    __tablename__ = "adapter_promotions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "adapter", "version"],
            ["adapter_versions.tenant", "adapter_versions.adapter", "adapter_versions.version"],
            ondelete="CASCADE",
        ),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]
    created: Mapped[float]


class AliasRow(Base):
    """kind: base, or adapter, then with the adapter's name. version None: the one that is current."""

    __tablename__ = "aliases"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "adapter"], ["adapters.tenant", "adapters.name"]),
        Index(None, "tenant", "adapter"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    adapter: Mapped[str | None]
    version: Mapped[int | None]
    created: Mapped[float]
    updated: Mapped[float]


class FileRow(Base):
    """A file that a client uploaded, or that a job made for it. expires: when it is gone."""

    __tablename__ = "files"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"]),
        Index(None, "tenant", "digest"),
        Index(None, "tenant", "created", "id"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str]
    name: Mapped[str]
    digest: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]
    expires: Mapped[float | None]


class UploadRow(Base):
    """A file that comes in parts. size: that all of them must have together. status: pending, completed, cancelled.
    lasts: seconds for which the file lasts once it is one."""

    __tablename__ = "uploads"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str]
    name: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str]
    file: Mapped[str | None]
    lasts: Mapped[int | None]
    created: Mapped[float]
    expires: Mapped[float]


class UploadPartRow(Base):
    __tablename__ = "upload_parts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "upload"], ["uploads.tenant", "uploads.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"]),
        Index(None, "tenant", "upload"),
        Index(None, "tenant", "digest"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    upload: Mapped[str]
    digest: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]


class JobRow(Base):
    """A fine-tuning job. owner: the data directory whose server runs it. request: the digest of what was asked, by
    which a request that is sent again is known. asked, resolved, error: as JSON."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "tenant", "created", "id"), Index(None, "owner", "status"))

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    status: Mapped[str]
    asked: Mapped[dict[str, Any]]
    resolved: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    request: Mapped[str]
    key: Mapped[str | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str | None]
    result_file: Mapped[str | None]
    created: Mapped[float]
    finished: Mapped[float | None]
    estimated_finish: Mapped[float | None]


class JobBlobRow(Base):
    """What a job reads: kept as long as the job's row, whatever becomes of the client's files."""

    __tablename__ = "job_blobs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "job"], ["jobs.tenant", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"]),
        Index(None, "tenant", "digest"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)


class JobEventRow(Base):
    """number: from 1 on, in the order in which they happened. step: of metrics, each once."""

    __tablename__ = "job_events"
    __table_args__ = (ForeignKeyConstraint(["tenant", "job"], ["jobs.tenant", "jobs.id"], ondelete="CASCADE"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    level: Mapped[str]
    kind: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created: Mapped[float]


class JobCheckpointRow(Base):
    """model: the adapter that it is served as."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (ForeignKeyConstraint(["tenant", "job"], ["jobs.tenant", "jobs.id"], ondelete="CASCADE"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    model: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    created: Mapped[float]


class BatchRow(Base):
    """A batch of requests. owner: as of a job. digest: of the input file's bytes, which are kept as long as the batch
    goes on. times: when it came to each status. input_tokens and what follows: of all answers that lines have got."""

    __tablename__ = "batches"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"]),
        Index(None, "tenant", "digest"),
        Index(None, "tenant", "created", "id"),
        Index(None, "owner", "status"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    status: Mapped[str]
    endpoint: Mapped[str]
    input_file: Mapped[str]
    digest: Mapped[str | None]
    pairs: Mapped[dict[str, Any]]
    output_lasts: Mapped[int | None]
    model: Mapped[str | None]
    total: Mapped[int]
    completed: Mapped[int]
    failed: Mapped[int]
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    output_file: Mapped[str | None]
    error_file: Mapped[str | None]
    times: Mapped[dict[str, Any]]
    created: Mapped[float]
    expires: Mapped[float]


class BatchResultRow(Base):
    """What became of one line of a batch that goes on: its line of the output file, or of the error file if it failed.
    They are gone when the files are there."""

    __tablename__ = "batch_results"
    __table_args__ = (ForeignKeyConstraint(["tenant", "batch"], ["batches.tenant", "batches.id"], ondelete="CASCADE"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    batch: Mapped[str] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    failed: Mapped[bool]
    data: Mapped[str]


class WebhookEndpointRow(Base):
    """secret: what deliveries are signed with, and for a while old_secret as well. It has to be kept as it is."""

    __tablename__ = "webhook_endpoints"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]] = mapped_column(JSON)
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[float | None]
    created: Mapped[float]
    updated: Mapped[float]


class WebhookDeliveryRow(Base):
    """An event that an endpoint has not acknowledged. id: the event's, the same in every attempt. due: when it is tried
    next."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "endpoint"], ["webhook_endpoints.tenant", "webhook_endpoints.id"], ondelete="CASCADE"
        ),
        Index(None, "due"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint: Mapped[str]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    attempts: Mapped[int]
    due: Mapped[float]
    created: Mapped[float]


class StoredAnswerRow(Base):
    """An answer that a client asked to keep. kind: whose object it is. said: the messages or items before it."""

    __tablename__ = "stored_answers"
    __table_args__ = (Index(None, "tenant", "created", "id"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    model: Mapped[str]
    answer: Mapped[dict[str, Any]]
    said: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    created: Mapped[float]


class StoredAnswerLabelRow(Base):
    """A pair of an answer's metadata, by which it is found."""

    __tablename__ = "stored_answer_labels"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "answer"], ["stored_answers.tenant", "stored_answers.id"], ondelete="CASCADE"),
        Index(None, "tenant", "name", "value"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    answer: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
