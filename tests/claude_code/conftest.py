"""Tests that take `store` run on SQLite and on PostgreSQL."""

from automagik.testing.fixtures import dialect, postgres_server, store

__all__ = ["dialect", "postgres_server", "store"]
