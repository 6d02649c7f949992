"""PostgresHot: the statements of every run on PostgreSQL. What comes while a statement is under way goes with the next one."""

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import Connection, select

from automagik.errors import Conflict, NotFound, ServiceUnavailable
from automagik.store import postgres_columns as columns
from automagik.store import postgres_ledger as ledger
from automagik.store import postgres_sql as sql
from automagik.store import schema
from automagik.store.budgets import Budgets
from automagik.store.hot import (
    AcceptedRun,
    BeginRun,
    BegunRun,
    CommitObserver,
    FinishedRun,
    FinishRun,
    FoundSession,
    NewEvent,
    NextTurn,
    StartRun,
    check_session,
    cut_at_turn,
    key_taken,
    not_queued,
)
from automagik.store.memories import Memories
from automagik.store.messages import Messages
from automagik.store.postgres import DriverConnection, PostgresDatabase, PreparedStatement, postgres_meaning
from automagik.store.reservations import Reserve, Reserved, Settle, Settled
from automagik.store.rows import ClaimedRun
from automagik.store.turns import give_turn
from automagik.types import Clock

__all__ = ["PostgresHot"]

Record = Mapping[str, Any]

_LARGEST_BATCH = 32

_ATTEMPTS = 5
"""How often a run is offered whose session somebody else makes or deletes at the same moment."""


@dataclass(frozen=True, slots=True)
class _Statement:
    """One kind of statement: its text, its parameters for a batch, what two runs of a batch must not share, and whether an
    answer says that somebody else was faster, so that it is to be asked again. `alone`: the text and the parameters for one that
    comes alone, where that is another one."""

    text: str
    parameters: Callable[[Sequence[Any]], Sequence[object]]
    run_id: Callable[[Any], str]
    apart: Callable[[Any], tuple[Hashable, ...]] = lambda _: ()
    was_late: Callable[[Any, Record], bool] = lambda _, __: False
    alone: tuple[str, Callable[[Any], Sequence[object]]] | None = None


def _made_meanwhile(begin: BeginRun, record: Record) -> bool:
    """Whether the session was made by another process at the same moment."""
    return not record["is_stored"] and not record["is_found"] and columns.may_make(begin)


_BEGIN = _Statement(sql.BEGIN, columns.of_begin, lambda begin: begin.run_id, columns.session_keys, _made_meanwhile)
_ACCEPT = _Statement(
    sql.ACCEPT, columns.of_begin_without_context, lambda begin: begin.run_id, columns.session_keys, _made_meanwhile
)
_START = _Statement(sql.START, columns.of_start, lambda start: start.run_id)
_FINISH = _Statement(sql.FINISH, columns.of_finish, lambda finish: finish.run_id)
_APPEND = _Statement(sql.APPEND, columns.of_append, lambda append: append[0])
_CLAIMED = _Statement(sql.CLAIMED, columns.of_claimed, lambda claimed: claimed[0])
_RESERVE = _Statement(
    ledger.RESERVE,
    ledger.reserve_parameters,
    lambda asked: asked.reservation_id,
    lambda asked: (asked.reservation_id,),
    alone=(ledger.RESERVE_ALONE, ledger.reserve_alone_parameters),
)
_SETTLE = _Statement(
    ledger.SETTLE, ledger.settle_parameters, lambda end: end.reservation_id, lambda end: (end.reservation_id,)
)


@dataclass(slots=True)
class _Job:
    statement: _Statement
    request: Any
    future: "asyncio.Future[Record | None]"


