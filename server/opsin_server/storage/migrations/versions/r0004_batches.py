"""Batches of requests, and what became of their lines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file", sa.Text, nullable=False),
        sa.Column("digest", sa.Text),
        sa.Column("pairs", sa.JSON, nullable=False),
        sa.Column("output_lasts", sa.Integer),
        sa.Column("model", sa.Text),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("output_file", sa.Text),
        sa.Column("error_file", sa.Text),
        sa.Column("times", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_batches"),
        sa.ForeignKeyConstraint(["tenant", "digest"], ["blobs.tenant", "blobs.digest"], name="fk_batches_blobs"),
    )
    op.create_index("ix_batches_tenant_digest", "batches", ["tenant", "digest"])
    op.create_index("ix_batches_tenant_created_id", "batches", ["tenant", "created", "id"])
    op.create_index("ix_batches_owner_status", "batches", ["owner", "status"])
    op.create_table(
        "batch_results",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "batch", "line", name="pk_batch_results"),
        sa.ForeignKeyConstraint(
            ["tenant", "batch"], ["batches.tenant", "batches.id"], name="fk_batch_results_batches", ondelete="CASCADE"
        ),
    )
