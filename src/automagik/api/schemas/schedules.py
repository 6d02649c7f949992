"""Schedules on the wire."""

import uuid
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from automagik.api.schemas.common import Body, Flag, ObjectMap, Resource, Word
from automagik.api.schemas.runs import AgentRunRequest
from automagik.store.rows import ScheduleRow
from automagik.types import JsonObject, utc_text

__all__ = [
    "FiringTime",
    "FiringTimes",
    "ScheduleChange",
    "ScheduleCreate",
    "ScheduleResource",
    "ScheduleSummary",
    "firing_time",
    "schedule_resource",
    "schedule_summary",
]

ScheduleName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="Unique: up to 128 letters, digits, `.`, `_` and `-`.",
    ),
]
Cron = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        description="`minute hour day month weekday`, as `0 9 * * mon-fri`; six fields with seconds before them; or "
        "`@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.",
    ),
]
Zone = Annotated[str, Field(min_length=1, max_length=64)]
Missed = Literal["skip", "once", "all"]
Asked = Annotated[
    AgentRunRequest,
    Field(
        description="What the agent is asked each time. With a session it goes on there, without one each time has a "
        "session of its own. Media given by URL are fetched now, and kept."
    ),
]


class _Options(Body):
    time_zone: Zone | None = None
    """An IANA name, as `Europe/Berlin`; unset: `UTC`."""
    missed: Missed | None = None
    """What becomes of times that are over a minute past before anybody could fire: `skip` (as unset) passes over them,
    `once` makes up for all of them with one run, `all` gives each its run, the latest hundred at the most."""
    active: Flag | None = None
    """false pauses it; times that pass meanwhile are not missed."""


class ScheduleCreate(_Options):
    """A schedule to make; it fires in the name of the key that makes it."""

    name: ScheduleName
    agent_name: Word
    cron: Cron
    request: Asked


class ScheduleChange(_Options):
    """A change of a schedule, which from then on fires in the name of the key that made it (unless it only pauses it)."""

    name: ScheduleName | None = None
    agent_name: Word | None = None
    cron: Cron | None = None
    request: Asked | None = None


class ScheduleSummary(Resource):
    """A schedule in a list."""

    schedule_id: str
    name: str
    agent_name: str
    cron: str
    time_zone: str
    missed: Missed
    active: bool
    key_id: str | None
    """The key in whose name it fires."""
    user_id: uuid.UUID | None
    """The user of its runs."""
    next_at: datetime | None
    """The time that it waits for; null: it is paused, or no time will come."""
    last_at: datetime | None
    """The time that gave its last run."""
    last_run_id: str | None
    last_error: str | None
    """Why the latest time gave no run; null: it did."""
    revision: int
    created_at: datetime
    updated_at: datetime


class ScheduleResource(ScheduleSummary):
    """A schedule, whole."""

    request: ObjectMap


class FiringTime(Resource):
    """A time to come."""

    next_at: datetime
    local_time: datetime
    """The same, as the clocks of the schedule's time zone show it."""


class FiringTimes(Resource):
    """The next times of a schedule, the earliest first."""

    data: list[FiringTime]
    next_cursor: None


def schedule_summary(row: ScheduleRow) -> JsonObject:
    """The schedule as in a list, without its request."""
    return {
        "schedule_id": row.schedule_id,
        "name": row.name,
        "agent_name": row.agent_name,
        "cron": row.cron,
        "time_zone": row.time_zone,
        "missed": row.missed,
        "active": row.active,
        "key_id": row.key_id,
        "user_id": str(row.user_id) if row.user_id else None,
        "next_at": utc_text(row.next_at) if row.next_at else None,
        "last_at": utc_text(row.last_at) if row.last_at else None,
        "last_run_id": row.last_run_id,
        "last_error": row.last_error,
        "revision": row.revision,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }


def schedule_resource(row: ScheduleRow) -> JsonObject:
    """The schedule as on the wire."""
    return {**schedule_summary(row), "request": row.request}


def firing_time(moment: datetime, local: datetime) -> JsonObject:
    """A time to come as on the wire."""
    return {"next_at": utc_text(moment), "local_time": local.isoformat(timespec="seconds")}
