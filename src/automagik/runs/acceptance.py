"""From a request to the rows that accept it."""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import cast

import orjson

from automagik.agents import AutomagikAgent
from automagik.errors import AutomagikError, InvalidInput, ServiceUnavailable
from automagik.memory import MessageArchive
from automagik.runs.request import RunRequest
from automagik.store import BeginRun, Idempotency
from automagik.store.artifacts import run_holder
from automagik.store.rows import RunRow
from automagik.types import Caller, Json, JsonObject, RunStatus, Usage, new_id

__all__ = ["begin_of", "idempotency_of", "new_row", "with_media"]

_LONGEST_KEY = 255


def new_row(
    request: RunRequest,
    caller: Caller,
    agent: AutomagikAgent,
    *,
    now: datetime,
    owner: str | None,
    requeue_of: str | None = None,
    queue_timeout_seconds: float | None = None,
) -> RunRow:
    """The run as it begins, its media left out; without an `owner` it is one of the background. Its id sorts by time."""
    wait = request.queue_timeout_seconds or queue_timeout_seconds
    return RunRow(
        run_id=new_id("run"),
        kind=request.kind,
        name=request.name,
        agent_id=agent.db_id,
        session_id=request.session_id,
        user_id=request.user_id,
        key_id=caller.key_id,
        parent_id=None,
        requeue_of=requeue_of,
        labels=cast("JsonObject", dict(request.labels)),
        status=RunStatus.QUEUED.value if owner is None else RunStatus.RUNNING.value,
        outcome=None,
        attempt=1,
        priority=request.priority,
        input=request.to_input(media=()),
        output=None,
        error=None,
        waiting_for=None,
        usage=Usage(),
        instructions=None,
        model=None,
        owner=owner,
        created_at=now,
        started_at=None,
        finished_at=None,
        deadline_at=now + timedelta(seconds=request.timeout_seconds) if request.timeout_seconds else None,
        background=owner is None,
        queue_until=now + timedelta(seconds=wait) if owner is None and wait else None,
    )


@asynccontextmanager
async def with_media(row: RunRow, request: RunRequest, archive: MessageArchive) -> AsyncGenerator[RunRow]:
    """The run with the request's media in its input: large ones as artefacts, which it holds. Where the run is refused within, nothing
    of them is kept."""
    if not request.media and not request.stored_media:
        yield row
        return
    try:
        holder = run_holder(row.run_id)
        kept = await archive.keep_media(request.media, stored=request.stored_media, used_by=holder)
        yield replace(row, input=request.to_input(media=kept))
    except ServiceUnavailable:
        raise  # it may have been accepted
    except AutomagikError:
        with contextlib.suppress(AutomagikError):  # else retention does it
            await archive.discard(row.run_id, since=row.created_at)
        raise


def begin_of(
    row: RunRow,
    request: RunRequest,
    caller: Caller,
    agent: AutomagikAgent,
    *,
    idempotency: Idempotency | None = None,
) -> BeginRun:
    """What the store is told of a run that is accepted."""
    limit = request.message_limit if request.message_limit is not None else agent.config.message_limit
    return BeginRun(
        run_id=row.run_id,
        kind=row.kind,
        name=row.name,
        agent_id=row.agent_id,
        session_id=request.session_id,
        session_name=request.session_name,
        session_origin=request.session_origin,
        user_id=request.user_id,
        create_user=False,
        visible_to=caller.user_id,
        key_id=row.key_id,
        parent_id=row.parent_id,
        requeue_of=row.requeue_of,
        labels_json=orjson.dumps(row.labels).decode(),
        input_json=orjson.dumps(row.input).decode(),
        created_at=row.created_at,
        priority=row.priority,
        deadline_at=row.deadline_at,
        queue_until=row.queue_until,
        host=row.host,
        background=row.background,
        owner=row.owner,
        idempotency=idempotency,
        message_limit=limit,
        variable_names=agent.variable_names(request.prompt_status_key),
    )


def idempotency_of(
    key: str | None, request: RunRequest, caller: Caller, *, background: bool, requeue_of: str | None = None
) -> Idempotency | None:
    """What makes a repetition of this request the same run, None without a key.

    Raises: InvalidInput for a key that is empty, too long, or not of visible ASCII characters.
    """
    if key is None:
        return None
    if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise InvalidInput(
            f"An idempotency key is 1 to {_LONGEST_KEY} visible ASCII characters.",
            field=("header", "idempotency-key"),
            hint="Use a UUID, and the same one for each repetition of the same request.",
        )
    media: Sequence[Json] = request.stored_media or [
        {"mime_type": item.media_type, "sha256": hashlib.sha256(item.data).hexdigest()} for item in request.media
    ]
    said = {
        "agent": request.agent_name,
        "session_id": str(request.session_id) if request.session_id is not None else None,
        "session_name": request.session_name,
        "user_id": str(request.user_id) if request.user_id is not None else None,
        "labels": dict(request.labels),
        "input": request.to_input(media=media),
        "background": background,
        "requeue_of": requeue_of,
    }
    body = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
    return Idempotency(caller.key_id or "", key, hashlib.sha256(body).digest())
