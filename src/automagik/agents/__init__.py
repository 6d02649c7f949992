"""Agents: what one is, the kinds there are, and the factory that finds and makes them."""

from automagik.agents.agent import AgentDependencies, AgentInput, AgentResponse, AutomagikAgent, RunOptions
from automagik.agents.built import BuiltAgent, PydanticAgent
from automagik.agents.config import AgentConfig, agent_document
from automagik.agents.factory import AgentFactory, AgentInfo
from automagik.agents.running import usage_of
from automagik.agents.simple import SimpleAgent
from automagik.agents.spec import ALLOWED_CAPABILITIES, SpecAgent

__all__ = [
    "ALLOWED_CAPABILITIES",
    "AgentConfig",
    "AgentDependencies",
    "AgentFactory",
    "AgentInfo",
    "AgentInput",
    "AgentResponse",
    "AutomagikAgent",
    "BuiltAgent",
    "PydanticAgent",
    "RunOptions",
    "SimpleAgent",
    "SpecAgent",
    "agent_document",
    "usage_of",
]
