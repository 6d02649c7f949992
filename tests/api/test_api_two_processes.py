"""Streams of runs that another process carries out: real servers on one real PostgreSQL, with and without Valkey."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from automagik.testing.postgres import PostgresServer
from automagik.testing.servers import RunningServer
from automagik.testing.valkey import ValkeyServer

pytestmark = pytest.mark.long

AGENT = """
import asyncio
from pathlib import Path

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

TURNS, WORDS = 4, 30


async def stream(messages: list[ModelMessage], info: AgentInfo):
    turn = sum(isinstance(message.parts[-1], ToolReturnPart) for message in messages)
    for word in range(WORDS):
        yield f"turn {turn} word {word} "
        await asyncio.sleep(0.02)
    if turn < TURNS:
        yield {1: DeltaToolCall("work", "{}", tool_call_id=f"call-{turn}")}


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse(parts=[TextPart("unused")])


agent = Agent(FunctionModel(answer, stream_function=stream), name="novelist")


@agent.tool_plain
async def work() -> str:
    \"\"\"Work.\"\"\"
    global calls
    calls += 1
    await asyncio.sleep(0.05)
    while calls == TURNS - 1 and not Path(__file__).with_name("go").exists():
        await asyncio.sleep(0.02)
    return "done"


calls = 0
"""

COMPLETED = ["".join(f"turn {turn} word {word} " for word in range(30)) for turn in range(5)]


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of these tests' own, for they break its connections."""
    with PostgresServer() as server:
        yield server


@dataclass
class Watched:
    """What one reader of a stream has seen."""

    seqs: list[int] = field(default_factory=list[int])
    kinds: list[str] = field(default_factory=list[str])
    messages: list[str] = field(default_factory=list[str])
    text: str = ""
    whole: list[bool] = field(default_factory=list[bool])
    """For each message of which text came, whether that had grown to exactly what the message then was."""

    def take(self, kind: str, seq: int | None, data: dict[str, Any]) -> None:
        self.kinds.append(kind)
        if seq is not None:
            self.seqs.append(seq)
        if kind == "text_snapshot":
            self.text = data["text"]
        elif kind == "text_delta":
            self.text += data["text"]
        elif kind == "message_completed":
            self.messages.append(data["text"])
            if self.text:
                self.whole.append(self.text == data["text"])
            self.text = ""


class Reader(threading.Thread):
    """Reads a run's stream on one server; goes on where it was when the connection breaks."""

    def __init__(self, server: RunningServer, key: str, run_id: str, *, after: int = 0) -> None:
        super().__init__(daemon=True)
        self.seen = Watched()
        self._server, self._key, self._run_id, self._after = server, key, run_id, after
        self.start()

    def run(self) -> None:
        headers = {"x-api-key": self._key, "accept": "text/event-stream", "last-event-id": str(self._after)}
        with (
            httpx2.Client(timeout=30) as client,
            client.stream("GET", f"{self._server.url}/api/v1/runs/{self._run_id}/events", headers=headers) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    event = orjson.loads(line[6:])
                    self.seen.take(event["type"], event["seq"], event["data"])

    def end(self) -> Watched:
        """What came, when the stream has ended."""
        self.join(40)
        assert not self.is_alive()
        return self.seen


@contextmanager
def two_servers(
    folder: Path,
    postgres: PostgresServer,
    *,
    commands: Sequence[Sequence[str]] = (("serve",), ("serve",)),
    **settings: str,
) -> Generator[list[RunningServer]]:
    url = postgres.create_database()
    with ExitStack() as stack:
        stack.callback(postgres.drop_database, url)
        servers: list[RunningServer] = []
        for name, command in zip(("a", "b"), commands, strict=True):
            agents = folder / name / "agents"
            agents.mkdir(parents=True)
            (agents / "novelist.py").write_text(AGENT)
            shared = {
                "AUTOMAGIK_DATABASE_URL": url,
                "AUTOMAGIK_CONFIG_DIR": str(folder / "config"),
                "AUTOMAGIK_SECRET_KEY": "A" * 43 + "=",
                **settings,
            }
            servers.append(stack.enter_context(RunningServer(folder / name, settings=shared, command=command)))
        yield servers


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def begin(server: RunningServer, key: str) -> tuple[str, Reader]:
    """A run that streams on `server`: its id, and a reader there."""
    headers = {"x-api-key": key}
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=30) as client:
        threading.Thread(
            target=lambda: httpx2.post(
                f"{server.url}/api/v1/agent/novelist/run/stream",
                headers=headers,
                json={"message_content": "go"},
                timeout=60,
            ),
            daemon=True,
        ).start()
        while True:
            runs = client.get("/runs", params={"status": "running"}).json()["data"]
            if runs:
                return runs[0]["run_id"], Reader(server, key, runs[0]["run_id"])
            time.sleep(0.01)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def go(folder: Path) -> None:
    """Let the run go on to its end, which waits for this in its last call but one: whatever a test does before meets it at work."""
    for name in ("a", "b"):
        (folder / name / "agents" / "go").touch()


