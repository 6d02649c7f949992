"""The baseline: the smallest FastAPI app that asks a Pydantic AI agent and stores nothing.

`POST /run` calls `Agent.run`, `POST /stream` calls `run_stream_events` behind FastAPI's own server-sent events. The history
of the conversation stands in memory: as many turns as `--turns` says, made by the agent itself before it serves.
The server is set up as the platform's own: uvicorn, uvloop, httptools, no access log.
"""

import argparse
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

import httpx2
import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunResultEvent, ModelMessage, PartDeltaEvent, PartStartEvent, TextPartDelta
from pydantic_ai.messages import TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from benchmarks.inprocess_model import instant_model
from benchmarks.scenario import FILLED_PROMPT, PLAIN_MODEL, QUESTION, WARM_MODEL

__all__ = ["Answered", "Asked", "create_baseline", "wire_client", "wire_model", "wire_provider"]

_NONE: Mapping[str, Model] = MappingProxyType({})


class Asked(BaseModel):
    """The body of both routes."""

    message_content: str
    model: str | None = None
    """Another model than the app's, by its name on the wire."""


class Answered(BaseModel):
    """What `/run` answers."""

    message: str


def wire_model(name: str, provider: OpenAIProvider) -> Model:
    """A model behind the scripted provider."""
    return OpenAIChatModel(name, provider=provider)


def wire_provider(base_url: str, client: httpx2.AsyncClient) -> OpenAIProvider:
    """OpenAI's client for `base_url`, over one shared HTTP client."""
    return OpenAIProvider(base_url=base_url, api_key="none", http_client=client)


def wire_client() -> httpx2.AsyncClient:
    """The HTTP client that all runs share, with OpenAI's own time limits and room for every stream."""
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(timeout=600, connect=5.0),
        limits=httpx2.Limits(max_connections=2000, max_keepalive_connections=256),
    )


def create_baseline(model: Model, *, turns: int, others: Mapping[str, Model] = _NONE) -> FastAPI:
    """The app over `model`, with a conversation of `turns` turns (made with `PLAIN_MODEL`, where it is among `others`) in memory."""
    agent = Agent(model, instructions=FILLED_PROMPT)
    history: list[ModelMessage] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        for _turn in range(turns):
            history[:] = (
                await agent.run(QUESTION, message_history=history, model=others.get(PLAIN_MODEL))
            ).all_messages()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    async def ready() -> str:
        return "ok"

    @app.post("/run")
    async def run(asked: Asked) -> Answered:
        result = await agent.run(asked.message_content, message_history=history, model=others.get(asked.model or ""))
        return Answered(message=result.output)

    @app.post("/stream", response_class=EventSourceResponse)
    async def stream(asked: Asked) -> AsyncIterator[ServerSentEvent]:
        model = others.get(asked.model or "")
        async with agent.run_stream_events(asked.message_content, message_history=history, model=model) as events:
            async for event in events:
                if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                    yield ServerSentEvent(data=event.delta.content_delta, event="text")
                elif isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                    if event.part.content:
                        yield ServerSentEvent(data=event.part.content, event="text")
                elif isinstance(event, AgentRunResultEvent):
                    yield ServerSentEvent(data={"tokens": event.result.usage.output_tokens}, event="done")

    return app


def _main() -> None:
    parser = argparse.ArgumentParser(description="The baseline app.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--base-url", help="the scripted provider; absent: the in-process model")
    parser.add_argument("--model", default="scripted", help="the model's name on the wire")
    options = parser.parse_args()
    if options.base_url is None:
        app = create_baseline(instant_model(), turns=options.turns)
    else:
        provider = wire_provider(options.base_url, wire_client())
        others = {name: wire_model(name, provider) for name in (PLAIN_MODEL, WARM_MODEL)}
        app = create_baseline(wire_model(options.model, provider), turns=options.turns, others=others)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", options.port))
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, backlog=4096)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    _main()
