import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
from api_house import ApiHouse, open_house

from automagik.testing.postgres import PostgresServer
from automagik.testing.stopwatch import Stopwatch
from automagik.testing.stores import fresh_settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def houses(
    tmp_path: Path, postgres_server: PostgresServer, anyio_backend: str
) -> AsyncIterator[tuple[ApiHouse, ApiHouse]]:
    """Two instances on one PostgreSQL."""
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings, AsyncExitStack() as stack:
        here = await stack.enter_async_context(open_house(settings))
        yield here, await stack.enter_async_context(open_house(settings))


async def soon(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must be so long before anybody looks by himself."""
    with Stopwatch() as took:
        async with asyncio.timeout(20):
            while not await holds():
                await asyncio.sleep(0.01)
    assert took.seconds < 0.8


async def same_key(house: ApiHouse, client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """A client of another instance that has the same key."""
    return await house.keyless(headers={"x-api-key": client.headers["x-api-key"]})


async def test_a_key_that_is_revoked_on_one_instance_is_refused_by_the_other_at_once(
    houses: tuple[ApiHouse, ApiHouse],
) -> None:
    here, there = houses
    own = await here.client("runs:read")
    stays = await here.client("runs:read")
    clients = [await same_key(there, client) for client in (own, stays)]
    assert [(await client.get("/api/v1/runs")).status_code for client in clients] == [200, 200]
    key_id = (await own.get("/api/v1/keys/self")).json()["key_id"]
    assert (await here.admin.delete(f"/api/v1/keys/{key_id}")).is_success

    async def refused() -> bool:
        return (await clients[0].get("/api/v1/runs")).status_code == 401

    await soon(refused)
    assert (await clients[1].get("/api/v1/runs")).status_code == 200


async def test_the_keys_of_a_user_who_is_deleted_on_one_instance_are_refused_by_the_other_at_once(
    houses: tuple[ApiHouse, ApiHouse],
) -> None:
    here, there = houses
    user_id = await here.user()
    client = await same_key(there, await here.client("runs:read", user_id=user_id))
    assert (await client.get("/api/v1/runs")).status_code == 200
    assert (await here.admin.delete(f"/api/v1/users/{user_id}")).is_success

    async def refused() -> bool:
        return (await client.get("/api/v1/runs")).status_code == 401

    await soon(refused)


async def test_an_agent_that_is_made_changed_and_deleted_on_one_instance_is_so_on_the_other_at_once(
    houses: tuple[ApiHouse, ApiHouse],
) -> None:
    here, there = houses

    async def description() -> str | None:
        answer = await there.admin.get("/api/v1/agents/mimic")
        return answer.json()["config"]["description"] if answer.status_code == 200 else None

    assert await description() is None
    made = {"name": "mimic", "config": {"instructions": "Be brief.", "description": "made"}}
    assert (await here.admin.post("/api/v1/agents", json=made)).status_code == 201

    async def is_said(words: str | None) -> None:
        async def said() -> bool:
            return await description() == words

        await soon(said)

    await is_said("made")
    for words in ("changed", "changed again"):
        body = {"config": {"description": words}}
        assert (await here.admin.patch("/api/v1/agents/mimic", json=body)).is_success
        await is_said(words)
    assert (await here.admin.delete("/api/v1/agents/mimic")).is_success
    await is_said(None)


async def test_a_prompt_that_is_activated_on_one_instance_is_used_by_the_other_at_once(
    houses: tuple[ApiHouse, ApiHouse],
) -> None:
    here, there = houses

    async def said() -> str:
        answer = await there.admin.post("/api/v1/agent/echo/run", json={"message_content": "hi"})
        return str(answer.json()["message"])

    assert "Be plain." in await said()
    for words in ("Rather {{style}}.", "Even {{style}}."):
        body = {"agent_name": "echo", "prompt_text": words, "is_active": True}
        assert (await here.admin.post("/api/v1/prompts", json=body)).status_code == 201
        expected = words.replace("{{style}}", "plain")

        async def is_used(expected: str = expected) -> bool:
            return expected in await said()

        await soon(is_used)