class _Lane:
    """One connection of the driver's with its prepared statements, made when it is needed and anew when it was lost."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._connection: DriverConnection | None = None
        self._prepared: dict[str, PreparedStatement] = {}

    async def fetch(self, text: str, parameters: Sequence[object]) -> list[Record]:
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self.connect()
        prepared = self._prepared.get(text)
        if prepared is None:
            prepared = self._prepared[text] = await connection.prepare(text)
        return await prepared.fetch(*parameters)

    async def connect(self) -> DriverConnection:
        await self.close()
        self._connection = connection = await self._database.connect_lane()
        return connection

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        self._prepared.clear()
        if connection is not None:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await connection.close(timeout=2)


class PostgresHot:
    """The hot path over a PostgresDatabase."""

    def __init__(self, database: PostgresDatabase, clock: Clock, wrote: CommitObserver) -> None:
        self._wrote = wrote
        self._database = database
        self._clock = clock
        self._pending: deque[_Job] = deque()
        self._lanes = [_Lane(database) for _ in range(database.lanes)]
        self._idle = self._lanes[::-1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work: set[Hashable] = set()
        """What the runs under way have that others must not share meanwhile, so that a session's keep their order."""
        self._open = False

    async def open(self) -> None:
        """Connect the first lane."""
        await self._connect_first()
        self._open = True

    async def close(self) -> None:
        """Do what is waiting, then close the connections."""
        self._open = False
        while self._tasks:
            await asyncio.wait(self._tasks)
        for lane in self._lanes:
            await lane.close()

    async def begin_run(self, begin: BeginRun) -> BegunRun:
        record = await self._store(_BEGIN, begin)
        key: int | None = record["session_key"]
        user_id: uuid.UUID | None = begin.user_id if begin.user_id is not None else record["session_user"]
        if record["is_ready"] and record["is_outdated"] and key is not None:
            history, variables = await self._context(begin, key, user_id)
        else:
            history, variables = await self._history(record, begin.message_limit), _variables(record)
        return BegunRun(begin.run_id, record["session_id"], key, user_id, record["is_ready"], history, variables)

    async def accept_run(self, begin: BeginRun) -> AcceptedRun:
        record = await self._store(_ACCEPT, begin)
        user_id = begin.user_id if begin.user_id is not None else record["session_user"]
        return AcceptedRun(begin.run_id, record["session_id"], record["session_key"], user_id, record["is_ready"])

    async def start_run(self, start: StartRun) -> BegunRun:
        record = await self._do(_START, start)
        if record is None:
            raise not_queued(start.run_id)
        return BegunRun(
            start.run_id,
            record["session_id"],
            record["session_key"],
            record["user_id"],
            True,
            await self._history(record, start.message_limit),
            _variables(record),
        )

    async def finish_run(self, finish: FinishRun) -> FinishedRun | None:
        record = await self._do(_FINISH, finish)
        if record is None:
            return None
        if record["next_missed"]:
            return FinishedRun(finish.run_id, await self._give_turn(record["session_id"]))
        next_run: str | None = record["next_run_id"]
        if next_run is None:
            return FinishedRun(finish.run_id, None)
        owner: str | None = record["next_owner"]
        is_claimed = finish.claims_next and owner == finish.owner
        claimed = columns.claimed_with_end(record) if is_claimed else None
        return FinishedRun(finish.run_id, NextTurn(next_run, record["next_background"], owner, claimed))

    async def append_events(self, run_id: str, owner: str, events: Sequence[NewEvent]) -> bool:
        return await self._do(_APPEND, (run_id, owner, events)) is not None

    async def claimed_run(self, run_id: str, owner: str) -> ClaimedRun | None:
        record = await self._do(_CLAIMED, (run_id, owner))
        return None if record is None else columns.claimed_of_values(record)

    async def reserve(self, asked: Reserve) -> Reserved:
        while True:
            record = await self._answer(_RESERVE, asked)
            if record["is_missing"]:
                await self._database.write(
                    lambda connection: Budgets(connection, asked.created_at).open_counters(asked.scopes)
                )
            elif record["granted"] is not None or record["is_exact"]:
                return Reserved(record["granted"], ledger.limits_of(record["limits"]))

    async def settle(self, ends: Sequence[Settle]) -> Sequence[Settled]:
        records = await asyncio.gather(*(self._answer(_SETTLE, end) for end in ends))
        return [Settled(record["was_open"], ledger.limits_of(record["passed"])) for record in records]

    async def _answer(self, statement: _Statement, request: object) -> Record:
        record = await self._do(statement, request)
        if record is None:
            raise RuntimeError("the statement answers everything that it is asked")
        return record

    async def _store(self, statement: _Statement, begin: BeginRun) -> Record:
        if begin.user_id is not None and not begin.create_user:
            await self._require_user(begin.user_id)
        for _ in range(_ATTEMPTS):
            record = await self._answer(statement, begin)
            if record["is_stored"]:
                return record
            if record["is_found"]:
                found = FoundSession(record["session_key"], record["session_id"], record["session_user"])
                check_session(begin, found)
            elif not columns.may_make(begin):
                raise NotFound("session", str(begin.session_id or begin.session_name))
        raise Conflict("The session is being made and deleted at the same time.", hint="Try again.")

    async def _require_user(self, user_id: uuid.UUID) -> None:
        known = select(schema.users.c.id).where(schema.users.c.id == user_id)
        if await self._database.read(lambda connection: connection.scalar(known)) is None:
            raise NotFound("user", str(user_id))

    async def _give_turn(self, session_id: uuid.UUID) -> NextTurn | None:
        """Give the turn to a run that came, or whose turn changed, while the statement that ended the one before it waited."""
        try:
            return await self._database.write(lambda connection: give_turn(connection, session_id))
        except ServiceUnavailable:
            return None  # the run has ended all the same; the sweep over stuck sessions gives the turn

    async def _context(self, begin: BeginRun, key: int, user_id: uuid.UUID | None) -> tuple[list[str], dict[str, str]]:
        """What the agent needs, as it is now."""

        def read(connection: Connection) -> tuple[list[str], dict[str, str]]:
            now = self._clock.now()
            variables = Memories(connection, now).variables(
                agent_id=begin.agent_id, user_id=user_id, session_id=key, names=begin.variable_names
            )
            return list(Messages(connection, now).history(key, begin.message_limit)), variables

        return await self._database.read(read)

    async def _history(self, record: Record, limit: int | None) -> list[str]:
        payloads: list[str] | None = record["payloads"]
        if not payloads:
            return []
        cut = cut_at_turn(record["roles"], payloads)
        if cut is not None or limit is None:
            return cut or []
        key: int = record["session_key"]  # the last turn is longer than the limit: rare, and read apart
        return await self._database.read(lambda connection: Messages(connection, self._clock.now()).history(key, limit))

    # -- batches

    async def _do(self, statement: _Statement, request: object) -> Record | None:
        if not self._open:
            raise ServiceUnavailable("The database is closed: the server is stopping.", hint="Retry later.")
        loop = asyncio.get_running_loop()
        job = _Job(statement, request, loop.create_future())
        self._pending.append(job)
        if self._idle:
            task = loop.create_task(self._drain(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await job.future

    async def _drain(self, lane: _Lane) -> None:
        try:
            while batch := self._next_batch():
                keys = {key for job in batch for key in job.statement.apart(job.request)}
                self._at_work |= keys
                try:
                    await self._run(lane, batch)
                finally:
                    self._at_work -= keys
        finally:
            self._idle.append(lane)

    def _next_batch(self) -> list[_Job]:
        """The first job that may go now, and those of its kind that may go with it; the others keep their order. None where all
        have to wait for another lane, which goes on with them."""
        if not self._pending:
            return []
        if len(self._pending) == 1 and not self._at_work:
            return [self._pending.popleft()]
        batch: list[_Job] = []
        others: list[_Job] = []
        taken = set(self._at_work)
        while self._pending and len(batch) < _LARGEST_BATCH:
            job = self._pending.popleft()
            keys = job.statement.apart(job.request)
            if (not batch or job.statement is batch[0].statement) and taken.isdisjoint(keys):
                batch.append(job)
            else:
                others.append(job)
            taken.update(keys)
        self._pending.extendleft(reversed(others))
        return batch

    async def _run(self, lane: _Lane, batch: list[_Job], attempt: int = 1) -> None:
        statement = batch[0].statement
        began = time.perf_counter()
        try:
            if len(batch) == 1 and statement.alone is not None:
                text, parameters = statement.alone
                records = await lane.fetch(text, parameters(batch[0].request))
            else:
                # In one order, so that statements that touch the same runs can't wait for each other.
                requests = sorted((job.request for job in batch), key=statement.run_id)
                records = await lane.fetch(statement.text, statement.parameters(requests))
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            await lane.close()
            _fail(batch, error)
        except asyncpg.PostgresError as error:
            if len(batch) > 1:
                for job in batch:  # one of them is at fault: each alone
                    await self._run(lane, [job])
            elif attempt < _ATTEMPTS and isinstance(error, _PASSING):
                await self._run(lane, batch, attempt + 1)
            elif isinstance(error, asyncpg.UniqueViolationError) and _KEYS in str(error):
                _fail(batch, key_taken())
            else:
                _fail(batch, error)
        except BaseException as error:
            _fail(batch, error)
            raise
        else:
            self._wrote(len(batch), time.perf_counter() - began)
            answers = {record["run_id"]: record for record in records}
            late: list[_Job] = []
            for job in batch:
                answer = answers.get(statement.run_id(job.request))
                if answer is not None and attempt < _ATTEMPTS and statement.was_late(job.request, answer):
                    late.append(job)
                elif not job.future.done():  # else its task was cancelled; the work is done all the same
                    job.future.set_result(answer)
            if late:  # at once: others of their sessions wait behind them
                await self._run(lane, late, attempt + 1)

    async def _connect_first(self) -> None:
        try:
            await self._lanes[0].connect()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise postgres_meaning(error) from error


_KEYS = "pk_idempotency_keys"

_PASSING = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ForeignKeyViolationError,  # a session or user was deleted between the look and the write
)


def _fail(batch: Sequence[_Job], error: BaseException) -> None:
    meaning = postgres_meaning(error)
    for job in batch:
        if not job.future.done():
            job.future.set_exception(meaning)


def _variables(record: Record) -> dict[str, str]:
    names = record["names"]
    return dict(zip(names, record["contents"], strict=True)) if names else {}
