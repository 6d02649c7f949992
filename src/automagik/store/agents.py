"""Agents: the agents that the platform knows, from code, packages, files and the API."""

from typing import Any, TypedDict, Unpack

from sqlalchemy import Row, insert, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import NotFound, PreconditionFailed
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts, insert_new
from automagik.store.rows import AgentRow, Page
from automagik.store.turns import notify
from automagik.types import JsonObject

__all__ = ["AgentChanges", "Agents"]

_agents = schema.agents


class AgentChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    type: str
    active: bool
    description: str | None
    source: str
    config: JsonObject


class Agents(Repository):
    """The agents table. Names are unique."""

    __slots__ = ()

    def create(
        self,
        name: str,
        *,
        type: str,  # noqa: A002 - the column's name in the document
        source: str,
        config: JsonObject | None = None,
        description: str | None = None,
        active: bool = True,
    ) -> AgentRow:
        """The new agent. Raises Conflict where the name is taken."""
        values = self._values(name, type=type, source=source, config=config, description=description, active=active)
        with conflicts(f"There is already an agent '{name}'.", hint="Choose another name, or change that agent."):
            record = self._connection.execute(insert(_agents).values(values).returning(_agents)).one()
        notify(self._connection, "changed agents")
        return _row(record)

    def register(
        self,
        name: str,
        *,
        type: str,  # noqa: A002 - the column's name in the document
        source: str,
        config: JsonObject | None = None,
        description: str | None = None,
    ) -> AgentRow:
        """The agent as its code says it is now: made, changed where it differs, else left alone without a write."""
        found = self.find(name)
        if found is None:  # another process may be starting, too
            values = self._values(name, type=type, source=source, config=config, description=description, active=True)
            insert_new(self._connection, _agents, values)
            found = self.get(name)
        wanted = AgentChanges(type=type, source=source, config=config or {}, description=description, active=True)
        same = (found.type, found.source, found.config, found.description, found.active)
        if same == (type, source, config or {}, description, True):
            return found
        return self.update(name, **wanted)

    def find(self, name: str) -> AgentRow | None:
        """The agent called `name`, or None."""
        record = self._connection.execute(select(_agents).where(_agents.c.name == name)).one_or_none()
        return None if record is None else _row(record)

    def get(self, name: str) -> AgentRow:
        """The agent called `name`. Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound("agent", name)
        return found

    def update(self, name: str, *, if_revision: int | None = None, **changes: Unpack[AgentChanges]) -> AgentRow:
        """The changed agent, its revision counted up.

        Raises:
            NotFound: there is no such agent.
            PreconditionFailed: it is not at `if_revision` any more.
        """
        statement = update(_agents).where(_agents.c.name == name)
        if if_revision is not None:
            statement = statement.where(_agents.c.revision == if_revision)
        statement = statement.values(revision=_agents.c.revision + 1, updated_at=self._now, **changes)
        record = self._connection.execute(statement.returning(_agents)).one_or_none()
        if record is None:
            raise self._stale(name)
        notify(self._connection, "changed agents")
        return _row(record)

    def delete(self, name: str, *, if_revision: int | None = None) -> AgentRow:
        """The agent that was deleted, with its prompts and memories; its sessions stay, without an agent.

        Raises:
            NotFound: there is no such agent.
            PreconditionFailed: it is not at `if_revision` any more.
        """
        statement = delete_from(_agents).where(_agents.c.name == name)
        if if_revision is not None:
            statement = statement.where(_agents.c.revision == if_revision)
        record = self._connection.execute(statement.returning(_agents)).one_or_none()
        if record is None:
            raise self._stale(name)
        notify(self._connection, "changed agents")
        return _row(record)

    def all(self) -> list[AgentRow]:
        """Every agent, by name."""
        return [_row(record) for record in self._connection.execute(select(_agents).order_by(_agents.c.name))]

    def list(
        self, *, source: str | None = None, active: bool | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[AgentRow]:
        """Agents, newest first."""
        statement = select(_agents)
        if source is not None:
            statement = statement.where(_agents.c.source == source)
        if active is not None:
            statement = statement.where(_agents.c.active == active)
        return fetch_page(self._connection, statement, (_agents.c.id,), _row, limit=limit, cursor=cursor)

    def _values(self, name: str, *, config: JsonObject | None, **values: Any) -> dict[str, Any]:
        made = {"name": name, "config": config or {}, "revision": 1, "created_at": self._now, "updated_at": self._now}
        return {**made, **values}

    def _stale(self, name: str) -> PreconditionFailed:
        found = self.get(name)
        return PreconditionFailed(
            f"The agent '{name}' was changed since you read it; it is at revision {found.revision}.",
            hint="Read it again and repeat your change.",
        )


def _row(record: Row[Any]) -> AgentRow:
    return AgentRow(
        id=record.id,
        name=record.name,
        type=record.type,
        active=record.active,
        description=record.description,
        source=record.source,
        config=record.config,
        revision=record.revision,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
