"""The PostgreSQL and the warm Python of the test run."""

from automagik.testing.fixtures import postgres_server, warm

__all__ = ["postgres_server", "warm"]
