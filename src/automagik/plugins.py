"""Load what other people wrote: a Python file or an entry point. What can't be loaded becomes a `Broken` and stops nothing."""

import hashlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["Broken", "Loaded", "load_entry_points", "load_file"]

_CAUSE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plug-in that is in the process now. `value` is a file's module, or the object that an entry point names."""

    name: str
    source: str
    """Where it came from: a file's path, or `distribution: module:attribute`."""
    value: Any


@dataclass(frozen=True, slots=True)
class Broken:
    """A plug-in that could not be loaded; `cause` says why in one line, with the place in the plug-in's own code."""

    name: str
    source: str
    cause: str


class _Uncached(SourceFileLoader):
    """Reads the source each time and writes no `__pycache__`: an edit within the clock's second is seen, the folder stays clean."""

    def path_stats(self, path: Any) -> NoReturn:
        raise OSError("no cached bytecode for plug-in files")


def load_file(path: Path) -> Loaded | Broken:
    """The module in `path`, imported under a name of its own; `sys.path` is left alone. Loading it again runs it again."""
    name = f"automagik_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}_{path.stem}"
    loader = _Uncached(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    before: ModuleType | None = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and Pydantic look a class's module up there
    try:
        loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the plug-in edge: whatever a plug-in raises, also SystemExit, is its own fault
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        return Broken(path.stem, str(path), _cause(error, str(path)))
    return Loaded(path.stem, str(path), module)


def load_entry_points(group: str) -> list[Loaded | Broken]:
    """What installed packages offer under `group`, by name; two of one name are both listed."""
    folders = tuple((folder, _changed_at(folder)) for folder in sys.path)
    found = sorted(_offered(group, folders), key=lambda entry: (entry.name, entry.value))
    return [_load(entry) for entry in found]


@lru_cache(maxsize=8)
def _offered(group: str, folders: tuple[tuple[str, int], ...]) -> EntryPoints:
    """What all installed packages offer, read again (0.03 s for 200 packages) when packages came or went."""
    del folders
    return entry_points(group=group)


def _changed_at(folder: str) -> int:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0


def _load(entry: EntryPoint) -> Loaded | Broken:
    source = f"{entry.dist.name}: {entry.value}" if entry.dist is not None else entry.value
    try:
        return Loaded(entry.name, source, entry.load())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the plug-in edge, as in load_file
        package = entry.module.split(".", 1)[0]
        return Broken(entry.name, source, _cause(error, f"/{package}/", f"/{package}.py"))


def _cause(error: BaseException, *own: str) -> str:
    """Type, message and place in one line. `own` are parts of the file names that are the plug-in's."""
    message = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if len(text) > _CAUSE_CHARS:
        text = text[: _CAUSE_CHARS - 1] + "…"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({error.filename}:{error.lineno})"
    # The deepest line of the plug-in itself: what it called there is somebody else's code.
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if any(part in frame.filename for part in own)
    ]
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if frames else text
