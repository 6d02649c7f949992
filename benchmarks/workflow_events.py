"""How soon a reader of the API sees what the Claude CLI wrote, in a whole run of a workflow: server, sandbox, gateway."""

import asyncio
import json
import shutil
import subprocess
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2

from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.servers import RunningServer
from benchmarks.delays import TEXT, delay_results
from benchmarks.report import Result
from benchmarks.report import Target as Goal
from benchmarks.running import Ground, quietly

__all__ = ["event_seen"]

_LOOK_SECONDS = 0.001
_ROUNDS = 12
"""Calls of a tool in a run, each with text before it."""
_SECONDS = 120


def event_seen(on: Ground) -> list[Result]:
    """From the moment a line stands in the executor's log of the CLI's output to its event's receipt by an SSE reader: p95."""
    with asyncio.Runner() as runner:
        ready = _ready()
        bench = runner.run(ready.__aenter__())
        try:
            runner.run(_run(bench, "warm up"))
            taken = [
                quietly(on, lambda number=number: runner.run(_run(bench, f"run {number}")))
                for number in range(on.repetitions)
            ]
        finally:
            runner.run(ready.__aexit__(None, None, None))
    notes = {"executor": "local", "tools_a_run": _ROUNDS, "log_is_looked_at_every_ms": _LOOK_SECONDS * 1000}
    return delay_results(
        taken,
        events=("workflow_event_seen", Goal("figure", "at most", 100.0)),
        texts=("workflow_text_seen", Goal("figure", "at most", 100.0)),
        notes=notes,
    )


class _Written:
    """Watches the log of a run's CLI from a thread of its own, and notes when each line was there."""

    def __init__(self, executions: Path, run_id: str) -> None:
        self._file = executions / run_id / "events.jsonl"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.at: list[float] = []
        """When line n was there, at n - 1."""
        self.text_chars: list[int] = []
        """How much text there was in all after each piece of it."""
        self.text_at: list[float] = []
        self._thread.start()

    def end(self) -> None:
        """Look no longer."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._file.exists() and not self._end.is_set():
            time.sleep(_LOOK_SECONDS)
        rest = b""
        with self._file.open("rb", buffering=0) as file:
            while not self._end.is_set():
                chunk = file.read(1 << 20)
                if not chunk:
                    time.sleep(_LOOK_SECONDS)
                    continue
                now = time.monotonic()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self.at.append(now)
                    self._note_text(line, now)

    def _note_text(self, line: bytes, now: float) -> None:
        if b'"text_delta"' in line:
            text = json.loads(line)["event"]["delta"]["text"]
            self.text_chars.append(len(text) + (self.text_chars[-1] if self.text_chars else 0))
            self.text_at.append(now)


class _Bench:
    """A server that is ready, and the repository that its runs work on."""

    def __init__(
        self, server: RunningServer, data: Path, client: httpx2.AsyncClient, repository: dict[str, str]
    ) -> None:
        self.server = server
        self.executions = data / "executions"
        self.client = client
        self.repository = repository


@asynccontextmanager
async def _ready() -> AsyncGenerator[_Bench]:
    folder = Path(tempfile.mkdtemp(prefix="am-bench-"))  # short: sockets stand in it
    try:
        data = folder / "data"
        workflow = data / "workflows" / "bench"
        workflow.mkdir(parents=True)
        (workflow / "prompt.md").write_text("Do what you are asked.")
        (workflow / "allowed_tools.json").write_text('{"allow": ["Bash"]}')
        (workflow / "workflow.toml").write_text('display_name = "Bench"\ndescription = "For benchmarks"\n')
        async with ScriptedMessages(_script(), port=0, keep=False) as api:
            settings = {
                "ANTHROPIC_API_KEY": "sk-ant-bench",
                "ANTHROPIC_BASE_URL": api.base_url,
                "AUTOMAGIK_EXECUTOR": "local",
            }
            server = RunningServer(data, settings=settings)
            await asyncio.to_thread(server.__enter__)
            try:
                async with httpx2.AsyncClient(
                    base_url=f"{server.url}/api/v1", headers={"x-api-key": server.key}, timeout=60, trust_env=False
                ) as client:
                    bundle = await asyncio.to_thread(_bundle, folder)
                    sent = await client.post(
                        "/repositories", content=bundle, headers={"content-type": "application/x-git-bundle"}
                    )
                    yield _Bench(server, data, client, {"bundle": sent.json()["bundle"], "name": "bench"})
            finally:
                await asyncio.to_thread(server.stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _script() -> dict[str, Any]:
    def turn(number: int) -> dict[str, Any]:
        run = {"command": f"echo {number}; perl -e 'select(undef, undef, undef, 0.2)'", "description": "Wait a little"}
        text = f"This is step number {number} of them all, of which something is said in some words before it is done."
        return {"text": text, "chunk_delay": 0.03, "tool_use": [{"name": "Bash", "input": run}]}

    turns = [*map(turn, range(_ROUNDS)), {"text": "That was all."}]
    return {"rules": [{"when": {"tools": True}, "turns": turns}], "default": {"text": "OK"}}


def _bundle(folder: Path) -> bytes:
    init = (
        "git init -q -b main repository && cd repository && echo a > a.txt && git add a.txt && "
        "git -c user.name=A -c user.email=a@example.org commit -q -m First && git bundle create -q ../it.bundle HEAD"
    )
    subprocess.run(["sh", "-c", init], cwd=folder, check=True)
    return (folder / "it.bundle").read_bytes()


async def _run(bench: _Bench, task: str) -> dict[str, list[float]]:
    """Delays in ms of one run's events, by their type; of text, of each piece as it came."""
    asked = {"message_content": task, "repository": bench.repository, "executor": "local"}
    begun = await bench.client.post("/workflows/bench/run", json=asked)
    run_id = cast("str", begun.json()["run_id"])
    written = _Written(bench.executions, run_id)
    came: list[tuple[float, dict[str, Any]]] = []
    try:
        async with (
            asyncio.timeout(_SECONDS),
            bench.client.stream("GET", f"/runs/{run_id}/events", headers={"accept": "text/event-stream"}) as stream,
        ):
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    event = cast("dict[str, Any]", json.loads(line.removeprefix("data: ")))
                    came.append((time.monotonic(), event))
    finally:
        written.end()
    run = (await bench.client.get(f"/runs/{run_id}")).json()
    if run["outcome"] != "completed":
        raise RuntimeError(f"the run ended {run['outcome']}: {run['error']}")
    return _delays(came, written)


def _delays(came: list[tuple[float, dict[str, Any]]], written: _Written) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    chars = 0
    for at, event in came:
        data = event["data"]
        if event["type"] == TEXT:
            chars += len(cast("str", data["text"]))
            found[TEXT].append((at - written.text_at[bisect_left(written.text_chars, chars)]) * 1000)
        elif "line" in data:
            found[event["type"]].append((at - written.at[cast("int", data["line"]) - 1]) * 1000)
    return found
