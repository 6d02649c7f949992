"""Alembic's entry: it runs the revisions on the connection that the migrator hands over, in the migrator's transaction."""

from alembic import context

from automagik.store import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    transactional_ddl=True,
    render_as_batch=context.config.attributes["connection"].dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
