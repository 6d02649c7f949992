"""The history of the schema, one Alembic revision a file under `versions/`; `automagik.store.migrator` runs it."""
