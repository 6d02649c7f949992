"""ToolRegistry: finds tools, checks them, and attaches them to agents by name."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from pydantic_ai import FunctionToolset, Tool, UserError

from automagik.errors import InvalidInput, PluginError, nearest
from automagik.plugins import Broken, load_entry_points
from automagik.tools.builtin import datetime_tools, memory_tools
from automagik.types import Clock, JsonObject, SystemClock

__all__ = ["ENTRY_POINT_GROUP", "ToolCategory", "ToolInfo", "ToolRegistry", "is_read_only"]

ENTRY_POINT_GROUP = "automagik.tools"
"""Entry points of this group name a function, a `Tool`, a `FunctionToolset`, or a sequence of functions and `Tool`s."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)


class ToolCategory(StrEnum):
    """What a tool works on: the categories of the architecture document, and `general`."""

    FILE_OPERATIONS = "file_operations"
    COMMUNICATION = "communication"
    VERSION_CONTROL = "version_control"
    TASK_MANAGEMENT = "task_management"
    MEMORY_OPERATIONS = "memory_operations"
    GENERAL = "general"


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """A tool as shown in lists."""

    name: str
    description: str
    category: ToolCategory
    group: str | None
    """The name by which the tool is attached together with others."""
    source: str
    """`code`, or the package that it came from."""
    parameters: JsonObject
    """The JSON Schema of its arguments."""
    read_only: bool
    """Whether it changes nothing, so that a run that used it may be repeated: `Tool(..., metadata={"read_only": True})`."""


def is_read_only(tool: Tool[Any]) -> bool:
    """Whether a tool says that it changes nothing. One that says nothing counts as writing."""
    return (tool.metadata or {}).get("read_only") is True


class ToolRegistry:
    """The tools that agents may have. A tool is one object, shared by all agents it is attached to."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._tools: dict[str, Tool[Any]] = {}
        self._infos: dict[str, ToolInfo] = {}
        self._groups: dict[str, list[str]] = {}
        self._broken: list[Broken] = []

    @property
    def broken(self) -> Sequence[Broken]:
        """What could not be loaded, each with its cause."""
        return tuple(self._broken)

    def discover(self) -> None:
        """Register the built-in tools and those of installed packages. One that is broken is kept with its cause."""
        for tool in memory_tools():
            self.register(tool, category=ToolCategory.MEMORY_OPERATIONS, group="memory")
        for tool in datetime_tools(self._clock):
            self.register(tool, group="datetime")
        for found in load_entry_points(ENTRY_POINT_GROUP):
            if isinstance(found, Broken):
                self._broken.append(found)
                continue
            try:
                self._register_package(found.name, found.value, found.source)
            except (PluginError, InvalidInput) as wrong:
                self._broken.append(Broken(found.name, found.source, wrong.detail))

    def register(
        self,
        tool: Tool[Any] | Callable[..., Any],
        *,
        category: ToolCategory = ToolCategory.GENERAL,
        group: str | None = None,
        source: str = "code",
    ) -> ToolInfo:
        """Add one tool; it can be attached by its name from then on, and by its group's.

        Raises: PluginError when its name is taken or no tool name, or it has no description or no usable signature.
        """
        if not isinstance(tool, Tool):
            try:
                tool = Tool(tool)
            except (UserError, TypeError, ValueError) as wrong:
                raise PluginError(f"The tool can't be used: {wrong}") from wrong
        checked = cast("Tool[Any]", tool)
        self._check(checked, group)
        info = ToolInfo(
            name=checked.name,
            description=cast("str", checked.description),
            category=category,
            group=group,
            source=source,
            parameters=cast("JsonObject", checked.function_schema.json_schema),
            read_only=is_read_only(checked),
        )
        self._tools[checked.name] = checked
        self._infos[checked.name] = info
        if group is not None:
            self._groups.setdefault(group, []).append(checked.name)
        return info

    def attach(self, names: Iterable[str], *, field: Sequence[str | int] = ("tools",)) -> list[Tool[Any]]:
        """The tools that `names` (of tools or groups) stand for, each once.

        Raises: InvalidInput for an unknown name, with the nearest known.
        """
        attached: dict[str, Tool[Any]] = {}
        for index, name in enumerate(names):
            members = self._groups.get(name) or ([name] if name in self._tools else None)
            if members is None:
                known = (*self._groups, *self._tools)
                close = nearest(name, known)
                raise InvalidInput(
                    f"There is no tool '{name}'.",
                    field=(*field, index),
                    code="unknown_tool",
                    hint=f"Did you mean '{close}'?" if close else f"Known are: {', '.join(sorted(known))}.",
                )
            attached.update((member, self._tools[member]) for member in members)
        return list(attached.values())

    def list(self) -> "list[ToolInfo]":
        """All tools, by name."""
        return [self._infos[name] for name in sorted(self._infos)]

    def _check(self, tool: Tool[Any], group: str | None) -> None:
        if _NAME.fullmatch(tool.name) is None:
            raise PluginError(
                f"'{tool.name}' is no name of a tool.", hint="Use letters, digits, '_' and '-'; 64 characters at most."
            )
        if tool.name in self._tools or tool.name in self._groups:
            raise PluginError(f"A tool '{tool.name}' is there already.")
        if group is not None and group in self._tools:
            raise PluginError(f"The group '{group}' has the name of a tool.")
        if not (tool.description or "").strip():
            raise PluginError(
                f"The tool '{tool.name}' has no description.", hint="Give its function a docstring: the model reads it."
            )

    def _register_package(self, name: str, value: object, source: str) -> None:
        if isinstance(value, FunctionToolset):
            members = list(cast("FunctionToolset[Any]", value).tools.values())
        elif isinstance(value, list | tuple):
            members = list(cast("Sequence[Any]", value))
        elif isinstance(value, Tool) or callable(value):
            self.register(cast("Tool[Any]", value), category=_category(cast("object", value)), source=source)
            return
        else:
            raise PluginError(f"The entry point '{name}' is no tool, but {type(value).__name__}.")
        for member in members:
            self.register(member, category=_category(member), group=name, source=source)


def _category(tool: object) -> ToolCategory:
    """The category that a `Tool` names in its metadata (`{"category": "communication"}`)."""
    metadata = tool.metadata if isinstance(tool, Tool) else None
    named = (metadata or {}).get("category", ToolCategory.GENERAL)
    try:
        return ToolCategory(named)
    except ValueError:
        raise PluginError(f"There is no category '{named}'.", hint=f"Known are: {', '.join(ToolCategory)}.") from None
