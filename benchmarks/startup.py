"""From the command to `/ready` on a second start, against the bare import of the same libraries."""

import json
import signal
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.processes import PYTHON_PATH, SERVER_CORES, Process, cores, environment, pinned, python
from benchmarks.report import Result, compare
from benchmarks.report import Target as Goal
from benchmarks.running import Ground, quietly
from benchmarks.scenario import PLAIN_MODEL
from benchmarks.servers import prepare

__all__ = ["start_to_ready"]

_LIST_MODULES = """\
import atexit, json, os, sys
atexit.register(lambda: open(os.environ["BENCH_MODULES"], "w").write(json.dumps(list(sys.modules))))
"""
"""A `sitecustomize` that writes down, at the process's end, what had been imported, in order."""

_IMPORT_ALL = """\
import importlib, json, sys
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
"""


def start_to_ready(on: Ground) -> list[Result]:
    """Seconds from the command to `/ready`, less 1.5 times the bare import of what the server had imported by then."""
    with TemporaryDirectory(prefix="automagik-bench-") as name:
        folder = Path(name)
        env = prepare(on, folder / "data", PLAIN_MODEL, None).env
        modules = _modules(on, folder, env)
        _start(on, env)
        _import(on, modules)
        taken = [quietly(on, lambda: (_import(on, modules), _start(on, env))) for _ in range(on.repetitions)]
    pairs = [(bare * 1.5, start) for (bare, start), _ in taken]
    return [
        compare(
            "start_to_ready",
            pairs,
            unit="s",
            target=Goal("difference", "at most", 1.0),
            notes={
                "baseline": "1.5 times the bare import of the same libraries",
                "platform": "a second start on SQLite, from command to a 200 of /ready",
            },
        )
    ]


def _start(on: Ground, env: dict[str, str]) -> float:
    began = time.monotonic()
    with Process(
        python("-m", "automagik", "serve"), on=cores(SERVER_CORES, pin=on.pin), log=on.log("start"), env=env
    ) as process:
        return process.wait_ready(f"http://127.0.0.1:{env['AUTOMAGIK_PORT']}/ready", pause=0.005) - began


def _modules(on: Ground, folder: Path, env: dict[str, str]) -> Path:
    """The file with the names of the libraries' modules that a server has imported when it is ready."""
    written, listed = folder / "modules.json", folder / "site"
    listed.mkdir()
    (listed / "sitecustomize.py").write_text(_LIST_MODULES)
    watched = {**env, "BENCH_MODULES": str(written), "PYTHONPATH": f"{listed}:{PYTHON_PATH}"}
    with Process(
        python("-m", "automagik", "serve"), on=cores(SERVER_CORES, pin=on.pin), log=on.log("start"), env=watched
    ) as process:
        process.wait_ready(f"http://127.0.0.1:{env['AUTOMAGIK_PORT']}/ready")
        process.stop(signal.SIGINT)
    ours = ("automagik", "benchmarks", "__main__", "sitecustomize")
    names = [name for name in json.loads(written.read_text()) if name.partition(".")[0] not in ours]
    written.write_text(json.dumps(names))
    return written


def _import(on: Ground, modules: Path) -> float:
    with pinned(cores(SERVER_CORES, pin=on.pin)):
        began = time.monotonic()
        subprocess.run(python("-c", _IMPORT_ALL, str(modules)), check=True, env=environment({}))
        return time.monotonic() - began
