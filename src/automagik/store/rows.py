"""Rows as frozen values, one class for each table. Integer ids are the store's own; identifiers of other types are public."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from automagik.types import JsonObject, Usage

__all__ = [
    "AgentRow",
    "AttemptRow",
    "AuditRow",
    "ClaimedRun",
    "DeliveryRow",
    "EventRow",
    "KeyRow",
    "MemoryRow",
    "MessageRow",
    "Page",
    "PromptRow",
    "RunRow",
    "ScheduleRow",
    "SessionRow",
    "UserRow",
    "WebhookRow",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list, newest first. `next_cursor` asks for what follows, None: that was all."""

    data: list[T]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent as the platform knows it, wherever it was defined (`source`: code, package, file or api)."""

    id: int
    name: str
    type: str
    active: bool
    description: str | None
    source: str
    config: JsonObject
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class UserRow:
    """A person or client whom runs, sessions and memories belong to."""

    user_id: uuid.UUID
    email: str | None
    phone_number: str | None
    user_data: JsonObject
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A conversation. `message_count` is kept with the row, not counted."""

    id: int
    session_id: uuid.UUID
    agent_id: int | None
    agent_name: str | None
    user_id: uuid.UUID | None
    session_name: str | None
    status: str
    session_origin: str
    metadata: JsonObject
    message_count: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One message of a session. `content` is for reading and searching, `raw_payload` is the whole message as JSON text."""

    id: int
    message_id: uuid.UUID
    session_id: int
    run_id: str | None
    role: str
    content: str
    raw_payload: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """A memory variable. Which of agent, user and session are set is its scope."""

    id: int
    memory_id: uuid.UUID
    agent_id: int | None
    agent_name: str | None
    user_id: uuid.UUID | None
    session_id: int | None
    session_uuid: uuid.UUID | None
    name: str
    content: str
    description: str | None
    memory_type: str
    read_mode: str | None
    access: str | None
    metadata: JsonObject
    active: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One version of an agent's prompt template for a status key."""

    id: int
    prompt_id: uuid.UUID
    agent_id: int
    agent_name: str
    status_key: str
    name: str | None
    template: str
    version: int
    is_active: bool
    is_default_from_code: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key: `key_hash` is the SHA-256 of the key, `prefix` what a person may see of it."""

    key_id: str
    name: str
    prefix: str
    key_hash: bytes
    scopes: list[str]
    user_id: uuid.UUID | None
    rate_limit: str | None
    max_concurrent_runs: int | None
    made_by: str | None
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. `session_id` is public and stays when the session goes; `input`, `output` and `instructions` are None in lists.

    `background`: it waits for a worker, from `available_at` and until `queue_until` where those are given, for one of `host`
    where that is given; `ready`: no earlier run of its session is open.
    """

    run_id: str
    kind: str
    name: str
    agent_id: int | None
    session_id: uuid.UUID | None
    user_id: uuid.UUID | None
    key_id: str | None
    parent_id: str | None
    requeue_of: str | None
    labels: JsonObject
    status: str
    outcome: str | None
    attempt: int
    priority: int
    input: JsonObject | None
    output: JsonObject | None
    error: JsonObject | None
    waiting_for: JsonObject | None
    usage: Usage
    instructions: str | None
    model: str | None
    owner: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    background: bool = False
    ready: bool = True
    available_at: datetime | None = None
    queue_until: datetime | None = None
    host: str | None = None
    details: JsonObject | None = None
    """What a workflow's run tells besides: its workspace, turns and executor."""


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A queued run that belongs to a worker now. `last_seq` is its last event's."""

    row: RunRow
    last_seq: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """A stored event of a run. `run_finished` is stored empty: its data is the run's row."""

    run_id: str
    seq: int
    type: str
    at: datetime
    data: JsonObject


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule: when (`cron` in `time_zone`), what (`request`, for `agent_name`) and in whose name (`key_id`) it runs.

    `next_at` is the time that it waits for, None where it waits for none; `last_at` the time that gave its last run,
    `last_error` why the latest time gave none.
    """

    schedule_id: str
    name: str
    agent_name: str
    cron: str
    time_zone: str
    request: JsonObject
    missed: str
    active: bool
    key_id: str | None
    user_id: uuid.UUID | None
    next_at: datetime | None
    last_at: datetime | None
    last_run_id: str | None
    last_error: str | None
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A change made through the platform: who (`key_id`, None: the platform or its administrator), what, to what."""

    id: int
    at: datetime
    key_id: str | None
    action: str
    target: str
    details: JsonObject
    request_id: str | None


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """An address that is told of runs that ended: of these `events`, of these agents' (`names`, empty: all), of this user's."""

    webhook_id: str
    url: str
    description: str | None
    events: list[str]
    names: list[str]
    active: bool
    key_id: str | None
    user_id: uuid.UUID | None
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One event for one webhook. `status` is pending, delivered or failed; `attempts` counts those that were begun.

    `next_at` is when it is tried next (None: not again, or when its webhook is active again). `run_id` is None for a ping.
    """

    delivery_id: str
    webhook_id: str
    run_id: str | None
    event: str
    status: str
    attempts: int
    next_at: datetime | None
    delivered_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try to deliver: the status that the receiver answered, or why there was none."""

    delivery_id: str
    attempt: int
    at: datetime
    milliseconds: int
    status_code: int | None
    error: str | None
