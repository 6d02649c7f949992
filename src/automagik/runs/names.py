"""SessionNames: requests that name one session at once agree on its id."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from automagik.types import new_uuid

__all__ = ["Name", "SessionNames"]

Name = tuple[uuid.UUID | None, str]
"""A user (None: no user) and a session's name: unique together."""


@dataclass(slots=True)
class _Pending:
    session_id: "asyncio.Future[uuid.UUID]"
    holders: int = 0


class SessionNames:
    """Finds the session of a name, or chooses the id of the one to be made.

    An id is remembered only while an acceptance that uses it is under way; afterwards the store knows the session.
    """

    def __init__(self, find: Callable[[Name], Awaitable[uuid.UUID | None]]) -> None:
        self._find = find
        self._pending: dict[Name, _Pending] = {}

    @asynccontextmanager
    async def resolve(self, name: Name) -> AsyncGenerator[uuid.UUID]:
        """The id of the session called `name`; hold it until the acceptance is stored."""
        pending = self._pending.get(name)
        if pending is None:
            pending = self._pending[name] = _Pending(asyncio.get_running_loop().create_future())
            pending.holders += 1
            try:
                pending.session_id.set_result(await self._find(name) or new_uuid())
            except BaseException as error:
                del self._pending[name]
                pending.session_id.set_exception(error)
                pending.session_id.exception()
                raise
        else:
            pending.holders += 1
        try:
            yield await asyncio.shield(pending.session_id)
        finally:
            pending.holders -= 1
            if not pending.holders and self._pending.get(name) is pending:
                del self._pending[name]
