"""The servers that are measured, each ready with its requests: the baseline, and the platform's own `automagik serve`."""

import asyncio
import json
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import SecretStr

from automagik.memory import MemoryInput, MemoryStore
from automagik.security import KeyRing
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SYSTEM, SystemClock
from benchmarks.load import Plan, Target
from benchmarks.processes import SERVER_CORES, SUPPORT_CORES, Process, cores, free_port, python
from benchmarks.running import Database, Ground, measure
from benchmarks.scenario import (
    AGENT_VARIABLE,
    HISTORY_MESSAGES,
    PLAIN_MODEL,
    PROMPT,
    QUESTION,
    VARIABLE_VALUE,
    WARM_MODEL,
)

__all__ = [
    "AGENT",
    "MEMORY",
    "Baseline",
    "Platform",
    "Prepared",
    "Scenario",
    "baseline",
    "http_request",
    "platform",
    "prepare",
    "remember",
    "worker",
]

AGENT = "bench"

MEMORY = MemoryInput(name=AGENT_VARIABLE, content=VARIABLE_VALUE, agent=AGENT)

_AGENT_FILE = f"""\
from automagik.agents import AgentConfig, SimpleAgent
from benchmarks.inprocess_model import instant_model

_MODEL = instant_model()


class BenchAgent(SimpleAgent):
    name = "{AGENT}"
    config = AgentConfig(instructions={PROMPT!r}, variables={{"{AGENT_VARIABLE}": ""}})
    _code_prompt_text = ""

    async def model_for(self, options):
        return _MODEL
"""

_AGENT_SPEC = f"""\
name: {AGENT}
model: openai-chat:MODEL
instructions: "{PROMPT}"
variables: {{{AGENT_VARIABLE}: ""}}
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What both sides do. `model` None is the in-process model, else the name given to the scripted provider."""

    model: str | None = None
    clients: int = 16
    stream: bool = False
    history: bool = True
    """Whether each request sees `HISTORY_MESSAGES` messages of its conversation."""
    fresh_sessions: int = 0
    """So many sessions of one request each instead of one session a client, where there is no history."""
    question: str = QUESTION


@dataclass(frozen=True, slots=True)
class Baseline:
    """The baseline app, ready."""

    process: Process
    target: Target
    warm: Target
    """The same route with a model that answers at once."""


@dataclass(frozen=True, slots=True)
class Platform:
    """The platform, ready. `key` is an administrator's."""

    process: Process
    target: Target
    warm: Target
    """The same route with a model that answers at once."""
    key: str
    data_dir: Path


def http_request(path: str, body: dict[str, Any], *, key: str | None = None) -> str:
    """A whole HTTP/1.1 POST."""
    content = json.dumps(body)
    auth = f"x-api-key: {key}\r\n" if key else ""
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{auth}"
        f"content-length: {len(content.encode())}\r\n\r\n{content}"
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data folder that a server can be started on."""

    env: dict[str, str]
    """The server's environment."""
    settings: Settings
    """The same, for use in this process."""
    key: str
    """An administrator's key."""


@contextmanager
def baseline(ground: Ground, scenario: Scenario, *, on: frozenset[int] = SERVER_CORES) -> Generator[Baseline]:
    """The baseline app for a scenario."""
    port = free_port()
    turns = HISTORY_MESSAGES // 2 if scenario.history else 0
    command = python("-m", "benchmarks.baseline_app", "--port", str(port), "--turns", str(turns))
    if scenario.model is not None:
        command += ["--base-url", ground.provider_url, "--model", scenario.model]
    with Process(command, on=cores(on, pin=ground.pin), log=ground.log("baseline")) as process:
        process.wait_ready(f"http://127.0.0.1:{port}/ready")
        path = "/stream" if scenario.stream else "/run"
        ask = {"message_content": scenario.question}
        markers = _markers(scenario, "text", "done")
        target = Target(port=port, requests=[http_request(path, ask)], pids=[process.pid], **markers)
        warm = replace(target, requests=[http_request(path, {**ask, "model": WARM_MODEL})])
        yield Baseline(process, target, warm)


