"""A real package is built and installed, and a process that finds it lists, runs and survives its agents."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent / "fixtures" / "plugin_package"

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from automagik.agents import AgentFactory, AgentInput, RunOptions
from automagik.memory import MemoryStore, Prompts
from automagik.providers import ModelRegistry
from automagik.settings import Settings
from automagik.store import Store
from automagik.tools import AgentContext, ToolRegistry
from automagik.types import SystemClock

async def main(folder):
    settings = Settings(data_dir=Path(folder), model="demo")
    store, models, tools = Store.from_settings(settings, SystemClock()), ModelRegistry(settings), ToolRegistry()
    await store.open()
    await models.open()
    tools.discover()
    factory = AgentFactory(settings=settings, store=store, models=models, prompts=Prompts(store), tools=tools)
    await factory.discover_agents()
    agent = factory.get_agent("greeter")
    memory = MemoryStore(store).for_agent(agent.db_id, user_id=None, session_key=None)
    context = AgentContext(run_id="run_1", agent_name=agent.name, agent_id=agent.db_id, memory=memory)
    response = await agent.process_message(AgentInput("wave"), RunOptions(context=context))
    print(json.dumps({
        "agents": {info.name: [info.source, info.location, info.error] for info in factory.list_available_agents()},
        "tools": [tool.name for tool in tools.attach(["greetings"])],
        "instructions": response.instructions,
        "outputs": response.tool_outputs,
    }))
    await models.close()
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into, from a copy of its source."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    uv = Path(sys.executable).parent / "uv"
    pip = [str(uv), "pip"] if uv.exists() else [sys.executable, "-m", "pip"]
    target = ["--python", sys.executable] if uv.exists() else []
    command = [
        *pip,
        "install",
        *target,
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(folder / "site"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def told(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with the package tells."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path_factory.mktemp("data"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_agents_of_a_package_are_found_by_their_entry_points(told: dict[str, Any]) -> None:
    usable = {name: location for name, (_, location, error) in told["agents"].items() if error is None}
    assert usable == {
        "greeter": "greeter-plugin: greeter_plugin:GreeterAgent",
        "made": "greeter-plugin: greeter_plugin:make_agent",
        "polite-one": "greeter-plugin: greeter_plugin:polite",
        "simple": "",
    }
    assert told["agents"]["greeter"][0] == "package"


def test_an_agent_of_a_package_runs_with_its_packages_tools(told: dict[str, Any]) -> None:
    assert told["tools"] == ["greet", "wave"]
    assert told["instructions"] == "You greet people in a warm tone."
    assert [(output["tool_name"], output["content"]) for output in told["outputs"]] == [("wave", "o/")]


@pytest.mark.parametrize(
    ("name", "cause"),
    [("thing", "int"), ("missing", "greeter_plugin.nowhere"), ("exploding", "RuntimeError: no licence found")],
)
def test_what_is_broken_in_a_package_is_listed_with_its_cause(told: dict[str, Any], name: str, cause: str) -> None:
    source, location, error = told["agents"][name]
    assert (source, location.split(":")[0]) == ("package", "greeter-plugin")
    assert cause in error
