"""The PostgreSQL of the test run."""

from automagik.testing.fixtures import postgres_server

__all__ = ["postgres_server"]
