"""Workflows of the API, executions in a sandbox, and words for a run under way."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Row, delete, exists, func, insert, or_, select, text, update

from automagik.errors import Conflict, NotFound, PreconditionFailed
from automagik.store import schema
from automagik.store.repository import Repository, conflicts
from automagik.store.turns import notify
from automagik.types import JsonObject

__all__ = ["ExecutionRow", "Executions", "Stage", "Word", "Words", "WorkflowRow", "Workflows"]

Stage = Literal["preparing", "running", "closing", "collecting", "ended"]
"""What is done for a run: its place is made, the CLI works (and, in the end, hears nobody any more), what it made is taken out;
then nothing is left."""

_workflows = schema.workflows
_executions = schema.executions
_words = schema.run_words
_runs = schema.runs

_CHANGED = "changed workflows"
_MOST_WAITING = 100
"""How many words may wait for a run: each may be 100,000 characters, and all are read at once."""


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """A workflow made through the API: the files of its folder, by name."""

    name: str
    files: dict[str, str]
    active: bool
    key_id: str | None
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """What a run's sandbox is known by, so that whoever takes the run over finds it."""

    run_id: str
    executor: str
    host: str
    stage: Stage
    cli_session_id: uuid.UUID
    token_hash: bytes
    """SHA-256 of the token that opens the run's sockets."""
    base_commit: str | None
    branch: str | None
    head_commit: str | None
    bundle: str | None
    """The artefact of what was taken out last: commits, and the tree that was not committed."""
    conversation: str | None
    """The artefact of the CLI's own record of the conversation, by which it is resumed."""
    place: JsonObject
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Word:
    """What somebody said into a run under way."""

    id: int
    kind: Literal["message", "interrupt"]
    text: str
    created_at: datetime


class Workflows(Repository):
    """The workflows made through the API."""

    __slots__ = ()

    def all(self) -> list[WorkflowRow]:
        """Every one, by name."""
        records = self._connection.execute(select(_workflows).order_by(_workflows.c.name)).all()
        return [_workflow(record) for record in records]

    def find(self, name: str) -> WorkflowRow | None:
        """The one of this name, or None."""
        record = self._connection.execute(select(_workflows).where(_workflows.c.name == name)).one_or_none()
        return None if record is None else _workflow(record)

    def create(self, name: str, files: dict[str, str], *, key_id: str | None) -> WorkflowRow:
        """A new one. Raises Conflict where the name is taken."""
        row = WorkflowRow(name, files, True, key_id, 1, self._now, self._now)
        with conflicts(f"There is already a workflow '{name}'.", hint="Change that one, or choose another name."):
            self._connection.execute(
                insert(_workflows).values(
                    name=name,
                    files=cast("JsonObject", files),
                    active=True,
                    key_id=key_id,
                    revision=1,
                    created_at=self._now,
                    updated_at=self._now,
                )
            )
        notify(self._connection, _CHANGED)
        return row

    def update(
        self,
        name: str,
        *,
        files: dict[str, str] | None = None,
        active: bool | None = None,
        if_revision: int | None = None,
    ) -> WorkflowRow:
        """The changed one. Raises NotFound; PreconditionFailed where it is not at `if_revision` any more."""
        row = self._held(name, if_revision)
        values: dict[str, Any] = {"revision": row.revision + 1, "updated_at": self._now}
        if files is not None:
            values["files"] = files
        if active is not None:
            values["active"] = active
        self._connection.execute(update(_workflows).where(_workflows.c.name == name).values(**values))
        notify(self._connection, _CHANGED)
        changed = self.find(name)
        assert changed is not None
        return changed

    def delete(self, name: str, *, if_revision: int | None = None) -> None:
        """It is gone; its runs stay. Raises as `update`."""
        self._held(name, if_revision)
        self._connection.execute(delete(_workflows).where(_workflows.c.name == name))
        notify(self._connection, _CHANGED)

    def _held(self, name: str, if_revision: int | None) -> WorkflowRow:
        held = select(_workflows).where(_workflows.c.name == name).with_for_update()
        record = self._connection.execute(held).one_or_none()
        if record is None:
            raise NotFound("workflow", name)
        if if_revision is not None and record.revision != if_revision:
            raise PreconditionFailed(
                f"The workflow '{name}' has changed since you read it.", hint="Read it again, then repeat your change."
            )
        return _workflow(record)


