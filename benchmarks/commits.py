"""How long it takes to take a run's commits out of a workspace of 50 MB, and what it had not committed: sandbox, bundle, fetch."""

import asyncio
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from automagik.claude_code.commits import extract_commits
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.workspace import make_workspace
from automagik.settings import Settings
from automagik.types import SystemClock, new_id
from benchmarks.report import Result, measured
from benchmarks.report import Target as Goal
from benchmarks.running import Ground

__all__ = ["commit_extraction"]

_FILES = 2500
_FILE_BYTES = 20_000
_OUTPUT_BYTES = 1024**3
_BRANCH = "automagik/implement/bench"
_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def commit_extraction(on: Ground) -> list[Result]:
    """Seconds from the start of the throw-away sandbox to the commits in our repository; the run committed 20 files and left 20
    uncommitted ones in a tree of 2,500 files and 50 MB."""
    files = 100 if on.quick else _FILES
    with TemporaryDirectory(prefix="automagik-bench-") as name:
        samples = asyncio.run(_measure(Path(name), files, repetitions=max(3, on.repetitions)))
    return [
        measured(
            "commit_extraction",
            [sample["sandbox"] + sample["fetch"] for sample in samples],
            unit="s",
            target=Goal("figure", "at most", 1.0),
            samples=samples,
            notes={"files": files, "bytes": files * _FILE_BYTES, "executor": "local"},
        )
    ]


async def _measure(folder: Path, files: int, *, repetitions: int) -> list[dict[str, float]]:
    source_folder = _make_source(folder / "source", files)
    settings = Settings.model_validate({"data_dir": folder / "data", "repository_roots": [str(folder)]})
    repositories = Repositories(settings, SystemClock())
    await repositories.open()
    executors = ExecutorFactory(settings)
    try:
        executor = await executors.executor("local")
        source = await repositories.import_place(str(source_folder))
        run_id = new_id("run")
        await executor.prepare(run_id)
        inside = executor.inside(run_id).workspace
        made = make_workspace(
            branch=_BRANCH, author="A", email="a@example.org", base_commit=source.base_commit, workspace=inside
        )
        bundle = await repositories.base_bundle(source)
        done = await executor.once(
            run_id, made.command, stdin=_chunks(bundle), env=made.env, writable=True, timeout_seconds=120
        )
        assert done.exit.code == 0, done.exit.stderr
        samples: list[dict[str, float]] = []
        for round_number in range(repetitions):
            work = f"""
                git() {{ command git -c safe.directory='*' "$@"; }}
                for n in $(seq 20); do echo "round {round_number}" >> file$n.py; done
                git add -A && git commit -q -m "Round {round_number}"
                for n in $(seq 21 40); do echo "round {round_number}" >> file$n.py; done
            """
            env = {**made.env, "HOME": "/tmp"}
            done = await executor.once(
                run_id, ("/bin/sh", "-ec", f"cd {inside}\n{work}"), env=env, writable=True, timeout_seconds=60
            )
            assert done.exit.code == 0, done.exit.stderr
            script = extract_commits(base_commit=source.base_commit, workspace=inside)
            began = time.perf_counter()
            out = folder / "out.bundle"
            done = await executor.once(
                run_id,
                script.command,
                env=script.env,
                timeout_seconds=60,
                output=out,
                output_bytes=_OUTPUT_BYTES,
            )
            assert done.exit.code == 0, done.exit.stderr
            extracted = time.perf_counter()
            taken = await repositories.take(run_id, source.repository, source.base_commit, _chunks(out), branch=_BRANCH)
            ended = time.perf_counter()
            assert len(taken.commits) == round_number + 1
            assert taken.wip_commit is not None
            samples.append({"sandbox": extracted - began, "fetch": ended - extracted})
        return samples
    finally:
        await executors.close()


def _make_source(folder: Path, files: int) -> Path:
    """A repository with a history of a few commits; its texts are lines of random words, as well to compress as code is."""
    folder.mkdir()
    words = ["".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz_", k=n % 12 + 3)) for n in range(4000)]
    chance = random.Random(5)
    for number in range(files):
        text = "".join(f"{' '.join(chance.choices(words, k=8))}\n" for _ in range(_FILE_BYTES // 60))
        (folder / f"file{number}.py").write_text(text)
    git = shutil.which("git") or "git"
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "First"]):
        subprocess.run([git, *command], cwd=folder, env=_ENV, check=True)
    return folder


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