def is_complete(seen: Watched, *, after: int = 0) -> None:
    assert seen.seqs == list(range(after + 1, seen.seqs[-1] + 1))
    assert seen.kinds[-1] == "run_finished"


def test_a_stream_on_another_server_has_every_event_and_the_text_as_it_is_written(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with two_servers(tmp_path, postgres_server) as (a, b):
        run_id, own = begin(a, a.key)
        readers = [Reader(b, a.key, run_id)]
        time.sleep(0.7)
        readers += [Reader(b, a.key, run_id, after=after) for after in (0, 1)]
        time.sleep(0.7)
        readers.append(Reader(b, a.key, run_id, after=3))
        until(lambda: all(reader.seen.kinds for reader in readers))
        go(tmp_path)
        for reader, after in zip(readers, (0, 0, 1, 3), strict=True):
            seen = reader.end()
            is_complete(seen, after=after)
            assert all(seen.whole)
            assert "text_delta" in seen.kinds
        assert readers[0].seen.messages == COMPLETED
        assert own.end().seqs == readers[0].seen.seqs


def test_nothing_is_missed_when_every_connection_to_the_database_is_broken_in_the_middle(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with two_servers(tmp_path, postgres_server) as (a, b):
        run_id, _ = begin(a, a.key)
        reader = Reader(b, a.key, run_id)
        for _ in range(3):
            time.sleep(0.5)
            postgres_server.break_connections()
        go(tmp_path)
        seen = reader.end()
        is_complete(seen)
        assert seen.messages == COMPLETED
        assert seen.whole[-1]


def test_nothing_is_missed_when_redis_is_killed_in_the_middle_and_started_again(
    tmp_path: Path, postgres_server: PostgresServer, valkey: ValkeyServer
) -> None:
    with two_servers(tmp_path, postgres_server, AUTOMAGIK_REDIS_URL=valkey.url) as (a, b):
        run_id, _ = begin(a, a.key)
        reader = Reader(b, a.key, run_id)
        time.sleep(0.8)
        valkey.kill()
        time.sleep(0.8)
        valkey.start()
        go(tmp_path)
        seen = reader.end()
        is_complete(seen)
        assert seen.messages == COMPLETED
        assert seen.whole[-1]
        assert sum('"redis_away"' in line for line in b.output.splitlines()) == 1


def test_a_stream_goes_on_at_another_server_when_its_own_is_killed(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with two_servers(tmp_path, postgres_server) as (a, b):
        run_id, _ = begin(a, a.key)
        first = Reader(b, a.key, run_id)
        time.sleep(1)
        until(lambda: first.seen.seqs)
        b.kill()
        first.join(10)
        seen = first.seen
        assert seen.seqs == list(range(1, len(seen.seqs) + 1))
        b.start()
        reader = Reader(b, a.key, run_id, after=seen.seqs[-1])
        go(tmp_path)
        rest = reader.end()
        is_complete(rest, after=seen.seqs[-1])
        assert seen.messages + rest.messages == COMPLETED


def test_a_server_without_workers_streams_what_a_worker_does_from_the_moment_of_acceptance(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    commands = (("serve", "--api-only"), ("worker",))
    with two_servers(tmp_path, postgres_server, commands=commands) as (a, _):
        headers = {"x-api-key": a.key}
        url = f"{a.url}/api/v1/agent/novelist/run/async"
        accepted = httpx2.post(url, headers=headers, json={"message_content": "go"}, timeout=30).json()
        go(tmp_path)
        seen = Reader(a, a.key, accepted["run_id"]).end()
        is_complete(seen)
        assert seen.kinds[:2] == ["run_queued", "run_started"]
        assert seen.messages == COMPLETED
        assert seen.whole == [True] * 5
