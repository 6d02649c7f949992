"""A store on SQLite with an agent, two users and a session."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_house import House

from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    store = Store.from_settings(Settings(data_dir=tmp_path), SystemClock())
    await store.open()
    try:
        yield await store.write(
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
    finally:
        await store.close()
