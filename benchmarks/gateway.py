"""What the model gateway adds to a call: streams straight to the scripted provider, and through a run's door, in turn."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gateway_process import TOKEN
from benchmarks.processes import SERVER_CORES, SUPPORT_CORES, Process, cores, python
from benchmarks.report import Result, compare
from benchmarks.report import Target as Goal
from benchmarks.running import Database, Ground, quietly

__all__ = ["added_latency"]

_STREAMS = 50
_PIECES = 40
_PIECE_SECONDS = 0.025
_GOALS: dict[Database, float] = {"sqlite": 2.0, "postgresql": 3.0}
_MODEL = "claude-sonnet-4-6"

# About what the Claude CLI sends at the start of a run: a long system prompt, and twenty tools.
_TOOL: dict[str, Any] = {
    "name": "Tool",
    "description": "What it does, and when it is to be used. " * 40,
    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}}},
}
_REQUEST = {
    "model": _MODEL,
    "max_tokens": 8000,
    "stream": True,
    "system": "You work in a repository. " * 600,
    "tools": [{**_TOOL, "name": f"Tool{number}"} for number in range(20)],
    "messages": [{"role": "user", "content": "Add a file."}],
}
_SCRIPT: dict[str, Any] = {
    "rules": [
        {
            "when": {"prompt": "paced"},
            "turns": [{"text": " ".join(["word"] * _PIECES), "chunk_delay": _PIECE_SECONDS}],
        }
    ],
    "default": {"text": "Done, as you asked."},
}


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to the provider: on a port, or on a unix socket."""

    port: int = 0
    socket: Path | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        if self.socket is not None:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()


@dataclass(frozen=True, slots=True)
class _Took:
    """Seconds from the request to the first byte of the answer and to its last."""

    first: float
    last: float


def added_latency(on: Ground, database: Database) -> list[Result]:
    """The time that the gateway adds to a short streamed call, one at a time; and to the first byte, with 50 streams open."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="am-gw-")))
        script = folder / "script.json"
        script.write_text(json.dumps(_SCRIPT))
        provider = stack.enter_context(
            Process(
                python("-m", "automagik.testing.scripted_messages", "--port", "0", "--script", str(script)),
                on=cores(SUPPORT_CORES, pin=on.pin),
                log=on.log("messages"),
                prints_port=True,
            )
        )
        env = {"ANTHROPIC_API_KEY": "sk-benchmark"}
        if database == "postgresql":
            env["AUTOMAGIK_DATABASE_URL"] = stack.enter_context(on.postgresql())
        stack.enter_context(
            Process(
                python("-m", "benchmarks.gateway_process", str(folder), f"http://127.0.0.1:{provider.port}"),
                on=cores(SERVER_CORES, pin=on.pin),
                log=on.log("gateway"),
                env=env,
            )
        )
        ways = (_Way(port=provider.port), _Way(socket=folder / "api.sock"))
        rounds = 40 if on.quick else 200
        asyncio.run(_warm(ways))
        alone = [quietly(on, lambda: asyncio.run(_alternate(ways, rounds)))[0] for _ in range(on.repetitions)]
        many = [quietly(on, lambda: asyncio.run(_side_by_side(ways, on.quick)))[0] for _ in range(on.repetitions)]
    notes = {"database": database, "request_bytes": len(_request("")), "budget": "one that applies"}
    return [
        compare(
            f"gateway_added_{database}",
            [
                (median(took.last for took in direct) * 1e3, median(took.last for took in ours) * 1e3)
                for direct, ours in alone
            ],
            unit="ms, p50",
            target=Goal("difference", "at most", _GOALS[database]),
            notes={**notes, "what": "a short streamed call, from the request to the last byte", "calls": rounds},
        ),
        compare(
            f"gateway_added_first_byte_{database}",
            [
                (median(took.first for took in direct) * 1e3, median(took.first for took in ours) * 1e3)
                for direct, ours in alone
            ],
            unit="ms, p50",
            target=None,
            notes=notes,
        ),
        compare(
            f"gateway_added_50_streams_{database}",
            [(_p99(direct) * 1e3, _p99(ours) * 1e3) for direct, ours in many],
            unit="ms, p99",
            target=Goal("difference", "at most", 10.0),
            notes={
                **notes,
                "what": f"to the first byte, while {_STREAMS} streams of {1 / _PIECE_SECONDS:g} pieces a second are open",
            },
        ),
    ]


def _p99(taken: list[_Took]) -> float:
    return quantiles((took.first for took in taken), n=100)[98]


def _request(words: str) -> bytes:
    document = {**_REQUEST, "messages": [{"role": "user", "content": f"Add a file. {words}"}]}
    body = json.dumps(document, separators=(",", ":")).encode()  # as JavaScript writes it
    head = (
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"anthropic-version: 2023-06-01\r\nx-api-key: {TOKEN}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _warm(ways: tuple[_Way, ...]) -> None:
    """Wait until both answer, and let both see what they will see."""
    async with asyncio.timeout(30):
        for way in ways:
            while True:
                try:
                    async with way.connected() as (reader, writer):
                        for _ in range(20):
                            await _ask(reader, writer, _request("warm"))
                    break
                except OSError:
                    await asyncio.sleep(0.1)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> _Took:
    began = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    first = time.perf_counter() - began
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode("latin-1"))
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        await reader.readexactly(size + 2)
        if not size:
            return _Took(first, time.perf_counter() - began)


async def _alternate(ways: tuple[_Way, _Way], rounds: int) -> tuple[list[_Took], list[_Took]]:
    """One call at a time, each way in turn, on connections that are kept."""
    taken: tuple[list[_Took], list[_Took]] = ([], [])
    async with ways[0].connected() as direct, ways[1].connected() as ours:
        for number in range(rounds):
            order = (0, 1) if number % 2 else (1, 0)
            for way in order:
                taken[way].append(await _ask(*(direct, ours)[way], _request(f"{number}")))
                await asyncio.sleep(0.01)
    return taken


async def _side_by_side(ways: tuple[_Way, _Way], quick: bool) -> tuple[list[_Took], list[_Took]]:
    """The first bytes of streams that begin one after the other, 50 of them open all the time; one way, then the other."""
    direct, ours = [await _crowd(way, 2 if quick else 6) for way in ways]
    return direct, ours


async def _crowd(way: _Way, each: int) -> list[_Took]:
    taken: list[_Took] = []

    async def one(place: int) -> None:
        await asyncio.sleep(place * _PIECES * _PIECE_SECONDS / _STREAMS)
        async with way.connected() as (reader, writer):
            for number in range(each):
                took = await _ask(reader, writer, _request(f"paced {place} {number}"))
                if number:  # by then all of them are open
                    taken.append(took)

    await asyncio.gather(*(one(place) for place in range(_STREAMS)))
    return taken
