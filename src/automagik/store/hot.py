"""What the statements of every run take and give. Each is one hop (SQLite) or one statement (PostgreSQL), shared where it can be."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from automagik.errors import Conflict, NotFound
from automagik.store.reservations import Reserve, Reserved, Settle, Settled
from automagik.store.rows import ClaimedRun
from automagik.types import Usage

__all__ = [
    "DEFAULT_ORIGIN",
    "KEY_TAKEN",
    "AcceptedRun",
    "BeginRun",
    "BegunRun",
    "CommitObserver",
    "FinishRun",
    "FinishedRun",
    "FoundSession",
    "HotPath",
    "Idempotency",
    "NewEvent",
    "NewMessage",
    "NextTurn",
    "StartRun",
    "check_session",
    "cut_at_turn",
    "key_taken",
    "not_queued",
    "observe_nothing",
]

DEFAULT_ORIGIN = "automagik-agent"
"""The `session_origin` of a session whose maker says none, as in the earlier API."""


KEY_TAKEN = "idempotency_key_used"
"""The code of the error for an idempotency key that belongs to another run."""

CommitObserver = Callable[[int, float], None]
"""Who is told of each commit: how many transactions shared it, and how many seconds it took. Called from any thread."""


def observe_nothing(transactions: int, seconds: float) -> None:
    """Where commits go that nobody counts."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to store. `data_json` is JSON text; that of `run_finished` is `{}`, it is read from the run's row."""

    seq: int
    type: str
    at: datetime
    data_json: str


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to store. `raw_payload` is the JSON text of one Pydantic AI message, kept as it is."""

    message_id: uuid.UUID
    role: str
    content: str
    raw_payload: str


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a repeated request the same run: the caller's API key (empty: the platform), their word, the body's hash."""

    key_id: str
    key: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class BeginRun:
    """A run to store, with the session it belongs to.

    The session is found by `session_id`, else by `session_name` among those of `user_id`, else made with what is given;
    with neither, the run belongs to no session. `visible_to` is the user whom the caller's key is bound to: a session of
    anybody else is not found. An unknown `user_id` becomes a user unless `create_user` is false.
    `variable_names`: the memory variables wanted (None: all, empty: none).

    A `background` run waits for a worker; another one belongs to the process `owner` and starts at once where its turn has
    come. The store writes its first event (seq 1): `run_started`, or `run_queued` with whether it is of the background.
    """

    run_id: str
    kind: str
    name: str
    created_at: datetime
    agent_id: int | None = None
    session_id: uuid.UUID | None = None
    session_name: str | None = None
    session_origin: str | None = None
    create_session: bool = True
    user_id: uuid.UUID | None = None
    create_user: bool = True
    visible_to: uuid.UUID | None = None
    key_id: str | None = None
    parent_id: str | None = None
    requeue_of: str | None = None
    labels_json: str = "{}"
    input_json: str | None = None
    priority: int = 0
    deadline_at: datetime | None = None
    queue_until: datetime | None = None
    host: str | None = None
    background: bool = False
    owner: str | None = None
    idempotency: Idempotency | None = None
    message_limit: int | None = None
    variable_names: Sequence[str] | None = ()

    @property
    def has_session(self) -> bool:
        """Whether the run belongs to a session."""
        return self.session_id is not None or self.session_name is not None


@dataclass(frozen=True, slots=True)
class AcceptedRun:
    """A stored run of the background. `session_key` is the store's own id of the session; `user_id` the session's where the
    run gave none. `is_ready`: no earlier run of the session is open."""

    run_id: str
    session_id: uuid.UUID | None
    session_key: int | None
    user_id: uuid.UUID | None
    is_ready: bool


