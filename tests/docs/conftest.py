"""The guide to PostgreSQL is run against a real one."""

from automagik.testing.fixtures import postgres_server

__all__ = ["postgres_server"]
