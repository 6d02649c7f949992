"""The queue's baseline: procrastinate behind the smallest FastAPI app (`serve`), and its worker (`work`).

`POST /defer` defers a job and answers 202. A job is `nothing`, or `answer`, which asks the agent that the platform's
benchmarks ask, with ten turns of conversation in memory, and stores nothing; `gated` waits for the gate of
`queue_models`. The server is set up as the platform's own, and both use uvloop.
"""

import argparse
import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn
import uvloop
from fastapi import FastAPI
from procrastinate import App, PsycopgConnector
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage

from benchmarks.inprocess_model import instant_model
from benchmarks.queue_models import GATE
from benchmarks.scenario import FILLED_PROMPT, HISTORY_MESSAGES, QUESTION

__all__ = ["CONCURRENCY", "Deferred", "make_queue"]

CONCURRENCY: Final = 16
"""Jobs at once of each worker: the platform's default, too."""

_CONNECTIONS = 20
"""One for each job, and those that the worker itself needs."""
_GATE_SECONDS = 0.05


class Deferred(BaseModel):
    """The body of `/defer`."""

    task: str
    message_content: str = QUESTION
    lock: str | None = None
    """Jobs with the same lock are carried out one after the other."""
    has_history: bool = True
    """Whether the agent sees the conversation that is in memory."""


def make_queue(url: str) -> App:
    """The queue in the database at `url`, with all tasks."""
    queue = App(connector=PsycopgConnector(conninfo=url, min_size=4, max_size=_CONNECTIONS))
    agent = Agent(instant_model(), instructions=FILLED_PROMPT)
    history: list[ModelMessage] = []

    @queue.task(name="nothing")
    async def nothing(message_content: str, has_history: bool) -> None:
        """Do nothing."""

    @queue.task(name="answer")
    async def answer(message_content: str, has_history: bool) -> str:
        while len(history) < HISTORY_MESSAGES:
            history[:] = (await agent.run(QUESTION, message_history=history)).all_messages()
        return (await agent.run(message_content, message_history=history if has_history else None)).output

    @queue.task(name="gated")
    async def gated(message_content: str, has_history: bool) -> None:
        gate = Path(os.environ[GATE])
        while not gate.exists():
            await asyncio.sleep(_GATE_SECONDS)

    return queue


def _create_server(queue: App) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with queue.open_async():
            yield

    server = FastAPI(lifespan=lifespan)

    @server.get("/ready")
    async def ready() -> str:
        return "ok"

    @server.post("/defer", status_code=202)
    async def defer(deferred: Deferred) -> int:
        task = queue.configure_task(deferred.task, lock=deferred.lock)
        return await task.defer_async(message_content=deferred.message_content, has_history=deferred.has_history)

    return server


def _serve(queue: App, port: int) -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    config = uvicorn.Config(_create_server(queue), log_config=None, access_log=False, server_header=False, backlog=4096)
    uvicorn.Server(config).run(sockets=[listening])


async def _work(queue: App) -> None:
    async with queue.open_async():
        print("worker_ready", flush=True)
        await queue.run_worker_async(concurrency=CONCURRENCY)


def _main() -> None:
    parser = argparse.ArgumentParser(description="The queue's baseline.")
    parser.add_argument("role", choices=("serve", "work"))
    parser.add_argument("--url", required=True, help="the PostgreSQL database, with procrastinate's tables")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    queue = make_queue(options.url)
    if options.role == "serve":
        _serve(queue, options.port)
    else:
        uvloop.run(_work(queue))


if __name__ == "__main__":
    _main()
