"""Every test that takes `store` runs on SQLite and on PostgreSQL."""

from store_pairs import pair

from automagik.testing.fixtures import dialect, postgres_server, store

__all__ = ["dialect", "pair", "postgres_server", "store"]
