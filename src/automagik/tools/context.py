"""AgentContext: whom a run is for. The `deps` of every Pydantic AI agent, and so what a tool gets to know and to reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from automagik.memory import AgentMemory
from automagik.types import Json

__all__ = ["AgentContext", "AgentMemory"]


@dataclass(frozen=True, slots=True)
class AgentContext:
    """Whom a run is for. A tool takes it from `RunContext[AgentContext].deps`."""

    run_id: str
    """The run, `run_…`."""
    agent_name: str
    """The agent that runs."""
    agent_id: int
    """The agent's key in the store."""
    memory: AgentMemory = field(repr=False)
    """The memories of this agent for this user (or session), and no others."""
    session_id: UUID | None = None
    """The session's public identifier."""
    session_key: int | None = None
    """The session's key in the store."""
    user_id: UUID | None = None
    """The user that the run is for."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    """The request's own variables (`prompt_variables`)."""
    request: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """The request's `context`, as it came."""
