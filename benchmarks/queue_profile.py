"""Where the time of the queue goes, in one process over PostgreSQL: of an accepted run, layer by layer, and of a drained turn."""

import asyncio
import gc
import os
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import uvloop

from automagik.api import create_api
from automagik.app import Platform, Role
from automagik.runs import RunRequest
from automagik.runs.acceptance import begin_of, new_row
from automagik.telemetry import configure_logging
from automagik.types import SYSTEM
from benchmarks.inprocess import call_app
from benchmarks.profiling import deterministic, sampled
from benchmarks.queue_fleet import PLACES, write_agents
from benchmarks.queue_models import GATE
from benchmarks.running import Ground
from benchmarks.scenario import QUESTION
from benchmarks.servers import AGENT, MEMORY, prepare

__all__ = ["profile_accepted", "profile_drained"]

_CLIENTS = 16
_SESSIONS = 5


@asynccontextmanager
async def _open(on: Ground, role: Role) -> AsyncGenerator[tuple[Platform, str]]:
    """A platform over PostgreSQL, and an administrator's key."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-")))
        prepared = await asyncio.to_thread(prepare, on, folder, None, stack.enter_context(on.postgresql()))
        settings = prepared.settings.model_copy(update={"max_queued_runs": 1_000_000, "log_level": "warning"})
        os.environ[GATE] = str(folder / "gate")
        write_agents(folder)
        configure_logging(settings)
        platform = await stack.enter_async_context(Platform.open(settings, role=role))
        await platform.memories.create(MEMORY, SYSTEM)
        yield platform, prepared.key


async def _together(count: int, ask: Callable[[int], Awaitable[object]]) -> None:
    left = count

    async def go(number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask(number)

    await asyncio.gather(*(go(number) for number in range(_CLIENTS)))


async def _accepted(on: Ground) -> str:
    count = 400 if on.quick else 2000
    async with _open(on, "api") as (platform, key):
        api = create_api(platform)
        sessions = [uuid.uuid4() for _ in range(_CLIENTS)]
        agent = platform.agents.get_agent(AGENT)
        caller = replace(SYSTEM, key_id=None)

        def request(number: int) -> RunRequest:
            return RunRequest(agent_name=AGENT, text=QUESTION, session_id=sessions[number])

        async def by_store(number: int) -> None:
            asked = request(number)
            row = new_row(
                asked, caller, agent, now=platform.clock.now(), owner=None, requeue_of=None, queue_timeout_seconds=None
            )
            await platform.store.accept_run(begin_of(row, asked, caller, agent))

        async def by_service(number: int) -> None:
            await platform.runs.submit(request(number), caller)

        async def by_api(number: int) -> None:
            body = {"message_content": QUESTION, "session_id": str(sessions[number])}
            await call_app(api, f"/api/v1/agent/{AGENT}/run/async", body, key=key)

        layers = {"store": by_store, "service": by_service, "api": by_api}
        for ask in layers.values():
            await _together(200, ask)
        gc.collect()
        gc.freeze()
        taken: dict[str, list[float]] = {name: [] for name in layers}
        for _ in range(6):
            for name, ask in layers.items():
                began = time.process_time()
                await _together(count // 6, ask)
                taken[name].append((time.process_time() - began) / (count // 6) * 1000)
        lines = [f"  {name:10} {median(of_layer):7.3f} CPU ms an accepted run" for name, of_layer in taken.items()]
        lines.append(await sampled("api", lambda: _together(count, by_api), count))
        lines.append(await deterministic(lambda: _together(count // 4, by_api)))
    return "\n".join(lines)


async def _drained(on: Ground) -> str:
    count = 100 if on.quick else 500
    async with _open(on, "all") as (platform, _):
        gate = Path(os.environ[GATE])

        async def wait_for(running: int, name: str) -> None:
            async def found(status: str) -> int:
                page = await platform.runs.list(SYSTEM, status=status, name=name, limit=running + 1)
                return len(page.data)

            while await found("queued") or await found("running") != running:
                await asyncio.sleep(0.1)

        async def fill() -> None:
            """Have all turns accepted, while all places are taken."""
            gate.unlink(missing_ok=True)
            for _ in range(PLACES):
                await platform.runs.submit(RunRequest(agent_name="gated", text=QUESTION), SYSTEM)
            await wait_for(PLACES, "gated")
            sessions = [uuid.uuid4() for _ in range(_SESSIONS)]
            for place in range(count):
                request = RunRequest(agent_name=AGENT, text=QUESTION, session_id=sessions[place % _SESSIONS])
                await platform.runs.submit(request, SYSTEM)

        async def drain() -> None:
            gate.touch()
            await wait_for(0, AGENT)

        await fill()
        await drain()
        gc.collect()
        gc.freeze()
        await fill()
        text = [await sampled("a drained turn", drain, count)]
        await fill()
        text.append(await deterministic(drain))
    return "\n".join(text)


def profile_accepted(on: Ground) -> str:
    """The CPU of an accepted run, layer by layer and line by line."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_accepted(on))


def profile_drained(on: Ground) -> str:
    """The CPU of a drained turn, line by line."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drained(on))
