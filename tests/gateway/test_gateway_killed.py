"""The gateway's process is killed with streams under way, and begun again: no limit is passed, and every call is settled once."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gateway_house import KEY, MODEL, USD, House, raw, say

from automagik.store import Transaction
from automagik.testing.scripted_messages import ScriptedMessages

pytestmark = pytest.mark.anyio

ASK: Any = {"model": MODEL, "max_tokens": 4000, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
LIMIT = 0.4
USAGE = {"input_tokens": 100, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1500}


@asynccontextmanager
async def process(house: House, *args: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    settings = house.settings
    env = {
        "PATH": os.environ.get("PATH", ""),
        "AUTOMAGIK_DATA_DIR": str(settings.data_dir),
        "AUTOMAGIK_ANTHROPIC_BASE_URL": settings.anthropic_base_url,
        "ANTHROPIC_API_KEY": KEY,
    }
    if settings.database_url is not None:
        env["AUTOMAGIK_DATABASE_URL"] = settings.database_url.get_secret_value()
    script = Path(__file__).with_name("gateway_killed.py")
    begun = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *args, env=env, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert begun.stdout is not None
        async with asyncio.timeout(60):
            while (line := await begun.stdout.readline()) != b"ready\n":
                assert line, "it ended"  # what else it prints are log lines
        yield begun
    finally:
        if begun.returncode is None:
            begun.kill()
        await begun.wait()


async def test_a_gateway_that_is_killed_passes_no_limit_and_settles_each_call_once(
    either_house: House, api: ScriptedMessages
) -> None:
    house, path = either_house, str(either_house.socket())
    say(api, {"text": "one two three " * 40, "chunk_delay": 0.2, "usage": USAGE})
    async with process(house, path, "exec_one", str(LIMIT)) as first, raw(house.socket()) as client:
        seen = asyncio.Semaphore(0)

        async def stream() -> None:
            async with client.stream("POST", "/v1/messages", json=ASK) as answer:
                async for _ in answer.aiter_bytes():
                    seen.release()
                    await asyncio.Event().wait()

        streams = [asyncio.create_task(stream()) for _ in range(3)]
        for _ in streams:
            await asyncio.wait_for(seen.acquire(), 20)
        before = await house.budget()
        first.kill()
        await first.wait()
        for one in streams:
            one.cancel()
        await asyncio.wait(streams)
        with pytest.raises(httpx2.TransportError):
            await client.post("/v1/messages", json=ASK)
    assert before[0] == 0 and before[1] > 3 * 4000 * 15_000

    say(api, {"text": "Done", "usage": USAGE})
    async with process(house, path, "exec_two", str(LIMIT), "exec_one") as second:
        assert await house.budget() == (before[1], 0)
        statuses: Counter[int] = Counter()

        async def ask() -> None:
            while (status := (await client.post("/v1/messages", json=ASK)).status_code) == 429:
                statuses[status] += 1
                await asyncio.sleep(0.05)
            statuses[status] += 1
            spent, reserved = await house.budget()
            assert spent + reserved <= LIMIT * USD

        async with raw(house.socket()) as client:  # the same path and token
            await asyncio.gather(*(ask() for _ in range(12)))
        assert statuses[200] >= 1 and statuses[403] >= 1
        second.terminate()
        assert second.stdout is not None
        told = (await asyncio.wait_for(second.stdout.read(), 20)).decode().splitlines()[-1].split()

    calls = await house.calls()
    outcomes = Counter(call.outcome for call in calls)
    assert (outcomes["lost"], outcomes["completed"]) == (3, statuses[200])
    costs = [call.cost_nano or 0 for call in calls]
    assert await house.budget() == (sum(costs), 0)
    assert sum(costs) <= LIMIT * USD
    assert all(call.cost_nano == call.reserved_nano > 0 for call in calls if call.outcome == "lost")
    assert (int(told[0]), Decimal(told[1])) == (3 + statuses[200], Decimal(sum(costs)).scaleb(-9))


async def test_a_call_under_no_budget_leaves_a_row_when_its_process_is_killed(
    either_house: House, api: ScriptedMessages
) -> None:
    house, path = either_house, str(either_house.socket())
    say(api, {"text": "one two three " * 40, "chunk_delay": 0.2, "usage": USAGE})
    async with (
        process(house, path, "exec_one", "0") as first,
        raw(house.socket()) as client,
        client.stream("POST", "/v1/messages", json=ASK) as answer,
    ):
        async with asyncio.timeout(40):
            while not await house.store.read(_reserved):
                await asyncio.sleep(0.05)
        first.kill()
        await first.wait()
        with pytest.raises(httpx2.TransportError):
            await answer.aread()
    await house.limit(1)
    async with process(house, path, "exec_two", "0", "exec_one") as second:
        (lost,) = await house.calls()
        second.terminate()
        await second.wait()
    assert (lost.outcome, lost.wire, lost.model, lost.agent) == ("lost", "anthropic", MODEL, "coder")
    assert (lost.cost_nano or 0) > 4000 * 15_000
    assert await house.budget() == (lost.cost_nano, 0)


def _reserved(tx: Transaction) -> int:
    return int(tx.connection.exec_driver_sql("SELECT count(*) FROM reservations").scalar_one())
