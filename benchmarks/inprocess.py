"""Both sides in one process, called without a wire: CPU per run of each layer, far less noisy than requests a second."""

import asyncio
import gc
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from pydantic_ai import Agent, ModelMessage

from automagik.api import create_api
from automagik.app import Platform
from automagik.runs import RunRequest
from automagik.telemetry import configure_logging
from automagik.types import SYSTEM, Caller
from benchmarks.baseline_app import create_baseline, wire_client, wire_model, wire_provider
from benchmarks.inprocess_model import instant_model
from benchmarks.running import Database, Ground
from benchmarks.scenario import (
    FILLED_PROMPT,
    HISTORY_MESSAGES,
    PLAIN_MODEL,
    QUESTION,
)
from benchmarks.servers import AGENT, MEMORY, prepare

__all__ = ["Layer", "layers", "micro"]

_Ask = Callable[[int], Awaitable[None]]
"""One run; the argument says which of the clients asks."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One way to have the agent answer. `ask` does it once."""

    name: str
    ask: _Ask


@asynccontextmanager
async def layers(on: Ground, database: Database, *, wire: bool, clients: int) -> AsyncGenerator[list[Layer]]:
    """From the inside out: `Agent.run`, the baseline app, the platform's RunService, the platform's API."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-")))
        url = stack.enter_context(on.postgresql()) if database == "postgresql" else None
        model_name = PLAIN_MODEL if wire else None
        prepared = await asyncio.to_thread(prepare, on, folder, model_name, url)
        settings, key = prepared.settings, prepared.key
        configure_logging(settings)
        platform = await stack.enter_async_context(Platform.open(settings))
        api = create_api(platform)
        client = await stack.enter_async_context(wire_client())
        model = wire_model(PLAIN_MODEL, wire_provider(on.provider_url, client)) if wire else instant_model()
        app = create_baseline(model, turns=HISTORY_MESSAGES // 2)
        await stack.enter_async_context(app.router.lifespan_context(app))
        agent = Agent(model, instructions=FILLED_PROMPT)
        history: list[ModelMessage] = []
        for _ in range(HISTORY_MESSAGES // 2):
            history = (await agent.run(QUESTION, message_history=history)).all_messages()
        sessions = [uuid.uuid4() for _ in range(clients)]
        caller: Caller = SYSTEM

        async def ask_agent(_: int) -> None:
            await agent.run(QUESTION, message_history=history)

        async def ask_baseline(_: int) -> None:
            await call_app(app, "/run", {"message_content": QUESTION})

        async def ask_service(number: int) -> None:
            request = RunRequest(
                agent_name=AGENT, text=QUESTION, session_id=sessions[number], message_limit=HISTORY_MESSAGES
            )
            await platform.runs.run(request, caller)

        async def ask_api(number: int) -> None:
            body = {
                "message_content": QUESTION,
                "session_id": str(sessions[number]),
                "message_limit": HISTORY_MESSAGES,
            }
            await call_app(api, f"/api/v1/agent/{AGENT}/run", body, key=key)

        await platform.memories.create(MEMORY, caller)
        for _ in range(HISTORY_MESSAGES // 2):
            await asyncio.gather(*(ask_api(number) for number in range(clients)))
        yield [
            Layer("agent.run", ask_agent),
            Layer("baseline app", ask_baseline),
            Layer("platform service", ask_service),
            Layer("platform api", ask_api),
        ]


async def call_app(app: Any, path: str, body: dict[str, Any], *, key: str | None = None) -> bytes:
    """One POST to an ASGI application, as uvicorn would make it; the answer's body.

    Raises: RuntimeError for another status than 200 or 202.
    """
    content = json.dumps(body).encode()
    headers = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
    ]
    if key is not None:
        headers.append((b"x-api-key", key.encode()))
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8881),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "state": {},
    }
    statuses: list[int] = []
    parts: list[bytes] = []
    inbox = [{"type": "http.request", "body": content, "more_body": False}]
    forever = asyncio.get_running_loop().create_future()

    async def receive() -> Any:
        if inbox:
            return inbox.pop()
        return await forever

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    forever.cancel()
    answer = b"".join(parts)
    if statuses not in ([200], [202]):
        raise RuntimeError(f"{path} answered {statuses}: {answer[:500].decode(errors='replace')}")
    return answer


async def runs(layer: Layer, count: int, clients: int) -> None:
    """`count` runs by `clients` at a time."""
    left = count

    async def go(number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await layer.ask(number)

    await asyncio.gather(*(go(number) for number in range(clients)))


async def micro(on: Ground, database: Database, *, wire: bool, clients: int) -> list[tuple[str, float, float]]:
    """CPU ms (all threads) and wall ms of one run through each layer: medians of interleaved blocks."""
    count = 32 if on.quick else 64
    rounds = 4 if on.quick else 12
    async with layers(on, database, wire=wire, clients=clients) as measured:
        for layer in measured:
            await runs(layer, count, clients)
        # A full collection walks all libraries' objects, 50 ms, and would fall on whichever layer is just measured.
        gc.collect()
        gc.freeze()
        cpu: dict[str, list[float]] = {layer.name: [] for layer in measured}
        wall: dict[str, list[float]] = {layer.name: [] for layer in measured}
        for _ in range(rounds):
            for layer in measured:
                began, used = time.perf_counter(), time.process_time()
                await runs(layer, count, clients)
                cpu[layer.name].append((time.process_time() - used) / count * 1000)
                wall[layer.name].append((time.perf_counter() - began) / count * 1000)
    return [(layer.name, median(cpu[layer.name]), median(wall[layer.name])) for layer in measured]


def micro_table(rows: Sequence[tuple[str, float, float]]) -> str:
    """The layers as text, each against the baseline app."""
    base = next(cpu for name, cpu, _ in rows if name == "baseline app")
    lines = [f"  {'layer':18} {'CPU ms':>8} {'wall ms':>8} {'/ baseline':>11} {'- baseline':>11}"]
    lines += [f"  {name:18} {cpu:8.3f} {wall:8.3f} {cpu / base:11.3f} {cpu - base:+11.3f}" for name, cpu, wall in rows]
    return "\n".join(lines)
