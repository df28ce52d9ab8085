"""What Alembic runs for a migration: the connection is the one that `upgrade` was given, within its transaction."""

from __future__ import annotations

from alembic import context

from opsin_server.storage.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
