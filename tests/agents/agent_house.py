"""What the tests of this folder stand in: the rooms below the agents on SQLite, and models that are scripted."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic_ai import ModelMessage, ModelResponse
from pydantic_ai.messages import TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel

from automagik.agents import AgentFactory, AutomagikAgent, RunOptions
from automagik.memory import MemoryStore, Prompts
from automagik.providers import ModelRegistry
from automagik.settings import Settings
from automagik.store import Store
from automagik.tools import AgentContext, ToolRegistry
from automagik.types import JsonObject

__all__ = ["House", "Recorder", "ScriptedModels"]

Answer = Callable[[list[ModelMessage], AgentInfo], ModelResponse]


class ScriptedModels(ModelRegistry):
    """A registry whose model `scripted` says what a test tells it to. All else is the real one's."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.instructions: list[str | None] = []
        """What the model was told, each time it was asked."""
        self.tools: list[list[str]] = []
        self.answer: Answer = lambda _, __: ModelResponse(parts=[TextPart("fine")])
        self.scripted = FunctionModel(self._answer, model_name="scripted")

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.instructions.append(info.instructions)
        self.tools.append([tool.name for tool in info.function_tools])
        return self.answer(messages, info)

    def cached(self, *names: str) -> Model | None:
        return self.scripted if names[:1] == ("scripted",) else super().cached(*names)


@dataclass(frozen=True)
class House:
    """The rooms below the agents, and their factory."""

    settings: Settings
    store: Store
    models: ScriptedModels
    prompts: Prompts
    memories: MemoryStore
    tools: ToolRegistry

    def factory(self) -> AgentFactory:
        """A factory of its own, as a process that starts has."""
        return AgentFactory(
            settings=self.settings,
            store=self.store,
            models=self.models,
            prompts=Prompts(self.store),
            tools=self.tools,
        )

    async def discovered(self) -> AgentFactory:
        """A factory that has looked around."""
        factory = self.factory()
        await factory.discover_agents()
        return factory

    def write(self, name: str, text: str) -> Path:
        """A file in the agents folder."""
        folder = self.settings.agents_folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def options(self, agent: AutomagikAgent, *, user_id: uuid.UUID | None = None, **changes: Any) -> RunOptions:
        """Options of a run of `agent` for `user_id`."""
        context = AgentContext(
            run_id="run_1",
            agent_name=agent.name,
            agent_id=agent.db_id,
            memory=self.memories.for_agent(agent.db_id, user_id=user_id, session_key=None),
            user_id=user_id,
            variables=cast("dict[str, str]", changes.pop("prompt_variables", {})),
        )
        return RunOptions(context=context, **changes)


@dataclass
class Recorder:
    """Takes the events of a run."""

    events: list[tuple[str, JsonObject]] = field(default_factory=list[tuple[str, JsonObject]])

    def __call__(self, kind: str, data: JsonObject) -> None:
        self.events.append((kind, data))

    def kinds(self) -> list[str]:
        """The kinds of events, in order."""
        return [kind for kind, _ in self.events]

    def text(self, kind: str = "text_delta") -> list[object]:
        """The texts of one kind of event."""
        return [data["text"] for name, data in self.events if name == kind]
