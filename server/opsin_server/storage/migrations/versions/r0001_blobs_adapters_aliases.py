"""Blobs, adapters with their versions, and aliases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("store", sa.Column("id", sa.Text, nullable=False), sa.PrimaryKeyConstraint("id", name="pk_store"))
    op.create_table(
        "blobs",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("unreferenced_since", sa.Double),
        sa.PrimaryKeyConstraint("tenant", "digest", name="pk_blobs"),
    )
    op.create_index("ix_blobs_unreferenced_since", "blobs", ["unreferenced_since"])
    op.create_index("ix_blobs_digest", "blobs", ["digest"])
    op.create_table(
        "adapters",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("current_version", sa.Integer),
        sa.Column("next_version", sa.Integer, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("last_used", sa.Double),
        sa.Column("deleted", sa.Double),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_adapters"),
    )
    op.create_table(
        "adapter_versions",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("base_shape", sa.Text, nullable=False),
        sa.Column("base_digest", sa.Text),
        sa.Column("pixel_budget", sa.JSON),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "adapter", "version", name="pk_adapter_versions"),
        sa.ForeignKeyConstraint(
            ["tenant", "adapter"], ["adapters.tenant", "adapters.name"], name="fk_adapter_versions_adapters"
        ),
    )
    _create_what_names_versions()


def _create_what_names_versions() -> None:
    version = ["adapter_versions.tenant", "adapter_versions.adapter", "adapter_versions.version"]
    op.create_table(
        "adapter_version_blobs",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "adapter", "version", "digest", name="pk_adapter_version_blobs"),
        sa.ForeignKeyConstraint(
            ["tenant", "adapter", "version"],
            version,
            name="fk_adapter_version_blobs_adapter_versions",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "digest"], ["blobs.tenant", "blobs.digest"], name="fk_adapter_version_blobs_blobs"
        ),
    )
    op.create_index("ix_adapter_version_blobs_tenant_digest", "adapter_version_blobs", ["tenant", "digest"])
    op.create_table(
        "adapter_promotions",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "adapter", "place", name="pk_adapter_promotions"),
        sa.ForeignKeyConstraint(
            ["tenant", "adapter", "version"],
            version,
            name="fk_adapter_promotions_adapter_versions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "aliases",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text),
        sa.Column("version", sa.Integer),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(
            ["tenant", "adapter"], ["adapters.tenant", "adapters.name"], name="fk_aliases_adapters"
        ),
    )
    op.create_index("ix_aliases_tenant_adapter", "aliases", ["tenant", "adapter"])
