"""The group `memory`: an agent's own memories of the user (or session) it runs for, and of nobody else."""

from functools import cache
from typing import Any

from pydantic_ai import ModelRetry, RunContext, Tool

from automagik.errors import InvalidInput
from automagik.tools.context import AgentContext

__all__ = ["delete_memory", "get_memory", "list_memories", "memory_tools", "store_memory"]


@cache
def memory_tools() -> tuple[Tool[Any], ...]:
    """The tools of the group. What they reach is bound by the run's context, not by their arguments."""
    reading = {"read_only": True}
    return (
        Tool(store_memory),
        Tool(get_memory, metadata=reading),
        Tool(list_memories, metadata=reading),
        Tool(delete_memory),
    )


async def store_memory(ctx: RunContext[AgentContext], name: str, content: str, description: str | None = None) -> str:
    """Remember something for later conversations. What was remembered under the same name is replaced.

    Args:
        name: A short name of letters, digits and underscores, such as `favourite_colour`.
        content: What to remember.
        description: What the memory is about, for whoever reads the list.
    """
    try:
        await ctx.deps.memory.store(name, content, description=description)
    except InvalidInput as wrong:
        raise ModelRetry(f"{wrong.detail} {wrong.hint or ''}".strip()) from None
    return f"Stored as '{name}'."


async def get_memory(ctx: RunContext[AgentContext], name: str) -> str:
    """What is remembered under a name.

    Args:
        name: The memory's name.
    """
    content = await ctx.deps.memory.get(name)
    return f"Nothing is remembered under '{name}'." if content is None else content


async def list_memories(ctx: RunContext[AgentContext]) -> dict[str, str]:
    """All that is remembered: each memory's name with its content."""
    return dict(sorted((await ctx.deps.memory.values()).items()))


async def delete_memory(ctx: RunContext[AgentContext], name: str) -> str:
    """Forget what is remembered under a name.

    Args:
        name: The memory's name.
    """
    try:
        deleted = await ctx.deps.memory.delete(name)
    except InvalidInput as wrong:
        raise ModelRetry(wrong.detail) from None
    if deleted:
        return f"Forgot '{name}'."
    return f"Nothing of your own is remembered under '{name}'."
