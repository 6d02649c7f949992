"""Loading the newest messages of a session, short or very long."""

import asyncio
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from pydantic import SecretStr
from pydantic_ai import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

from automagik.memory.history import dump_messages, load_messages
from automagik.settings import Settings
from automagik.store import BeginRun, FinishRun, Store
from automagik.types import SystemClock, new_id
from benchmarks.report import Result, compare
from benchmarks.report import Target as Goal
from benchmarks.running import Database, Ground
from benchmarks.scenario import HISTORY_MESSAGES, QUESTION

__all__ = ["long_session"]

_SHORT, _LONG = 40, 10_000


def long_session(on: Ground, database: Database) -> list[Result]:
    """The time to begin a run (which loads 20 messages) in a session of 10,000 messages and in one of 40."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-")))
        url = stack.enter_context(on.postgresql()) if database == "postgresql" else None
        settings = Settings(data_dir=folder, database_url=SecretStr(url) if url else None)
        pairs = asyncio.run(_measure(settings, on.repetitions, 40 if on.quick else 200))
    return [
        compare(
            f"long_session_{database}",
            pairs,
            unit="ms",
            target=Goal("ratio", "at most", 1.1),
            notes={
                "what": "store.begin_run with message_limit=20 and parsing the messages; median of alternating loads",
                "baseline": f"a session of {_SHORT} messages",
                "platform": f"a session of {_LONG} messages",
            },
        )
    ]


async def _measure(settings: Settings, repetitions: int, loads: int) -> list[tuple[float, float]]:
    clock = SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    try:
        sessions = {count: uuid.uuid4() for count in (_SHORT, _LONG)}
        for count, session in sessions.items():
            await _fill(store, session, count)
        pairs: list[tuple[float, float]] = []
        for _ in range(repetitions):
            taken: dict[int, list[float]] = {count: [] for count in sessions}
            for turn in range(loads):
                order = list(sessions) if turn % 2 else list(reversed(sessions))
                for count in order:
                    taken[count].append(await _load(store, sessions[count]))
            pairs.append((median(taken[_SHORT]) * 1000, median(taken[_LONG]) * 1000))
        return pairs
    finally:
        await store.close()


async def _load(store: Store, session: uuid.UUID) -> float:
    began = time.perf_counter()
    begun = await store.begin_run(_begin(session))
    messages = load_messages(begun.history)
    taken = time.perf_counter() - began
    if len(messages) != HISTORY_MESSAGES:
        raise RuntimeError(f"{len(messages)} messages were loaded, not {HISTORY_MESSAGES}")
    return taken


async def _fill(store: Store, session: uuid.UUID, count: int) -> None:
    """`count` messages, a hundred with each run."""
    while count > 0:
        part = min(count, 100)
        count -= part
        messages: list[ModelMessage] = []
        for _ in range(part // 2):
            messages.append(ModelRequest(parts=[UserPromptPart(QUESTION)]))
            messages.append(ModelResponse(parts=[TextPart("I would take the tram up the hill and read there.")]))
        begun = await store.begin_run(_begin(session))
        await store.finish_run(
            FinishRun(
                run_id=begun.run_id,
                status="completed",
                outcome="completed",
                finished_at=SystemClock().now(),
                session_key=begun.session_key,
                messages=dump_messages(messages),
            )
        )


def _begin(session: uuid.UUID) -> BeginRun:
    return BeginRun(
        run_id=new_id("run"),
        kind="agent",
        name="bench",
        created_at=SystemClock().now(),
        session_id=session,
        message_limit=HISTORY_MESSAGES,
    )
