"""What a caller may see of the agents, and the errors for what they name and can't see."""

from automagik.agents import AgentInfo
from automagik.app import Platform
from automagik.errors import NotFound
from automagik.types import Caller

__all__ = ["check_agent", "sees_all_agents", "visible_agents"]


def sees_all_agents(caller: Caller) -> bool:
    """Whether the caller sees every agent with its config, and why one is broken."""
    return caller.allows("agents:read") or caller.allows("agents:write")


async def visible_agents(platform: Platform, caller: Caller) -> list[AgentInfo]:
    """The agents that the caller may see, by name: all, or those that they may run."""
    await platform.agents.refresh()
    infos = platform.agents.list_available_agents()
    if sees_all_agents(caller):
        return infos
    return [info for info in infos if info.error is None and caller.allows(f"agents:{info.name}:run")]


async def check_agent(platform: Platform, caller: Caller, name: str | None) -> None:
    """Nothing where there is such an agent (or none is named).

    Raises: NotFound with the nearest name among those that the caller may see.
    """
    if name is None:
        return
    await platform.agents.refresh()
    if all(info.name != name for info in platform.agents.list_available_agents()):
        raise NotFound("agent", name, known=[info.name for info in await visible_agents(platform, caller)])
