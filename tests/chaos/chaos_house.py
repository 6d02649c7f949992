"""Real processes over one real PostgreSQL, which are killed, frozen and cut off while clients go on asking."""

import asyncio
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import httpx2
from pydantic import SecretStr

from automagik.settings import Settings
from automagik.store import Store
from automagik.testing.postgres import PostgresServer
from automagik.types import SystemClock

__all__ = ["Asked", "Fleet", "Instance", "open_fleet"]

AGENT = """
import asyncio
import itertools

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from automagik.agents import AgentConfig
from automagik.agents.built import PydanticAgent


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    text = str(messages[-1].parts[-1].content)
    await asyncio.sleep(float(text.split()[0]))
    return ModelResponse(parts=[TextPart(f"answer to {text}")])


async def stream(messages: list[ModelMessage], info: AgentInfo):
    yield (await answer(messages, info)).parts[0].content


agent = PydanticAgent(
    Agent(FunctionModel(answer, stream_function=stream), name="patient"),
    config=AgentConfig(message_limit=2, max_attempts=20),
)
"""

_START_SECONDS = 120
_END_SECONDS = 120


class Instance:
    """One process: `automagik serve --api-only` or `automagik worker`, started again whenever it is gone."""

    def __init__(self, name: str, role: Literal["api", "worker"], folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.role = role
        self.url = ""
        self.starts = 0
        self.log = folder / f"{name}.log"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._wanted = True

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and see to it that it is always there."""
        await self._launch()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> int:
        """End it as a supervisor does; its exit code."""
        self._wanted = False
        if self._keeping is not None:
            self._keeping.cancel()
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, 40)

    async def restart(self) -> int:
        """End it as a supervisor does and start it anew; the old one's exit code."""
        self._wanted = True
        if self._keeping is not None:
            self._keeping.cancel()
        code = await self.stop()
        self._wanted = True
        await self.start()
        return code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal: SIGKILL, SIGSTOP, SIGCONT."""
        os.kill(self.pid, number)

    async def _launch(self) -> None:
        command = ["serve", "--api-only"] if self.role == "api" else ["worker"]
        ready = "server_ready" if self.role == "api" else "worker_ready"
        with self.log.open("ab") as output:
            began = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "automagik", *command],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.starts += 1
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            written = self.log.read_bytes()[began:].decode(errors="replace")
            if ready in written:
                found = re.search(r"http://127\.0\.0\.1:\d+", written)
                self.url = found.group(0) if found else ""
                return
            if self._process.poll() is not None:
                return  # it is started again
            await asyncio.sleep(0.05)
        raise AssertionError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    async def _keep(self) -> None:
        while self._wanted:
            assert self._process is not None
            if self._process.poll() is not None:
                await self._launch()
            await asyncio.sleep(0.05)


@dataclass(slots=True)
class Asked:
    """One request and the run that it became."""

    key: str
    session_id: str
    text: str
    run_id: str = ""


@dataclass
class Fleet:
    """Two servers, two workers, their database, and a key."""

    server: PostgresServer
    store: Store
    key: str
    apis: list[Instance]
    workers: list[Instance]
    asked: list[Asked] = field(default_factory=list[Asked])
    statuses: Counter[int] = field(default_factory=Counter[int])

    @property
    def instances(self) -> list[Instance]:
        """All processes."""
        return [*self.apis, *self.workers]

    async def ask(self, client: httpx2.AsyncClient, asked: Asked) -> None:
        """Give a run to whichever server answers, by one idempotency key, until one has accepted it."""
        body = {"message_content": asked.text, "session_id": asked.session_id}
        headers = {"x-api-key": self.key, "idempotency-key": asked.key}
        while True:
            api = random.choice(self.apis)
            try:
                answer = await client.post(f"{api.url}/api/v1/agent/patient/run/async", json=body, headers=headers)
            except httpx2.TransportError:
                await asyncio.sleep(0.2)
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code == 202:
                asked.run_id = answer.json()["run_id"]
                self.asked.append(asked)
                return
            assert answer.status_code in {429, 503}, answer.text
            await asyncio.sleep(0.2)

    async def ask_all(self, count: int, sessions: int, *, seconds: float, over: float) -> None:
        """Ask `count` times in `sessions` sessions, each answer taking `seconds`, spread over the time `over`."""
        ids = [str(uuid.uuid4()) for _ in range(sessions)]
        lines = {session_id: asyncio.Lock() for session_id in ids}
        began = time.monotonic()

        async def one(client: httpx2.AsyncClient, place: int) -> None:
            session_id = ids[place % sessions]
            await asyncio.sleep(max(0.0, began + place * over / count - time.monotonic()))
            async with lines[session_id]:  # so that the order of asking is the order of acceptance
                await self.ask(client, Asked(f"{ids[0]}-{place}", session_id, f"{seconds} {place}"))

        async with httpx2.AsyncClient(timeout=20) as client:
            await asyncio.gather(*(one(client, place) for place in range(count)))

    async def all_ended(self) -> dict[str, dict[str, Any]]:
        """Every run that was asked, once all have ended."""
        deadline = time.monotonic() + _END_SECONDS
        while True:
            rows = await self.store.read(lambda tx: [tx.runs.get(asked.run_id) for asked in self.asked])
            left = [row for row in rows if row.finished_at is None]
            if not left:
                return {row.run_id: {"status": row.status, "outcome": row.outcome, "row": row} for row in rows}
            assert time.monotonic() < deadline, f"{len(left)} runs did not end: {left[:3]}"
            await asyncio.sleep(0.5)

    async def check(self) -> dict[str, dict[str, Any]]:
        """All promises: every run ended well, one run for each key, each message once, in order, one turn at a time."""
        ended = await self.all_ended()
        assert {run["status"] for run in ended.values()} == {"completed"}, Counter(
            (run["status"], run["outcome"]) for run in ended.values()
        )
        assert len(ended) == len(self.asked) == len({asked.key for asked in self.asked})
        assert await self.store.read(lambda tx: len(tx.runs.list(limit=1000).data)) == len(self.asked)
        by_session: dict[str, list[Asked]] = {}
        for asked in self.asked:
            by_session.setdefault(asked.session_id, []).append(asked)
        for session_id, line in by_session.items():
            line.sort(key=lambda asked: ended[asked.run_id]["row"].run_id)
            await self._check_session(session_id, line, ended)
        assert await self.store.read(lambda tx: (tx.queue.owners(), tx.queue.stuck_sessions())) == ([], [])
        return ended

    async def _check_session(self, session_id: str, line: list[Asked], ended: dict[str, dict[str, Any]]) -> None:
        session = await self.store.read(lambda tx: tx.sessions.get(uuid.UUID(session_id)))
        messages = (await self.store.read(lambda tx: tx.messages.list(session.id, limit=1000))).data[::-1]
        texts = [message.content for message in messages]
        places = [int(asked.text.split()[1]) for asked in line]
        assert places == sorted(places), "accepted out of order"
        assert texts == [text for asked in line for text in (asked.text, f"answer to {asked.text}")]
        rows = [ended[asked.run_id]["row"] for asked in line]
        for before, after in itertools.pairwise(rows):
            assert before.finished_at <= after.started_at, "two runs of a session at once"
        for row in rows:
            events = await self.store.read(lambda tx, run_id=row.run_id: tx.events.list(run_id))
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert [event.type for event in events].count("run_finished") == 1
            assert events[-1].type == "run_finished"


@asynccontextmanager
async def open_fleet(folder: Path, server: PostgresServer, *, apis: int = 2, workers: int = 2) -> AsyncGenerator[Fleet]:
    """A fleet that is ready."""
    agents = folder / "agents"
    agents.mkdir(parents=True)
    (agents / "patient.py").write_text(AGENT)
    url = server.create_database()
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "AUTOMAGIK_DATA_DIR": str(folder),
        "AUTOMAGIK_CONFIG_DIR": str(folder / "config"),
        "AUTOMAGIK_DATABASE_URL": url,
        "AUTOMAGIK_MODEL": "demo",
        "AUTOMAGIK_PORT": "0",
        "AUTOMAGIK_LOG_FORMAT": "json",
    }
    subprocess.run(
        [sys.executable, "-m", "automagik", "keys", "create", "--first"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    )
    key = cast("str", json.loads((folder / "config" / "profile.json").read_text())["key"])
    store = Store.from_settings(Settings(data_dir=folder, database_url=SecretStr(url)), SystemClock())
    await store.open()
    fleet = Fleet(
        server,
        store,
        key,
        [Instance(f"api-{place}", "api", folder, environment) for place in range(apis)],
        [Instance(f"worker-{place}", "worker", folder, environment) for place in range(workers)],
    )
    try:
        await asyncio.gather(*(instance.start() for instance in fleet.instances))
        yield fleet
    finally:
        codes = await asyncio.gather(*(instance.stop() for instance in fleet.instances), return_exceptions=True)
        await store.close()
        print({instance.name: code for instance, code in zip(fleet.instances, codes, strict=True)})
