import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_ai import FunctionToolset, Tool

from automagik.errors import InvalidInput, PluginError
from automagik.tools import ToolCategory, ToolRegistry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed into, gone with its modules after the test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(site: Path, package: str, source: str, entries: dict[str, str]) -> None:
    (site / f"{package}.py").write_text(source)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[automagik.tools]", *lines, ""]))
    importlib.invalidate_caches()


def shout(text: str) -> str:
    """Say it loudly.

    Args:
        text: What to say.
    """
    return text.upper()


def test_the_built_in_tools_are_there_by_group_and_category() -> None:
    registry = ToolRegistry()
    registry.discover()
    assert {info.name: (info.group, info.category.value) for info in registry.list()} == {
        "delete_memory": ("memory", "memory_operations"),
        "get_current_date": ("datetime", "general"),
        "get_current_time": ("datetime", "general"),
        "get_memory": ("memory", "memory_operations"),
        "list_memories": ("memory", "memory_operations"),
        "store_memory": ("memory", "memory_operations"),
    }
    assert all(info.description for info in registry.list())
    assert registry.broken == ()


def test_tools_are_attached_by_name_and_by_group_each_once() -> None:
    registry = ToolRegistry()
    registry.discover()
    attached = registry.attach(["get_memory", "memory", "get_current_date"])
    assert [tool.name for tool in attached] == [
        "get_memory",
        "store_memory",
        "list_memories",
        "delete_memory",
        "get_current_date",
    ]
    assert registry.attach([]) == []


def test_an_unknown_tool_is_refused_with_the_nearest() -> None:
    registry = ToolRegistry()
    registry.discover()
    with pytest.raises(InvalidInput) as refused:
        registry.attach(["memory", "get_curent_time"], field=("body", "tools"))
    assert refused.value.field == ("body", "tools", 1)
    assert refused.value.hint == "Did you mean 'get_current_time'?"


def test_a_registered_tool_has_the_schema_of_its_function() -> None:
    info = ToolRegistry().register(shout, category=ToolCategory.COMMUNICATION, source="a package")
    assert (info.name, info.description, info.category) == ("shout", "Say it loudly.", ToolCategory.COMMUNICATION)
    assert info.parameters["properties"] == {"text": {"description": "What to say.", "type": "string"}}


def without_docstring(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        (without_docstring, "no description"),
        (Tool(shout, name="two words"), "no name of a tool"),
        (Tool(shout, name="memory"), "there already"),
        (Tool(shout, name="get_memory"), "there already"),
    ],
)
def test_a_tool_that_can_not_be_used_is_refused(tool: Tool[None], says: str) -> None:
    registry = ToolRegistry()
    registry.discover()
    with pytest.raises(PluginError, match=says):
        registry.register(tool)


def test_a_group_is_not_named_like_a_tool() -> None:
    registry = ToolRegistry()
    registry.register(shout)
    with pytest.raises(PluginError, match="name of a tool"):
        registry.register(Tool(shout, name="whisper"), group="shout")


PACKAGE = '''
from pydantic_ai import FunctionToolset, Tool


def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()


def silent(text: str) -> str:
    return text


loud = Tool(shout, name="loud", metadata={"category": "communication"})
odd = Tool(shout, name="odd", metadata={"category": "nonsense"})
both = FunctionToolset([Tool(shout, name="one"), Tool(shout, name="two")])
several = [Tool(shout, name="three"), shout]
number = 7
'''


def test_tools_of_packages_are_found_and_broken_ones_keep_their_cause(site: Path) -> None:
    install(
        site,
        "loud_tools",
        PACKAGE,
        {
            "loud": "loud_tools:loud",
            "pair": "loud_tools:both",
            "several": "loud_tools:several",
            "silent": "loud_tools:silent",
            "odd": "loud_tools:odd",
            "number": "loud_tools:number",
            "missing": "no_such_module:tool",
        },
    )
    registry = ToolRegistry()
    registry.discover()
    found = {info.name: (info.group, info.category.value, info.source) for info in registry.list()}
    assert found["loud"] == (None, "communication", "loud_tools: loud_tools:loud")
    assert found["two"] == ("pair", "general", "loud_tools: loud_tools:both")
    assert [tool.name for tool in registry.attach(["pair", "several"])] == ["one", "two", "three", "shout"]
    broken = {plugin.name: plugin.cause for plugin in registry.broken}
    assert set(broken) == {"silent", "odd", "number", "missing"}
    assert "no description" in broken["silent"]
    assert "nonsense" in broken["odd"]
    assert "int" in broken["number"]
    assert "no_such_module" in broken["missing"]


def test_a_toolset_and_its_tools_are_shared_by_agents() -> None:
    registry = ToolRegistry()
    registry.register(shout)
    (first,), (second,) = registry.attach(["shout"]), registry.attach(["shout"])
    FunctionToolset([first])
    FunctionToolset([second])
    assert first is second
