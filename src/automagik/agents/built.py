"""BuiltAgent: an agent that runs one Pydantic AI `Agent`, built once; and PydanticAgent, one that its author built."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic_ai import Agent, DeferredToolRequests, FunctionToolset
from pydantic_ai.capabilities import AbstractCapability, Instrumentation
from pydantic_ai.models import Model

from automagik.agents.agent import AgentInput, AgentResponse, AutomagikAgent, RunOptions
from automagik.agents.config import AgentConfig
from automagik.agents.running import run_agent
from automagik.errors import Internal
from automagik.tools import AgentContext, is_read_only

__all__ = ["BuiltAgent", "PydanticAgent"]


class BuiltAgent(AutomagikAgent):
    """An agent whose turn is one run of a Pydantic AI agent. A subclass says what that is, by `make`."""

    _built: Agent[Any, Any] | None = None
    _per_run: Sequence[AbstractCapability[AgentContext]] | None = None
    """Capabilities that each run adds, for an agent that was built elsewhere."""

    def make(self) -> Agent[Any, Any]:
        """The Pydantic AI agent, without a model: each run brings its own, and its instructions."""
        return Agent(
            name=self.name,
            deps_type=AgentContext,
            output_type=[str, DeferredToolRequests],
            tools=self.dependencies.tools.attach(self.config.tools),
            capabilities=self.tracing(),
        )

    def build(self) -> None:
        """Build the Pydantic AI agent, once."""
        self._built = self.make()

    async def run(self, message: AgentInput, options: RunOptions) -> AgentResponse:
        """One turn with the model, under `options.instructions`."""
        if self._built is None:
            raise Internal(f"The agent '{self.name}' is not bound to a platform.")
        return await run_agent(
            self._built,
            message,
            options,
            model=await self.model_for(options),
            model_name=options.model or self.config.model,
            limits=options.usage_limits or self.usage_limits,
            capabilities=self._per_run,
        )

    def only_reads(self, tool_name: str) -> bool:
        """Whether a tool changes nothing: by the `read_only` in its metadata."""
        if self._built is None:
            return False
        for toolset in self._built.toolsets:
            if isinstance(toolset, FunctionToolset):
                tool = toolset.tools.get(tool_name)
                if tool is not None:
                    return is_read_only(tool)
        return False

    def tracing(self) -> list[AbstractCapability[AgentContext]]:
        """The capability that traces runs, where traces are wanted."""
        settings = self.dependencies.instrumentation
        return [] if settings is None else [Instrumentation(settings)]


class PydanticAgent(BuiltAgent):
    """A `pydantic_ai.Agent` that its author built. Its own instructions, tools and model stay; its `deps` is an AgentContext."""

    agent_type: ClassVar[str] = "pydantic_ai"

    def __init__(self, agent: Agent[Any, Any], *, name: str | None = None, config: AgentConfig | None = None) -> None:
        super().__init__(
            name=name or agent.name, config=config or AgentConfig(description=agent.render_description() or None)
        )
        self._agent = agent

    def make(self) -> Agent[Any, Any]:
        """The agent as its author built it."""
        self._per_run = self.tracing() or None
        return self._agent

    async def model_for(self, options: RunOptions) -> Model | None:
        """The request's model, else the author's (by name: through the platform, with its shared connections)."""
        own = self._agent.model
        if options.model is None and self.config.model is None and own is not None:
            if isinstance(own, Model):
                return self.limited(own, options)
            return await super().model_for(replace(options, model=str(own)))
        return await super().model_for(options)
