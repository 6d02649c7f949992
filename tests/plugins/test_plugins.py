"""Plug-ins written to disk as a user would, loaded through the public door."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from automagik.plugins import Broken, Loaded, load_entry_points, load_file

GROUP = "automagik.test_plugins"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed into, gone with its modules after the test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(site: Path, package: str, source: str, entries: dict[str, str]) -> None:
    """A package as pip leaves it: the module and its dist-info."""
    (site / f"{package}.py").write_text(source)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    importlib.invalidate_caches()


def write(folder: Path, name: str, source: str) -> Path:
    path = folder / name
    path.write_text(source)
    return path


def test_a_file_is_loaded_as_a_module_of_its_own(tmp_path: Path) -> None:
    paths_before = list(sys.path)
    path = write(tmp_path, "greeter.py", "def greet():\n    return 'hello'\n")
    loaded = load_file(path)
    assert isinstance(loaded, Loaded)
    assert (loaded.name, loaded.source, loaded.value.greet()) == ("greeter", str(path), "hello")
    assert "greeter" not in sys.modules
    assert sys.path == paths_before
    assert [entry.name for entry in tmp_path.iterdir()] == ["greeter.py"]


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "agent.py", f"where = {folder!r}\n")
    first, second = load_file(tmp_path / "a" / "agent.py"), load_file(tmp_path / "b" / "agent.py")
    assert isinstance(first, Loaded)
    assert isinstance(second, Loaded)
    assert (first.value.where, second.value.where) == ("a", "b")


def test_a_file_changed_within_the_same_second_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path, "agent.py", "value = 1\n")
    first = load_file(path)
    path.write_text("value = 2\n")
    second = load_file(path)
    assert isinstance(first, Loaded)
    assert isinstance(second, Loaded)
    assert (first.value.value, second.value.value) == (1, 2)


def test_dataclasses_and_pydantic_models_in_a_file_work(tmp_path: Path) -> None:
    source = """
from __future__ import annotations
from dataclasses import dataclass
from pydantic import BaseModel
@dataclass
class Point:
    x: int
class Path(BaseModel):
    start: Point
"""
    loaded = load_file(write(tmp_path, "shapes.py", source))
    assert isinstance(loaded, Loaded)
    assert loaded.value.Path(start={"x": 3}).start.x == 3


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("x = 1\nraise ValueError('no\\nkey')\n", "ValueError: no key ({path}:2)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 ({path}:2)"),
        ("def f(:\n    pass\n", "SyntaxError: invalid syntax ({path}:1)"),
        ("\nimport no_such_package_here\n", "ModuleNotFoundError: No module named 'no_such_package_here' ({path}:2)"),
        ("import json\njson.loads('{')\n", None),
        ("class Odd(BaseException):\n    pass\nraise Odd\n", "Odd ({path}:3)"),
    ],
)
def test_a_broken_file_is_reported_with_its_cause_in_one_line(tmp_path: Path, source: str, cause: str | None) -> None:
    path = write(tmp_path, "broken.py", source)
    modules_before = set(sys.modules)
    broken = load_file(path)
    assert isinstance(broken, Broken)
    assert (broken.name, broken.source) == ("broken", str(path))
    assert "\n" not in broken.cause
    if cause is None:  # what the standard library raised is placed at the plug-in's own line
        assert broken.cause.startswith("JSONDecodeError: ")
        assert broken.cause.endswith(f"({path}:2)")
    else:
        assert broken.cause == cause.format(path=path)
    assert not any("broken" in name for name in set(sys.modules) - modules_before)


@pytest.mark.parametrize("content", [b"\x00\x01", b"\xff\xfe", b"# coding: nonsense\n"])
def test_a_file_that_is_no_python_is_broken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(content)
    assert isinstance(load_file(path), Broken)


def test_a_missing_file_is_broken(tmp_path: Path) -> None:
    broken = load_file(tmp_path / "gone.py")
    assert isinstance(broken, Broken)
    assert broken.cause.startswith("FileNotFoundError: ")


def test_a_very_long_cause_is_shortened(tmp_path: Path) -> None:
    broken = load_file(write(tmp_path, "long.py", "raise ValueError('x' * 100_000)\n"))
    assert isinstance(broken, Broken)
    assert len(broken.cause) < 1000


def test_a_file_that_breaks_on_reload_leaves_the_loaded_module_in_place(tmp_path: Path) -> None:
    path = write(tmp_path, "agent.py", "value = 1\n")
    loaded = load_file(path)
    assert isinstance(loaded, Loaded)
    path.write_text("raise RuntimeError\n")
    assert isinstance(load_file(path), Broken)
    assert sys.modules[loaded.value.__name__] is loaded.value


def test_ctrl_c_is_no_plugin_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "slow.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_file(path)


def test_entry_points_of_installed_packages_are_loaded_and_broken_ones_named(site: Path) -> None:
    install(site, "good_plugin", "class Agent:\n    name = 'good'\n", {"good": "good_plugin:Agent"})
    install(site, "sad_plugin", "\nraise RuntimeError('out of order')\n", {"sad": "sad_plugin:Agent"})
    install(site, "odd_plugin", "x = 1\n", {"odd": "odd_plugin:Missing"})
    odd, good, sad = sorted(load_entry_points(GROUP), key=lambda found: ("odd", "good", "sad").index(found.name))
    assert isinstance(good, Loaded)
    assert (good.source, good.value.name) == ("good_plugin: good_plugin:Agent", "good")
    assert isinstance(sad, Broken)
    assert sad.cause == f"RuntimeError: out of order ({site / 'sad_plugin.py'}:2)"
    assert isinstance(odd, Broken)
    assert odd.cause == "AttributeError: module 'odd_plugin' has no attribute 'Missing'"


def test_a_group_that_nobody_offers_is_empty() -> None:
    assert load_entry_points("automagik.nobody_offers_this") == []
