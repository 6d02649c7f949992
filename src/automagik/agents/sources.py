"""Where agents come from: the platform's own, installed packages, files in the agents folder."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, cast

from pydantic_ai import Agent

from automagik.agents.agent import AutomagikAgent
from automagik.agents.built import PydanticAgent
from automagik.agents.simple import SimpleAgent
from automagik.agents.spec import SpecAgent, read_spec_file
from automagik.errors import AutomagikError, PluginError
from automagik.plugins import Broken, Loaded, load_entry_points, load_file

__all__ = ["ENTRY_POINT_GROUP", "BrokenAgent", "Candidate", "Source", "cause_of", "find_agents"]

Source = Literal["code", "package", "file", "api"]

ENTRY_POINT_GROUP: Final = "automagik.agents"
"""Entry points of this group name an AutomagikAgent class or object, a `pydantic_ai.Agent`, or a function that makes one."""

_SPEC_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent that was found and is not bound yet."""

    agent: AutomagikAgent
    source: Source
    location: str
    """The entry point or the file; empty for the platform's own."""

    @property
    def origin(self) -> str:
        """Where it came from, for people."""
        return self.location or "the platform itself"


@dataclass(frozen=True, slots=True)
class BrokenAgent:
    """An agent that can't be used, and why."""

    name: str
    source: Source
    location: str
    cause: str


def find_agents(folder: Path, *, own: Iterable[AutomagikAgent] = ()) -> Iterator[Candidate | BrokenAgent]:
    """All agents but those of the API; `own` are the platform's besides `simple`.

    What can't be loaded comes as BrokenAgent, with its cause, and stops nothing.
    """
    for agent in (SimpleAgent(), *own):
        yield Candidate(agent, "code", "")
    for found in load_entry_points(ENTRY_POINT_GROUP):
        yield from _made(found, "package", lambda loaded: [_agent_of(loaded.value, loaded.name)])
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")) or not path.is_file():
            continue
        if path.suffix == ".py":
            yield from _made(load_file(path), "file", lambda loaded: _agents_in(loaded.value, loaded.name))
        elif path.suffix in _SPEC_SUFFIXES:
            yield from _made(Loaded(path.stem, str(path), path), "file", lambda loaded: [_declared(loaded.value)])


def cause_of(error: BaseException) -> str:
    """Why a plug-in could not be used, in one line."""
    if isinstance(error, AutomagikError):
        field = getattr(error, "field", ())
        where = f"{'.'.join(map(str, field))}: " if field else ""
        return f"{where}{error.detail} {error.hint or ''}".strip()
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:500] if message else type(error).__name__


def _made(
    found: Loaded | Broken, source: Source, make: Callable[[Loaded], list[AutomagikAgent]]
) -> Iterator[Candidate | BrokenAgent]:
    if isinstance(found, Broken):
        yield BrokenAgent(found.name, source, found.source, found.cause)
        return
    try:
        agents = make(found)
    except Exception as error:  # noqa: BLE001 - the plug-in edge: its constructor and its factory are its own code
        yield BrokenAgent(found.name, source, found.source, cause_of(error))
        return
    for agent in agents:
        yield Candidate(agent, source, found.source)


def _declared(path: Path) -> AutomagikAgent:
    name, config = read_spec_file(path)
    return SpecAgent(name, config, trusted=True)


def _agent_of(value: Any, default_name: str) -> AutomagikAgent:
    """The agent that an entry point's or a file's object stands for."""
    if inspect.isclass(value) and issubclass(value, AutomagikAgent):
        return _instance(value, default_name)
    if not isinstance(value, AutomagikAgent | Agent) and callable(value):
        value = value()
    if isinstance(value, Agent):
        agent = cast("Agent[Any, Any]", value)
        return PydanticAgent(agent, name=agent.name or default_name)
    if isinstance(value, AutomagikAgent):
        if not value.name:
            value.name = default_name
        return value
    raise PluginError(
        f"It is no agent, but {type(value).__name__}.",
        hint="Give a class or object of AutomagikAgent, a pydantic_ai.Agent, or a function that makes one.",
    )


def _agents_in(module: ModuleType, default_name: str) -> list[AutomagikAgent]:
    """What a file defines: its `agent`, else the AutomagikAgent classes that it defines itself."""
    if hasattr(module, "agent"):
        return [_agent_of(module.agent, default_name)]
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, AutomagikAgent)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if not classes:
        raise PluginError("The file defines no agent.", hint="Define a class of AutomagikAgent, or a variable `agent`.")
    return [_instance(value, default_name) for value in classes]


def _instance(kind: type[AutomagikAgent], default_name: str) -> AutomagikAgent:
    """An object of the class, under the name that the class itself states, else the default."""
    return kind() if vars(kind).get("name") else kind(name=default_name)
