"""An OpenAI-compatible server on this machine, found by asking. Nothing but 127.0.0.1 is ever contacted."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import httpcore2
from pydantic import BaseModel, ValidationError

__all__ = ["DEFAULT_PORTS", "Discovery", "LocalServer"]

DEFAULT_PORTS = (11434, 8080, 1234, 8000)
"""Ollama, llama-server, LM Studio, vLLM: the first that answers in this order is taken."""

_HOST = "127.0.0.1"
_SECONDS = 0.5
_MAX_BYTES = 1024 * 1024
_MAX_NAME_CHARS = 200
_NO_CHAT = re.compile(r"embed|rerank|minilm|whisper|\bbge\b|\bgte\b|\be5\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that was found, and the model of it that is used."""

    base_url: str
    model: str

    @property
    def model_name(self) -> str:
        """The model as the registry takes it."""
        return f"openai-chat:{self.model}"


class _Entry(BaseModel):
    id: str


class _Listing(BaseModel):
    data: list[_Entry]


class Discovery:
    """Looks for a server on `ports`."""

    def __init__(self, ports: Sequence[int] = DEFAULT_PORTS) -> None:
        self._ports = tuple(ports)

    async def search(self) -> LocalServer | None:
        """The first server, in the order of the ports, that lists a model to talk with; within half a second."""
        # A bare pool: no redirects, cookies, proxies or decompression, so that whatever answers can do nothing.
        async with httpcore2.AsyncConnectionPool(max_connections=len(self._ports) or 1) as pool:
            found = await asyncio.gather(*(_probe(pool, port) for port in self._ports))
        return next((server for server in found if server is not None), None)


async def _probe(pool: httpcore2.AsyncConnectionPool, port: int) -> LocalServer | None:
    try:
        async with asyncio.timeout(_SECONDS):
            content = await _get(pool, port)
        listing = _Listing.model_validate_json(content)
    except (TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError, ValidationError):
        return None
    for entry in listing.data:
        if _talks(entry.id):
            return LocalServer(f"http://{_HOST}:{port}/v1", entry.id)
    return None


async def _get(pool: httpcore2.AsyncConnectionPool, port: int) -> bytes:
    """What `/v1/models` answers; nothing (which is no list) where it isn't a 200 or is larger than a list can be."""
    url = httpcore2.URL(scheme=b"http", host=_HOST.encode(), port=port, target=b"/v1/models")
    headers = [("Host", f"{_HOST}:{port}"), ("Accept", "application/json"), ("Accept-Encoding", "identity")]
    content = bytearray()
    async with pool.stream("GET", url, headers=headers) as response:
        if response.status != 200:
            return b""
        async for piece in response.aiter_stream():
            content += piece
            if len(content) > _MAX_BYTES:
                return b""
    return bytes(content)


def _talks(model: str) -> bool:
    return 0 < len(model) <= _MAX_NAME_CHARS and model.isprintable() and _NO_CHAT.search(model) is None
