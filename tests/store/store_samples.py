"""Runs and messages as the platform makes them, for the store's tests."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from automagik.store import BeginRun, BegunRun, FinishRun, NewEvent, NewMessage, StartRun, Store
from automagik.store.queue import ClaimLimits
from automagik.store.rows import AgentRow, ClaimedRun
from automagik.types import new_id, new_uuid

__all__ = ["accept", "begin", "claim", "event", "finish", "make_agent", "message", "start", "take_turn"]


def _now() -> datetime:
    return datetime.now(UTC)


async def make_agent(store: Store, name: str = "simple") -> AgentRow:
    return await store.write(lambda tx: tx.agents.register(name, type="simple", source="code"))


def event(seq: int, kind: str = "tool_call", data: str = "{}") -> NewEvent:
    return NewEvent(seq=seq, type=kind, at=_now(), data_json=data)


def message(role: str, text: str) -> NewMessage:
    return NewMessage(message_id=new_uuid(), role=role, content=text, raw_payload=f'{{"text":"{text}"}}')


def begin(**changes: Any) -> BeginRun:
    values: dict[str, Any] = {
        "run_id": new_id("run"),
        "kind": "agent",
        "name": "simple",
        "created_at": _now(),
        "input_json": '{"message_content":"hello"}',
        "owner": "me",
    }
    return BeginRun(**{**values, **changes})


def accept(**changes: Any) -> BeginRun:
    """A run of the background."""
    return begin(**{"background": True, "owner": None, **changes})


async def claim(
    store: Store,
    count: int = 10,
    *,
    owner: str = "me",
    host: str = "here",
    limits: ClaimLimits | None = None,
    lease: float = 300.0,
) -> list[ClaimedRun]:
    """What a worker takes from the queue."""
    bounds = limits or ClaimLimits()
    return await store.write(lambda tx: tx.queue.claim(owner, host, count, limits=bounds, host_lease_seconds=lease))


def start(run_id: str, **changes: Any) -> StartRun:
    values: dict[str, Any] = {"run_id": run_id, "started_at": _now(), "owner": "me"}
    return StartRun(**{**values, **changes})


def finish(
    run_id: str, session_key: int | None = None, messages: Sequence[NewMessage] = (), **changes: Any
) -> FinishRun:
    values: dict[str, Any] = {
        "run_id": run_id,
        "owner": "me",
        "status": "completed",
        "outcome": "completed",
        "finished_at": _now(),
        "output_json": '{"message":"hi"}',
        "session_key": session_key,
        "messages": messages,
    }
    return FinishRun(**{**values, **changes})


async def take_turn(store: Store, session_id: uuid.UUID, roles: str, **changes: Any) -> BegunRun:
    """A whole run in a session that adds messages by their initials: u(ser), a(ssistant), t(ool)."""
    begun = await store.begin_run(begin(session_id=session_id, **changes))
    names = {"u": "user", "a": "assistant", "t": "tool"}
    messages = [message(names[letter], f"{letter}{place}") for place, letter in enumerate(roles)]
    assert await store.finish_run(finish(begun.run_id, begun.session_key, messages))
    return begun
