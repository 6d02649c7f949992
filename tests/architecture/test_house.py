"""House rules that a program can check; see CONTRIBUTING.md for their reasons."""

import ast
import importlib
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


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_definitions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_is_in_all_and_what_is_in_all_is_there(path: Path) -> None:
    tree = tree_of(path)
    definitions = set(public_definitions(tree))
    if path.name == "__main__.py":
        return
    module = importlib.import_module(
        ".".join(("automagik", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    )
    exported = set(getattr(module, "__all__", ()))
    assert all(hasattr(module, name) for name in exported)
    if not definitions or path.is_relative_to(ROOT / "cli") or path.is_relative_to(ROOT / "api"):
        return  # commands and routes are reached by their decorators
    assert definitions <= exported


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_settings_read_the_environment(path: Path) -> None:
    reads = any(
        isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} for node in ast.walk(tree_of(path))
    )
    assert not reads or name_of(path) in READS_ENVIRONMENT


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_edges_catch_everything(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.id if isinstance(node.type, ast.Name) else None
            broad = node.type is None or caught in {"Exception", "BaseException"}
            raises_again = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            assert not broad or raises_again or name_of(path) in EDGES, f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_for_later(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for mark in ("TODO", "FIXME", "XXX", "NotImplementedError"):
        assert mark not in text
