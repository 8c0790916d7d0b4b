"""Alembic runs this; the connection and everything else come from inspect_xai.storage.schema."""

from alembic import context

from inspect_xai.storage.tables import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite changes a table by making it anew
    transactional_ddl=True,  # SQLite's DDL obeys transactions too; the caller holds one open around all of this
)
with context.begin_transaction():
    context.run_migrations()
