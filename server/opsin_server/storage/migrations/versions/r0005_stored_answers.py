"""Answers that clients asked to keep, and the metadata by which they are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "stored_answers",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("said", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_stored_answers"),
    )
    op.create_index("ix_stored_answers_tenant_created_id", "stored_answers", ["tenant", "created", "id"])
    op.create_table(
        "stored_answer_labels",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "answer", "name", name="pk_stored_answer_labels"),
        sa.ForeignKeyConstraint(
            ["tenant", "answer"],
            ["stored_answers.tenant", "stored_answers.id"],
            name="fk_stored_answer_labels_stored_answers",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_stored_answer_labels_tenant_name_value", "stored_answer_labels", ["tenant", "name", "value"])
