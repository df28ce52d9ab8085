"""Files of clients, uploads in parts, and fine-tuning jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _create_files()
    _create_jobs()


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_files"),
        sa.ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"], name="fk_files_blobs"),
    )
    op.create_index("ix_files_tenant_digest", "files", ["tenant", "digest"])
    op.create_index("ix_files_tenant_created_id", "files", ["tenant", "created", "id"])
    op.create_table(
        "uploads",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("file", sa.Text),
        sa.Column("lasts", sa.Integer),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_uploads"),
    )
    op.create_table(
        "upload_parts",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("upload", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_upload_parts"),
        sa.ForeignKeyConstraint(
            ["tenant", "upload"], ["uploads.tenant", "uploads.id"], name="fk_upload_parts_uploads", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"], name="fk_upload_parts_blobs"),
    )
    op.create_index("ix_upload_parts_tenant_upload", "upload_parts", ["tenant", "upload"])
    op.create_index("ix_upload_parts_tenant_digest", "upload_parts", ["tenant", "digest"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("asked", sa.JSON, nullable=False),
        sa.Column("resolved", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("model", sa.Text),
        sa.Column("result_file", sa.Text),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.Column("estimated_finish", sa.Double),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_tenant_created_id", "jobs", ["tenant", "created", "id"])
    op.create_index("ix_jobs_owner_status", "jobs", ["owner", "status"])
    op.create_table(
        "job_blobs",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "job", "digest", name="pk_job_blobs"),
        _of_job("job_blobs"),
        sa.ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"], name="fk_job_blobs_blobs"),
    )
    op.create_index("ix_job_blobs_tenant_digest", "job_blobs", ["tenant", "digest"])
    op.create_table(
        "job_events",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "job", "number", name="pk_job_events"),
        _of_job("job_events"),
    )
    op.create_table(
        "job_checkpoints",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "job", "step", name="pk_job_checkpoints"),
        _of_job("job_checkpoints"),
    )


def _of_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", "job"], ["jobs.tenant", "jobs.id"], name=f"fk_{table}_jobs", ondelete="CASCADE"
    )
