"""A store, on each database in turn, with two agents, two users and a session."""

import pytest
from memory_house import House

from automagik.store import Store
from automagik.testing.fixtures import dialect, postgres_server, store

__all__ = ["dialect", "house", "postgres_server", "store"]


@pytest.fixture
async def house(store: Store) -> House:
    return await store.write(
        lambda tx: House(
            store=store,
            agent_id=tx.agents.create("clerk", type="spec", source="api").id,
            other_agent_id=tx.agents.create("poet", type="spec", source="api").id,
            ann=(ann := tx.users.create(email="ann@example.org").user_id),
            bob=tx.users.create(email="bob@example.org").user_id,
            session_id=(session := tx.sessions.create(user_id=ann)).session_id,
            session_key=session.id,
        )
    )
