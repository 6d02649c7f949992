import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from api_house import ApiHouse, open_house
from pydantic import SecretStr

from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.testing.valkey import ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["postgresql", "redis"])
async def houses(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer, anyio_backend: str
) -> AsyncIterator[list[ApiHouse]]:
    """Two instances on one PostgreSQL, which count in the database or in one Valkey."""
    changes: dict[str, Any] = {}
    if request.param == "redis":
        changes["redis_url"] = SecretStr(cast("ValkeyServer", request.getfixturevalue("valkey")).url)
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings, AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_house(settings, **changes)) for _ in range(2)]


async def same_key(houses: list[ApiHouse], client: httpx2.AsyncClient) -> list[httpx2.AsyncClient]:
    """Clients of all instances that have the key of one."""
    key = client.headers["x-api-key"]
    return [client, *[await house.keyless(headers={"x-api-key": key}) for house in houses[1:]]]


async def statuses(clients: list[httpx2.AsyncClient], count: int) -> list[int]:
    answers = await asyncio.gather(*(clients[place % len(clients)].get("/api/v1/runs") for place in range(count)))
    return sorted(answer.status_code for answer in answers)


async def redis_status(house: ApiHouse) -> str:
    answer = await house.admin.get("/ready")
    assert answer.status_code == 200
    return next(check["status"] for check in answer.json()["checks"] if check["name"] == "redis")


async def test_a_key_has_one_allowance_over_all_instances(houses: list[ApiHouse]) -> None:
    clients = await same_key(houses, await houses[0].client("runs:read", rate_limit="30/day"))
    assert await statuses(clients, 40) == [200] * 30 + [429] * 10
    refused = await clients[1].get("/api/v1/runs")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    unlimited = await same_key(houses, await houses[0].client("runs:read"))
    assert await statuses(unlimited, 40) == [200] * 40


async def test_when_redis_is_away_each_instance_counts_by_itself_and_together_again_when_it_is_back(
    tmp_path: Path, postgres_server: PostgresServer, valkey: ValkeyServer
) -> None:
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings, AsyncExitStack() as stack:
        url = SecretStr(valkey.url)
        houses = [await stack.enter_async_context(open_house(settings, redis_url=url)) for _ in range(2)]
        clients = await same_key(houses, await houses[0].client("runs:read", rate_limit="10/day"))
        assert await statuses(clients, 4) == [200] * 4
        assert await redis_status(houses[0]) == "ok"
        valkey.kill()
        assert await statuses(clients, 24) == [200] * 20 + [429] * 4
        assert await redis_status(houses[0]) == "degraded"
        valkey.start()
        async with asyncio.timeout(40):
            for client in clients:  # each of them asks Redis again in its own time
                while (await client.get("/api/v1/runs")).status_code != 200:
                    await asyncio.sleep(0.05)
        assert await statuses(clients, 12) == [200] * 8 + [429] * 4
        assert await redis_status(houses[0]) == "ok"


async def test_keys_that_a_limited_key_makes_use_up_its_allowance_and_their_own(house: ApiHouse) -> None:
    maker = await house.client("keys:write", "runs:read", rate_limit="12/day")

    async def made(by: httpx2.AsyncClient, rate_limit: str | None = None) -> httpx2.AsyncClient:
        body = {"name": "child", "scopes": ["runs:read", "keys:write"], "rate_limit": rate_limit}
        answer = await by.post("/api/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        return await house.keyless(headers={"x-api-key": answer.json()["key"]})

    child = await made(maker, "5/day")
    sibling = await made(maker)
    assert await statuses([child], 6) == [200] * 5 + [429]
    assert await statuses([sibling], 6) == [200] * 5 + [429]  # two by the maker, ten by its keys
    refused = await sibling.get("/api/v1/runs")
    assert refused.json()["code"] == "rate_limited"
    assert (await maker.get("/api/v1/runs")).status_code == 429


async def test_a_limited_key_gets_no_further_by_a_long_line_of_descendants(house: ApiHouse) -> None:
    client = await house.client("keys:write", "runs:read", rate_limit="100/day")
    body = {"name": "next", "scopes": ["runs:read", "keys:write"]}
    made = 0
    while (answer := await client.post("/api/v1/keys", json=body)).status_code == 201:
        client = await house.keyless(headers={"x-api-key": answer.json()["key"]})
        made += 1
    assert answer.status_code == 403
    assert made < 10
    assert await statuses([client], 5) == [200] * 5
