"""AgentMemory: what one run may read and write among the memories."""

from collections.abc import Sequence
from uuid import UUID

from automagik.errors import InvalidInput
from automagik.memory.templates import is_name
from automagik.memory.text import check_text, clean_text
from automagik.memory.writing import write_again
from automagik.store import Store, Transaction

__all__ = ["AgentMemory"]

_MAX_DESCRIPTION = 1000


class AgentMemory:
    """A door to memories that is bound to one agent and one user (or, without a user, one session) and leads nowhere else.

    It reads what the run may see, the nearest scope winning (session, then agent and user, user, agent). It writes only to
    the scope of this agent and user, or of this agent and session where there is no user.
    """

    __slots__ = ("_agent_id", "_max_text_chars", "_session_key", "_store", "_user_id")

    def __init__(
        self, store: Store, *, agent_id: int, user_id: UUID | None, session_key: int | None, max_text_chars: int
    ) -> None:
        self._store = store
        self._agent_id = agent_id
        self._user_id = user_id
        self._session_key = session_key
        self._max_text_chars = max_text_chars

    async def get(self, name: str) -> str | None:
        """What is remembered under `name`, or None."""
        return (await self.values([name])).get(name) if is_name(name) else None

    async def values(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """What is remembered under each of `names` (None: all that the run may read)."""
        return await self._store.read(
            lambda tx: tx.memories.variables(
                agent_id=self._agent_id, user_id=self._user_id, session_id=self._session_key, names=names
            )
        )

    async def store(self, name: str, content: str, *, description: str | None = None) -> None:
        """Remember `content` under `name`; what was there in this scope is replaced.

        Raises: InvalidInput for what is no name, a text that is too long, or a run that has neither user nor session.
        """
        session_key = self._scope()
        if not is_name(name):
            raise InvalidInput(
                f"{name[:60]!r} is no name of a memory.",
                field=("name",),
                hint="Use letters, digits, '_', '.' and '-'; begin with a letter or '_'.",
            )
        content = check_text(clean_text(content), field=("content",), max_chars=self._max_text_chars)
        about = None if description is None else clean_text(description)[:_MAX_DESCRIPTION]
        await write_again(
            self._store,
            lambda tx: tx.memories.put(
                name,
                content,
                agent_id=self._agent_id,
                user_id=self._user_id,
                session_id=session_key,
                description=about,
            ),
        )

    async def delete(self, name: str) -> bool:
        """Forget `name` in the scope that this door writes to; whether it was there."""
        if not is_name(name):
            return False
        session_key = self._scope()

        def delete(tx: Transaction) -> bool:
            found = tx.memories.find_in_scope(
                name, agent_id=self._agent_id, user_id=self._user_id, session_id=session_key
            )
            if found is None:
                return False
            tx.memories.delete(found.memory_id)
            return True

        return await self._store.write(delete)

    def _scope(self) -> int | None:
        """The session that is written to, None where the user's scope is."""
        if self._user_id is not None:
            return None
        if self._session_key is None:
            raise InvalidInput(
                "This run has neither a user nor a session, so nothing can be remembered for it.", field=("user_id",)
            )
        return self._session_key
