"""Party: whom a call to a model belongs to, and so in which budgets it counts."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Party"]


@dataclass(frozen=True, slots=True)
class Party:
    """Whom a call belongs to. It counts in the budgets of all of them, and of the organisation."""

    key_id: str | None = None
    user_id: uuid.UUID | None = None
    agents: tuple[str, ...] = ()
    """The agent's name; of a workflow that of its agent and its own: `("claude_code", "implement")`."""
    run_id: str | None = None
    epic_id: str | None = None

    @property
    def agent(self) -> str | None:
        """Whose call it is: the workflow's or the agent's name."""
        return self.agents[-1] if self.agents else None

    @property
    def scopes(self) -> Sequence[tuple[str, str]]:
        """The scopes that a call of the party counts in, each with whom it names."""
        scopes = [("organisation", "")]
        if self.key_id is not None:
            scopes.append(("key", self.key_id))
        if self.user_id is not None:
            scopes.append(("user", str(self.user_id)))
        scopes += [("agent", name) for name in dict.fromkeys(self.agents)]
        if self.epic_id is not None:
            scopes.append(("epic", self.epic_id))
        if self.run_id is not None:
            scopes.append(("run", self.run_id))
        return scopes
