"""SimpleAgent: the agent that is there from the start."""

from typing import ClassVar

from automagik.agents.built import BuiltAgent
from automagik.agents.config import AgentConfig

__all__ = ["SimpleAgent"]


class SimpleAgent(BuiltAgent):
    """A helpful assistant with memory and a calendar. Subclass it for an agent that differs in prompt, tools or model only."""

    name = "simple"
    agent_type: ClassVar[str] = "simple"
    config = AgentConfig(
        description="A helpful assistant that remembers what you tell it.",
        tools=("memory", "datetime"),
        allow_overrides=frozenset({"system_prompt"}),
    )
    _code_prompt_text = """\
You are {{agent_name}}, a helpful assistant. Answer in the language you are asked in, briefly and to the point.
Today is {{current_date}}.
When the user tells you something worth knowing next time, store it with your memory tools; look there before you say
that you don't know something about the user.
"""
