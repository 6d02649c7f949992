"""Keys are tested on both databases."""

from automagik.testing.fixtures import dialect, postgres_server, store

__all__ = ["dialect", "postgres_server", "store"]