@dataclass(frozen=True, slots=True)
class BegunRun:
    """A run with what its agent needs: the payloads of earlier messages (oldest first) and memory variables.

    `is_ready` false: it is stored, but waits for an earlier run of its session, and has neither yet.
    """

    run_id: str
    session_id: uuid.UUID | None
    session_key: int | None
    user_id: uuid.UUID | None
    is_ready: bool = True
    history: list[str] = field(default_factory=list[str])
    variables: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class StartRun:
    """A queued run to start, whose turn has come and which belongs to `owner`."""

    run_id: str
    started_at: datetime
    owner: str
    message_limit: int | None = None
    variable_names: Sequence[str] | None = ()
    events: Sequence[NewEvent] = ()


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The end of a run: its terminal row, the messages it adds to the session `session_key`, its last events.

    Only what belongs to `owner` is ended. `claims_next`: where the next run of the session waits in the background and is
    like this one (agent and key), it belongs to `owner` at once.
    """

    run_id: str
    owner: str
    status: str
    outcome: str
    finished_at: datetime
    output_json: str | None = None
    error_json: str | None = None
    usage: Usage = field(default_factory=Usage)
    instructions: str | None = None
    model: str | None = None
    session_key: int | None = None
    claims_next: bool = False
    messages: Sequence[NewMessage] = ()
    events: Sequence[NewEvent] = ()


@dataclass(frozen=True, slots=True)
class NextTurn:
    """The run whose turn has come because the one before it ended. `claimed`: the run itself, where that end made it the same
    owner's and the store read it besides."""

    run_id: str
    background: bool
    owner: str | None
    claimed: ClaimedRun | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that ended now, and whose turn has come by that. `wakes_senders`: it left deliveries that nobody was told of."""

    run_id: str
    next_turn: NextTurn | None
    wakes_senders: bool = False


@dataclass(frozen=True, slots=True)
class FoundSession:
    """A session that is there: its keys and its owner."""

    key: int
    session_id: uuid.UUID
    user_id: uuid.UUID | None


class HotPath(Protocol):
    """The statements of every run, as each database does them."""

    async def begin_run(self, begin: BeginRun) -> BegunRun: ...

    async def accept_run(self, begin: BeginRun) -> AcceptedRun: ...

    async def start_run(self, start: StartRun) -> BegunRun: ...

    async def finish_run(self, finish: FinishRun) -> FinishedRun | None: ...

    async def append_events(self, run_id: str, owner: str, events: Sequence[NewEvent]) -> bool: ...

    async def claimed_run(self, run_id: str, owner: str) -> ClaimedRun | None: ...

    async def reserve(self, asked: Reserve) -> Reserved: ...

    async def settle(self, ends: Sequence[Settle]) -> Sequence[Settled]: ...


def check_session(begin: BeginRun, found: FoundSession) -> None:
    """Refuse a session that the caller may not see, or that belongs to another user than the run.

    Raises:
        NotFound: the caller's key is bound to a user, and the session is not theirs.
        Conflict: the session belongs to a user, and the run names another.
    """
    if begin.visible_to is not None and found.user_id != begin.visible_to:
        raise NotFound("session", str(begin.session_id or begin.session_name))
    if begin.user_id is not None and found.user_id is not None and found.user_id != begin.user_id:
        raise Conflict(
            f"The session '{found.session_id}' belongs to another user than 'user_id' names.",
            code="session_of_another_user",
            hint="Leave 'user_id' out, or use a session of that user.",
        )


def cut_at_turn(roles: Sequence[str], payloads: list[str]) -> list[str] | None:
    """The payloads from the first user's message on, or None where there is no user's message among them."""
    for index, role in enumerate(roles):
        if role == "user":
            return payloads[index:] if index else payloads
    return None


def key_taken() -> Conflict:
    """The error for a run whose idempotency key belongs to another run already."""
    return Conflict(
        "The Idempotency-Key has been used for another run.", code=KEY_TAKEN, hint="Use a new key for a new request."
    )


def not_queued(run_id: str) -> Conflict:
    """The error for a run that can't be started: it is unknown, has been started, or has ended."""
    return Conflict(f"The run '{run_id}' is not queued.", code="run_not_queued", hint="Look at the run's status.")
