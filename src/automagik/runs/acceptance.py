"""From a request to the rows that accept it."""

from datetime import datetime, timedelta
from typing import cast

import orjson

from automagik.agents import AutomagikAgent
from automagik.events import RunEvent
from automagik.runs.live import LiveRun, new_event
from automagik.runs.request import RunRequest
from automagik.store import BeginRun
from automagik.store.rows import RunRow
from automagik.types import Caller, JsonObject, RunStatus, Usage, new_id

__all__ = ["begin_of", "new_row"]


def new_row(
    request: RunRequest, caller: Caller, agent: AutomagikAgent, *, now: datetime, owner: str, queued: bool
) -> RunRow:
    """The run as it begins. Its id, which sorts by time, is made here: in the order of acceptance."""
    return RunRow(
        run_id=new_id("run"),
        kind="agent",
        name=request.agent_name,
        agent_id=agent.db_id,
        session_id=request.session_id,
        user_id=request.user_id,
        key_id=caller.key_id,
        parent_id=None,
        requeue_of=None,
        labels=cast("JsonObject", dict(request.labels)),
        status=RunStatus.QUEUED.value if queued else RunStatus.RUNNING.value,
        outcome=None,
        attempt=1,
        priority=0,
        input=request.to_input(),
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
    )


def begin_of(live: LiveRun, caller: Caller, event: RunEvent) -> BeginRun:
    """What the store is told of a run that is accepted, with its first event."""
    row, request = live.row, live.request
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
        labels_json=orjson.dumps(row.labels).decode(),
        input_json=orjson.dumps(row.input).decode(),
        created_at=row.created_at,
        deadline_at=row.deadline_at,
        owner=row.owner,
        message_limit=live.message_limit,
        variable_names=live.agent.variable_names(request.prompt_status_key),
        events=[new_event(event)],
    )