class Executions(Repository):
    """What runs in a sandbox. Every write names the run's owner, so that a process that lost the run writes nothing."""

    __slots__ = ()

    def find(self, run_id: str) -> ExecutionRow | None:
        """The execution of a run, or None before there is one."""
        found = self._connection.execute(select(_executions).where(_executions.c.run_id == run_id))
        values = found.mappings().one_or_none()
        return None if values is None else ExecutionRow(**values)

    def begin(
        self,
        run_id: str,
        owner: str,
        *,
        executor: str,
        host: str,
        cli_session_id: uuid.UUID,
        token_hash: bytes,
        former: ExecutionRow | None = None,
        told: int = 0,
        spent: JsonObject | None = None,
    ) -> ExecutionRow:
        """A new execution, in the place of an earlier one; the run belongs to `host` from now on.

        What was taken out of the `former` one stays, and what it was told is to be told again. The run's events up to number
        `told` are of earlier ones, and `spent` is what those used of its limits.

        Raises: Conflict (`taken_over`) where the run is not `owner`'s.
        """
        self._hold(run_id, owner, host=host)
        self._connection.execute(delete(_executions).where(_executions.c.run_id == run_id))
        if former is not None:
            self._connection.execute(update(_words).where(_words.c.run_id == run_id).values(taken_at=None))
        place: JsonObject = {"told": told}
        if spent is not None:
            place["spent"] = spent
        if former is not None and "base" in former.place:
            place["base"] = former.place["base"]
        row = ExecutionRow(
            run_id=run_id,
            executor=executor,
            host=host,
            stage="preparing",
            cli_session_id=cli_session_id,
            token_hash=token_hash,
            base_commit=None if former is None else former.base_commit,
            branch=None if former is None else former.branch,
            head_commit=None if former is None else former.head_commit,
            bundle=None if former is None else former.bundle,
            conversation=None,
            place=place,
            created_at=self._now,
            updated_at=self._now,
        )
        self._connection.execute(
            insert(_executions).values(**{name: getattr(row, name) for name in _executions.c.keys()})  # noqa: SIM118
        )
        return row

    def update(self, run_id: str, owner: str, **changes: Any) -> None:
        """Change columns of an execution. Raises as `begin`."""
        self._hold(run_id, owner)
        changed = update(_executions).where(_executions.c.run_id == run_id)
        self._connection.execute(changed.values(updated_at=self._now, **changes))

    def close(self, run_id: str, owner: str) -> bool:
        """Whether nobody's words wait, so that from now on no message is taken: the CLI's input ends. Raises as `begin`."""
        self._hold(run_id, owner)
        waiting = select(_words.c.id).where(_words.c.run_id == run_id, _words.c.taken_at.is_(None))
        if self._connection.scalar(select(exists(waiting))):
            return False
        closed = update(_executions).where(_executions.c.run_id == run_id, _executions.c.stage == "running")
        self._connection.execute(closed.values(updated_at=self._now, stage="closing"))
        return True

    def describe(self, run_id: str, owner: str, details: JsonObject) -> None:
        """Set what the run tells besides: its workspace, turns and executor. Raises as `begin`."""
        self._hold(run_id, owner)
        self._connection.execute(update(_runs).where(_runs.c.run_id == run_id).values(details=details))

    def over(self, run_ids: list[str], *, host: str) -> list[str]:
        """Which of these runs have ended, are not known, or are another host's now: nothing of theirs is needed on `host`."""
        ours = or_(_runs.c.host.is_(None), _runs.c.host == host)
        opened = select(_runs.c.run_id).where(_runs.c.run_id.in_(run_ids), text(schema.OPEN_RUNS), ours)
        living = set(self._connection.scalars(opened))
        return [run_id for run_id in run_ids if run_id not in living]

    def gone(self, run_ids: list[str]) -> list[str]:
        """Which of these runs are not kept any more."""
        kept = set(self._connection.scalars(select(_runs.c.run_id).where(_runs.c.run_id.in_(run_ids))))
        return [run_id for run_id in run_ids if run_id not in kept]

    def _hold(self, run_id: str, owner: str, *, host: str | None = None) -> None:
        held = update(_runs).where(_runs.c.run_id == run_id, _runs.c.owner == owner, text(schema.OPEN_RUNS))
        held = held.values(owner=owner) if host is None else held.values(host=host)
        if not self._connection.execute(held).rowcount:
            raise Conflict(
                f"The run '{run_id}' has ended, or is another process's now.",
                code="taken_over",
                hint="Stop: what this process does for it is neither wanted nor kept.",
            )


class Words(Repository):
    """What people say into runs under way."""

    __slots__ = ()

    def say(self, run_id: str, kind: Literal["message", "interrupt"], words: str, *, key_id: str | None) -> bool:
        """Whether the run is under way and hears this, so that it is kept for it.

        Raises: Conflict where so much waits for the run already that it must read first (`words_waiting`).
        """
        running = select(_runs.c.run_id).where(_runs.c.run_id == run_id, text(schema.OPEN_RUNS)).with_for_update()
        if self._connection.execute(running).one_or_none() is None:
            return False
        deaf = ("collecting", "ended") if kind == "interrupt" else ("closing", "collecting", "ended")
        closed = select(_executions.c.run_id).where(_executions.c.run_id == run_id, _executions.c.stage.in_(deaf))
        if self._connection.execute(closed).one_or_none() is not None:
            return False
        waiting = select(func.count()).where(_words.c.run_id == run_id, _words.c.taken_at.is_(None))
        if self._connection.execute(waiting).scalar_one() >= _MOST_WAITING:
            raise Conflict(
                f"The run '{run_id}' has not read {_MOST_WAITING} messages yet.",
                code="words_waiting",
                hint="Say more when it has read them; `cancel` stops the run.",
            )
        self._connection.execute(
            insert(_words).values(run_id=run_id, kind=kind, text=words, key_id=key_id, created_at=self._now)
        )
        return True

    def waiting(self, run_id: str) -> list[Word]:
        """What the run has not been told yet, in the order in which it was said."""
        untaken = select(_words).where(_words.c.run_id == run_id, _words.c.taken_at.is_(None)).order_by(_words.c.id)
        return [
            Word(record.id, record.kind, record.text, record.created_at)
            for record in self._connection.execute(untaken).all()
        ]

    def take(self, word_id: int) -> bool:
        """Whether this is the first to take the word: from now on it has been told."""
        taken = update(_words).where(_words.c.id == word_id, _words.c.taken_at.is_(None)).values(taken_at=self._now)
        return bool(self._connection.execute(taken).rowcount)


def _workflow(record: Row[Any]) -> WorkflowRow:
    return WorkflowRow(
        name=record.name,
        files=cast("dict[str, str]", record.files),
        active=record.active,
        key_id=record.key_id,
        revision=record.revision,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
