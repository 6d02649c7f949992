"""Schedules: what runs when, in whose name, and what came of it."""

import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import NotFound, PreconditionFailed
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts
from automagik.store.rows import Page, ScheduleRow
from automagik.types import JsonObject, new_id

__all__ = ["USER_GONE", "ScheduleChanges", "Schedules"]

_schedules = schema.schedules

USER_GONE = "The user whose runs it made was deleted."
"""Why a schedule was switched off."""

_NAMES = 200
"""How many names a search for the nearest looks at."""


class ScheduleChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

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


class Schedules(Repository):
    """The schedules table. Names are unique. A schedule that is not active has no `next_at`."""

    __slots__ = ()

    def create(
        self,
        name: str,
        *,
        agent_name: str,
        cron: str,
        time_zone: str,
        request: JsonObject,
        missed: str,
        active: bool,
        key_id: str | None,
        user_id: uuid.UUID | None,
        next_at: datetime | None,
    ) -> ScheduleRow:
        """The new schedule. Raises Conflict where the name is taken."""
        values = {
            "schedule_id": new_id("sched"),
            "name": name,
            "agent_name": agent_name,
            "cron": cron,
            "time_zone": time_zone,
            "request": request,
            "missed": missed,
            "active": active,
            "key_id": key_id,
            "user_id": user_id,
            "next_at": next_at,
            "revision": 1,
            "created_at": self._now,
            "updated_at": self._now,
        }
        with _name_is_free(name):
            record = self._connection.execute(insert(_schedules).values(values).returning(_schedules)).one()
        return _row(record)

    def find(self, schedule: str) -> ScheduleRow | None:
        """The schedule of this id or name, or None."""
        for column in (_schedules.c.schedule_id, _schedules.c.name):
            record = self._connection.execute(select(_schedules).where(column == schedule)).one_or_none()
            if record is not None:
                return _row(record)
        return None

    def names(self, *, user_id: uuid.UUID | None = None) -> list[str]:
        """Names, the newest first; with `user_id` those of that user."""
        statement = select(_schedules.c.name).order_by(_schedules.c.schedule_id.desc()).limit(_NAMES)
        if user_id is not None:
            statement = statement.where(_schedules.c.user_id == user_id)
        return list(self._connection.scalars(statement))

    def update(self, schedule_id: str, *, if_revision: int, **changes: Unpack[ScheduleChanges]) -> ScheduleRow:
        """The changed schedule, its revision counted up.

        Raises:
            NotFound: there is no such schedule.
            PreconditionFailed: it is not at `if_revision` any more.
            Conflict: another one has the name.
        """
        statement = update(_schedules).where(
            _schedules.c.schedule_id == schedule_id, _schedules.c.revision == if_revision
        )
        statement = statement.values(revision=_schedules.c.revision + 1, updated_at=self._now, **changes)
        with _name_is_free(changes.get("name", "")):
            record = self._connection.execute(statement.returning(_schedules)).one_or_none()
        if record is None:
            raise self._stale(schedule_id)
        return _row(record)

    def delete(self, schedule_id: str, *, if_revision: int | None = None) -> ScheduleRow:
        """The schedule that was deleted.

        Raises:
            NotFound: there is no such schedule.
            PreconditionFailed: it is not at `if_revision` any more.
        """
        statement = delete_from(_schedules).where(_schedules.c.schedule_id == schedule_id)
        if if_revision is not None:
            statement = statement.where(_schedules.c.revision == if_revision)
        record = self._connection.execute(statement.returning(_schedules)).one_or_none()
        if record is None:
            raise self._stale(schedule_id)
        return _row(record)

    def list(
        self,
        *,
        user_id: uuid.UUID | None = None,
        agent_name: str | None = None,
        active: bool | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[ScheduleRow]:
        """Schedules, newest first."""
        statement = select(_schedules)
        if user_id is not None:
            statement = statement.where(_schedules.c.user_id == user_id)
        if agent_name is not None:
            statement = statement.where(_schedules.c.agent_name == agent_name)
        if active is not None:
            statement = statement.where(_schedules.c.active == active)
        return fetch_page(self._connection, statement, (_schedules.c.schedule_id,), _row, limit=limit, cursor=cursor)

    # -- firing

    def upcoming(self, now: datetime, limit: int) -> Sequence[tuple[str, datetime]]:
        """The ids of the active schedules that fire next, with their times: first those that are due at `now`, in turns of
        their keys (the earliest of each key, then the second of each, ...), then the others, the earliest first."""
        due, key_id = _schedules.c.next_at, func.coalesce(_schedules.c.key_id, "")
        turn = func.row_number().over(partition_by=key_id, order_by=due).label("turn")
        active = select(_schedules.c.schedule_id, due).where(_schedules.c.active)
        ready = active.add_columns(turn).where(due <= now).subquery()
        taking_turns = select(ready.c.schedule_id, ready.c.next_at).order_by(ready.c.turn, ready.c.next_at).limit(limit)
        found = [(record.schedule_id, record.next_at) for record in self._connection.execute(taking_turns)]
        later = active.where(due > now).order_by(due).limit(limit - len(found))
        return found + [(record.schedule_id, record.next_at) for record in self._connection.execute(later)]

    def advance(self, of: ScheduleRow, next_at: datetime | None) -> bool:
        """Whether the schedule waits for `next_at` now: only where it still was as in `of`."""
        return self._settle(of, next_at=next_at)

    def fired(self, of: ScheduleRow, next_at: datetime | None, run_id: str) -> bool:
        """Whether it is noted that the time for which `of` waited gave a run, and that the schedule waits for `next_at`."""
        return self._settle(of, next_at=next_at, last_at=of.next_at, last_run_id=run_id, last_error=None)

    def failed(self, of: ScheduleRow, next_at: datetime | None, error: str) -> bool:
        """Whether it is noted why the time for which `of` waited gave no run; it waits for `next_at` now."""
        return self._settle(of, next_at=next_at, last_error=error)

    def stop(self, of: ScheduleRow, reason: str) -> bool:
        """Whether the schedule is switched off, and why is noted: only where it still was as in `of`."""
        return self._settle(of, active=False, next_at=None, last_error=reason, revision=_schedules.c.revision + 1)

    def stop_of_user(self, user_id: uuid.UUID) -> None:
        """Switch off the schedules of a user who is deleted; each says so."""
        theirs = update(_schedules).where(_schedules.c.user_id == user_id, _schedules.c.active)
        changes = {"revision": _schedules.c.revision + 1, "updated_at": self._now}
        self._connection.execute(theirs.values(active=False, next_at=None, last_error=USER_GONE, **changes))

    def note_error(self, schedule_id: str, error: str) -> None:
        """Note what stands in the way of firing, whatever the schedule waits for."""
        self._connection.execute(
            update(_schedules).where(_schedules.c.schedule_id == schedule_id).values(last_error=error)
        )

    def fired_by_hand(self, schedule_id: str, run_id: str) -> None:
        """Note the run that somebody started out of turn."""
        self._connection.execute(
            update(_schedules)
            .where(_schedules.c.schedule_id == schedule_id)
            .values(last_at=self._now, last_run_id=run_id)
        )

    def _settle(self, of: ScheduleRow, **values: Any) -> bool:
        """Compare and set: firing is not a change of the schedule, so its revision and time of change stay."""
        statement = update(_schedules).where(
            _schedules.c.schedule_id == of.schedule_id,
            _schedules.c.revision == of.revision,
            _schedules.c.next_at == of.next_at,
            _schedules.c.active,
        )
        return self._connection.execute(statement.values(**values)).rowcount == 1

    def _stale(self, schedule_id: str) -> PreconditionFailed:
        found = self.find(schedule_id)
        if found is None:
            raise NotFound("schedule", schedule_id)
        return PreconditionFailed(
            f"The schedule '{found.name}' was changed since you read it; it is at revision {found.revision}.",
            hint="Read it again and repeat your change.",
        )


def _name_is_free(name: str) -> AbstractContextManager[None]:
    return conflicts(f"There is already a schedule '{name}'.", hint="Choose another name, or change that schedule.")


def _row(record: Row[Any]) -> ScheduleRow:
    return ScheduleRow(
        schedule_id=record.schedule_id,
        name=record.name,
        agent_name=record.agent_name,
        cron=record.cron,
        time_zone=record.time_zone,
        request=record.request,
        missed=record.missed,
        active=record.active,
        key_id=record.key_id,
        user_id=record.user_id,
        next_at=record.next_at,
        last_at=record.last_at,
        last_run_id=record.last_run_id,
        last_error=record.last_error,
        revision=record.revision,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