@contextmanager
def platform(
    ground: Ground,
    scenario: Scenario,
    database: Database,
    *,
    on: frozenset[int] = SERVER_CORES,
    database_url: str | None = None,
    two_roles: bool = False,
) -> Generator[Platform]:
    """The platform for a scenario: the real command, an administrator's key, an agent with a prompt and a memory.

    `two_roles`: the server only answers requests, and a worker stands by. With `history` each client's session has been
    filled with as many messages as the baseline has in memory.
    """
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-")))
        url = database_url or (stack.enter_context(ground.postgresql()) if database == "postgresql" else None)
        prepared = prepare(ground, data_dir, scenario.model, url)
        key, port = prepared.key, int(prepared.env["AUTOMAGIK_PORT"])
        process = Process(
            python("-m", "automagik", "serve", *(["--api-only"] if two_roles else [])),
            on=cores(on, pin=ground.pin),
            log=ground.log("platform"),
            env=prepared.env,
        )
        stack.enter_context(process)
        process.wait_ready(f"http://127.0.0.1:{port}/ready")
        if two_roles:
            stack.enter_context(worker(ground, prepared.env, on=SUPPORT_CORES))
        asyncio.run(remember(prepared.settings))
        sessions = [uuid.uuid4() for _ in range(scenario.fresh_sessions or scenario.clients)]
        path = f"/api/v1/agent/{AGENT}/run"
        asks = [
            {"message_content": scenario.question, "session_id": str(session), "message_limit": HISTORY_MESSAGES}
            for session in sessions
        ]
        if scenario.history:
            filling = [http_request(path, {**ask, "model": _filling_model(scenario)}, key=key) for ask in asks]
            _fill(ground, Target(port=port, requests=filling), clients=len(sessions))
        path += "/stream" if scenario.stream else ""
        target = Target(
            port=port,
            requests=[http_request(path, ask, key=key) for ask in asks],
            pids=[process.pid],
            **_markers(scenario, "text_", "run_finished"),
        )
        warming = {"message_content": scenario.question, "model": f"openai-chat:{WARM_MODEL}"}
        warm = replace(target, requests=[http_request(path, warming, key=key)])
        yield Platform(process, target, warm, key, data_dir)


@contextmanager
def worker(ground: Ground, env: dict[str, str], *, on: frozenset[int], name: str = "worker") -> Generator[Process]:
    """`automagik worker`, ready, on the database of a server with the same environment."""
    command = python("-m", "automagik", "worker")
    with Process(command, on=cores(on, pin=ground.pin), log=ground.log(name), env=env) as process:
        process.wait_logged("worker_ready")
        yield process


def prepare(ground: Ground, data_dir: Path, model: str | None, database_url: str | None) -> Prepared:
    """A data folder made ready for a server: an agent's file and an administrator's key."""
    agents = data_dir / "agents"
    agents.mkdir(parents=True, exist_ok=True)
    if model is None:
        (agents / "bench.py").write_text(_AGENT_FILE)
    else:
        (agents / "bench.yaml").write_text(_AGENT_SPEC.replace("MODEL", model))
    env = {
        "AUTOMAGIK_DATA_DIR": str(data_dir),
        "AUTOMAGIK_CONFIG_DIR": str(data_dir / "config"),
        "AUTOMAGIK_PORT": str(free_port()),
        "AUTOMAGIK_MODEL": f"openai-chat:{PLAIN_MODEL}",
        "AUTOMAGIK_MODEL_BASE_URL": ground.provider_url,
        "AUTOMAGIK_MODEL_API_KEY": "none",
        "AUTOMAGIK_DISCOVER_LOCAL_MODELS": "false",
    }
    if database_url is not None:
        env["AUTOMAGIK_DATABASE_URL"] = database_url
    settings = Settings(
        data_dir=data_dir,
        database_url=SecretStr(database_url) if database_url else None,
        model=env["AUTOMAGIK_MODEL"],
        model_base_url=env["AUTOMAGIK_MODEL_BASE_URL"],
        model_api_key=SecretStr("none"),
        discover_local_models=False,
    )
    return Prepared(env, settings, asyncio.run(_create_admin_key(settings)))


async def _create_admin_key(settings: Settings) -> str:
    clock = SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    try:
        keys = KeyRing(store, clock)
        _, secret = await keys.create("bench", ["admin"], caller=SYSTEM)
        await keys.close()
    finally:
        await store.close()
    return secret.get_secret_value()


async def remember(settings: Settings) -> None:
    """Store what fills the place in the agent's prompt, beside the running server, as the command line could."""
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    try:
        await MemoryStore(store).create(MEMORY, SYSTEM)
    finally:
        await store.close()


def _filling_model(scenario: Scenario) -> str | None:
    return None if scenario.model is None else f"openai-chat:{PLAIN_MODEL}"


def _fill(ground: Ground, target: Target, *, clients: int) -> None:
    """Ask every session so often that it holds the history."""
    turns = HISTORY_MESSAGES // 2
    for first in range(0, clients, 64):
        part = target.requests[first : first + 64]
        for _ in range(turns):
            plan = Plan("closed", [replace(target, requests=part)], clients=len(part), count=len(part))
            (seen,) = measure(ground, plan)
            if seen.errors:
                raise RuntimeError(f"a session could not be filled: {seen.complaints}")


def _markers(scenario: Scenario, text: str, ending: str) -> dict[str, str]:
    return {"first_text": f"event: {text}", "ending": f"event: {ending}"} if scenario.stream else {}
