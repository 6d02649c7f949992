"""Schedules: what an agent is asked again and again, at the times of a cron expression. `Scheduler` fires them."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal, TypedDict, Unpack, cast

import orjson

from automagik.errors import InvalidInput, NotFound, TooLarge
from automagik.runs.cron import CronTimes
from automagik.runs.request import RunRequest
from automagik.runs.service import RunService
from automagik.store import Page, Store, Transaction
from automagik.store.rows import RunRow, ScheduleRow
from automagik.store.schedules import ScheduleChanges
from automagik.types import Caller, Clock, JsonObject

__all__ = ["CHANGED", "MISSED", "Missed", "ScheduleEdit", "Schedules", "labelled", "request_of", "request_to_keep"]

Missed = Literal["skip", "once", "all"]
"""What becomes of times at which nobody could fire: none is made up for, one run stands for all, or each has its run."""

MISSED: tuple[Missed, ...] = ("skip", "once", "all")

CHANGED = ("changed", "schedules")
"""Topic and text of the signal that schedules are not what they were."""

_MAX_REQUEST_BYTES = 4 * 1024 * 1024
_ID_PREFIX = "sched_"


class ScheduleEdit(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    name: str
    agent_name: str
    cron: str
    time_zone: str
    request: RunRequest
    missed: Missed
    active: bool


class Schedules:
    """Schedules as people see and change them. Each belongs to the user of its runs, and fires in the name of a key.

    Whoever changes a schedule answers for it from then on: it fires in the name of that key, which must be allowed to ask
    the agent so. Only pausing needs no more than the scope to change schedules.
    """

    def __init__(self, *, store: Store, runs: RunService, clock: Clock) -> None:
        self._store = store
        self._runs = runs
        self._clock = clock

    async def create(
        self,
        name: str,
        request: RunRequest,
        caller: Caller,
        *,
        cron: str,
        time_zone: str = "UTC",
        missed: Missed = "skip",
        active: bool = True,
        request_id: str | None = None,
    ) -> ScheduleRow:
        """The new schedule, which fires in the caller's name.

        Raises:
            InvalidInput: the name, the expression or the time zone can't be, or the expression has no time to come.
            Conflict: the name is taken. TooLarge: the request is.
            NotFound, MissingScope, OverrideNotAllowed: the caller may not ask the agent so.
        """
        _check_name(name)
        times = CronTimes(cron, time_zone)
        next_at = _next_of(times, self._clock.now())
        request = await self._allowed(request, caller)
        kept = request_to_keep(request)

        def work(tx: Transaction) -> ScheduleRow:
            _check_user(tx, request.user_id)
            row = tx.schedules.create(
                name,
                agent_name=request.agent_name,
                cron=cron,
                time_zone=time_zone,
                request=kept,
                missed=missed,
                active=active,
                key_id=caller.key_id,
                user_id=request.user_id,
                next_at=next_at if active else None,
            )
            details: JsonObject = {"name": name, "agent": row.agent_name, "cron": cron, "time_zone": time_zone}
            tx.audit.append("schedule.create", row.schedule_id, caller=caller, request_id=request_id, details=details)
            return row

        return await self._changed(work)

    async def get(self, schedule: str, caller: Caller) -> ScheduleRow:
        """The schedule of this id or name. Raises NotFound, for what the caller may not see, too."""
        return await self._store.read(lambda tx: _visible(tx, schedule, caller))

    async def list(
        self,
        caller: Caller,
        *,
        agent_name: str | None = None,
        active: bool | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[ScheduleRow]:
        """Schedules that the caller may see, newest first."""
        return await self._store.read(
            lambda tx: tx.schedules.list(
                user_id=caller.user_id, agent_name=agent_name, active=active, limit=limit, cursor=cursor
            )
        )

    async def update(
        self,
        schedule: str,
        caller: Caller,
        *,
        if_revision: int | None = None,
        request_id: str | None = None,
        **edit: Unpack[ScheduleEdit],
    ) -> ScheduleRow:
        """The changed schedule. New times count from now, so do those of one that was paused.

        Raises: as `create`, and PreconditionFailed where somebody changed it since the caller read it, or just now.
        """
        row = await self.get(schedule, caller)
        changes = ScheduleChanges(**{name: value for name, value in edit.items() if name != "request"})  # pyright: ignore[reportArgumentType] - the same fields
        if "name" in edit:
            _check_name(edit["name"])
        active = edit.get("active", row.active)
        if set(edit) - {"active"} or edit.get("active"):
            request = edit.get("request") or request_of(row)
            request = await self._allowed(replace(request, agent_name=edit.get("agent_name", row.agent_name)), caller)
            changes |= {"key_id": caller.key_id, "user_id": request.user_id, "request": request_to_keep(request)}
        times = CronTimes(edit.get("cron", row.cron), edit.get("time_zone", row.time_zone))
        if not active:
            changes["next_at"] = None
        elif row.next_at is None or {"cron", "time_zone"} & set(edit):
            now = self._clock.now()
            changes["next_at"] = _next_of(times, max(now, row.last_at or now))
        # What was looked at must be what is changed: else this key would answer for another's edit.
        expected = row.revision if if_revision is None else if_revision

        def work(tx: Transaction) -> ScheduleRow:
            _check_user(tx, changes.get("user_id"))
            changed = tx.schedules.update(row.schedule_id, if_revision=expected, **changes)
            details: JsonObject = {"name": changed.name, "changed": [*sorted(edit)]}
            tx.audit.append("schedule.update", row.schedule_id, caller=caller, request_id=request_id, details=details)
            return changed

        return await self._changed(work)

    async def delete(
        self, schedule: str, caller: Caller, *, if_revision: int | None = None, request_id: str | None = None
    ) -> ScheduleRow:
        """The schedule that was deleted; its runs stay. Raises NotFound, or PreconditionFailed as `update`."""

        def work(tx: Transaction) -> ScheduleRow:
            row = tx.schedules.delete(_visible(tx, schedule, caller).schedule_id, if_revision=if_revision)
            details: JsonObject = {"name": row.name}
            tx.audit.append("schedule.delete", row.schedule_id, caller=caller, request_id=request_id, details=details)
            return row

        return await self._changed(work)

    async def fire(
        self, schedule: str, caller: Caller, *, idempotency_key: str | None = None, request_id: str | None = None
    ) -> RunRow:
        """The run that the schedule's request gives now, in the caller's own name. Its times stay as they are.

        Raises: as `RunService.submit`.
        """
        row = await self.get(schedule, caller)
        run = await self._runs.submit(labelled(row), caller, idempotency_key=idempotency_key)

        def work(tx: Transaction) -> None:
            tx.schedules.fired_by_hand(row.schedule_id, run.run_id)
            details: JsonObject = {"name": row.name, "run_id": run.run_id}
            tx.audit.append("schedule.fire", row.schedule_id, caller=caller, request_id=request_id, details=details)

        await self._store.write(work)
        return run

    async def next_times(self, schedule: str, caller: Caller, count: int) -> Sequence[tuple[datetime, datetime]]:
        """The next `count` times from now: in UTC, and as the zone's clocks show them."""
        row = await self.get(schedule, caller)
        times = CronTimes(row.cron, row.time_zone)
        found: list[tuple[datetime, datetime]] = []
        moment = times.after(self._clock.now())
        while moment is not None and len(found) < count:
            found.append((moment, times.local(moment)))
            moment = times.after(moment)
        return found

    async def _allowed(self, request: RunRequest, caller: Caller) -> RunRequest:
        """The request as it would be accepted from the caller."""
        if request.session_id is not None and request.session_name is not None:
            raise InvalidInput(
                "Give `session_id` or `session_name`, not both.",
                field=("body", "request", "session_name"),
                hint="A session's id finds it whatever its name.",
            )
        return await self._runs.check(request, caller)

    async def _changed(self, work: Callable[[Transaction], ScheduleRow]) -> ScheduleRow:
        row = await self._store.write(work)
        await self._store.signals.send(*CHANGED)
        return row


