"""Alembic's entry: runs the revisions over the connection that jobs.database hands in."""

from alembic import context

from jobs.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
)
context.run_migrations()
