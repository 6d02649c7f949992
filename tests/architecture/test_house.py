"""House rules that a program can check; see CONTRIBUTING.md for their reasons."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import automagik

ROOT = Path(automagik.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if "migrations" not in path.parts)
LONGEST = 500

READS_ENVIRONMENT = {
    "settings.py",
    "testing/fixtures.py",  # asks pytest-xdist for the worker's name
    "testing/servers.py",  # gives a child its PATH, and nothing else
    "testing/postgres.py",
    "testing/warm_parent.py",  # puts a command's environment in the place of its own
}
"""Who may read the environment: a set that may only shrink."""

EDGES = {
    "agents/sources.py": "plug-ins",
    "agents/factory.py": "plug-ins",
    "api/route.py": "the request",
    "plugins.py": "plug-ins",
    "runs/live.py": "the worker",
    "runs/worker.py": "the worker: an engine that fails, a run that can't be carried out",
    "store/sqlite.py": "carries a job's exception from the writer's thread to the one who waits",
}
"""Who may catch everything, and why: a list that may only shrink."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


TEXTS = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in TEXTS.items()}


def public_definitions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def reads_environment(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} for node in ast.walk(tree))


def lines_that_catch_everything(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.id if isinstance(node.type, ast.Name) else None
            broad = node.type is None or caught in {"Exception", "BaseException"}
            raises_again = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            if broad and not raises_again:
                yield node.lineno


def test_a_file_is_short_enough_to_read() -> None:
    lengths = {name: len(text.splitlines()) for name, text in TEXTS.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_what_is_public_is_in_all_and_what_is_in_all_is_there(trees: dict[str, ast.Module]) -> None:
    wrong: dict[str, set[str]] = {}
    for name, tree in trees.items():
        if name == "__main__.py":
            continue
        module = importlib.import_module(
            ".".join(("automagik", *Path(name).with_suffix("").parts)).removesuffix(".__init__")
        )
        exported = set(getattr(module, "__all__", ()))
        wrong[name] = {public for public in exported if not hasattr(module, public)}
        if not name.startswith(("cli/", "api/")):  # commands and routes are reached by their decorators
            wrong[name] |= set(public_definitions(tree)) - exported
    assert {name: names for name, names in wrong.items() if names} == {}


def test_only_the_settings_read_the_environment(trees: dict[str, ast.Module]) -> None:
    assert {name for name, tree in trees.items() if reads_environment(tree)} <= READS_ENVIRONMENT


def test_only_the_edges_catch_everything(trees: dict[str, ast.Module]) -> None:
    found = {name: list(lines_that_catch_everything(tree)) for name, tree in trees.items()}
    assert {name: lines for name, lines in found.items() if lines and name not in EDGES} == {}


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert {name: found.group() for name, text in TEXTS.items() if (found := marks.search(text))} == {}