def labelled(row: ScheduleRow) -> RunRequest:
    """The schedule's request, with the schedule's name among its labels."""
    request = request_of(row)
    return replace(request, labels={**request.labels, "schedule": row.name})


def request_to_keep(request: RunRequest) -> JsonObject:
    """The request as a schedule keeps and shows it: in the words of a run's body. Raises TooLarge."""
    kept = request.to_input()
    if request.session_id is not None:
        kept["session_id"] = str(request.session_id)
    if request.user_id is not None:
        kept["user_id"] = str(request.user_id)
    if request.labels:
        kept["labels"] = cast("JsonObject", dict(request.labels))
    if len(orjson.dumps(kept)) > _MAX_REQUEST_BYTES:
        raise TooLarge(
            f"The request of a schedule has at most {_MAX_REQUEST_BYTES // 1024**2} MiB, its media included.",
            hint="Send smaller media, or let a tool of the agent fetch them.",
        )
    return kept


def request_of(row: ScheduleRow) -> RunRequest:
    """The request that each firing of the schedule submits."""
    session_id, user_id = (cast("str | None", row.request.get(name)) for name in ("session_id", "user_id"))
    return RunRequest.from_input(
        row.agent_name,
        row.request,
        session_id=uuid.UUID(session_id) if session_id is not None else None,
        user_id=uuid.UUID(user_id) if user_id is not None else None,
        labels=cast("dict[str, str] | None", row.request.get("labels")),
    )


def _visible(tx: Transaction, schedule: str, caller: Caller) -> ScheduleRow:
    row = tx.schedules.find(schedule)
    if row is not None and caller.user_id in {None, row.user_id}:
        return row
    raise NotFound("schedule", schedule, known=tx.schedules.names(user_id=caller.user_id))


def _check_user(tx: Transaction, user_id: uuid.UUID | None) -> None:
    if user_id is not None:
        tx.users.get(user_id)


def _check_name(name: str) -> None:
    if name.startswith(_ID_PREFIX):
        raise InvalidInput(f"A schedule's name does not begin with '{_ID_PREFIX}': the ids do.", field=("body", "name"))


def _next_of(times: CronTimes, moment: datetime) -> datetime:
    found = times.after(moment)
    if found is None:
        raise InvalidInput(
            "No time in the next 12 years matches.", field=("body", "cron"), hint="Is there such a day in such a month?"
        )
    return found
