"""From the start of an execution to its first request to the API: the executors against the bare program that they use."""

import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from automagik.claude_code.command import CliSpec, command, environment, user_message
from automagik.claude_code.docker import DockerExecutor
from automagik.claude_code.executor import ExecutionSpec, Executor
from automagik.claude_code.image import claude_cli
from automagik.claude_code.images import build_image
from automagik.claude_code.local import LocalExecutor
from automagik.sandbox.confinement import Limits
from automagik.settings import Settings
from automagik.testing.scripted_messages import ScriptedMessages
from benchmarks.report import Result, compare
from benchmarks.report import Target as Goal
from benchmarks.running import Ground, quietly

__all__ = ["docker_start", "local_start"]

_RUN = "run_bench"
_IMAGE = "automagik-bench"
_LIMITS = Limits(memory_bytes=2 * 1024**3, pids=256)
_TOKEN = "run-token"
_TIMES = 3
"""Starts of each side in one repetition; their median counts."""


@dataclass(frozen=True)
class _Bench:
    """A ready workspace, and the API that the CLI will ask."""

    executor: Executor
    settings: Settings
    api: ScriptedMessages

    def line(self, config: str, socket: str) -> tuple[list[str], dict[str, str]]:
        """The CLI's command and environment, which are the same on both sides."""
        inside = self.executor.inside(_RUN)
        argv = command(CliSpec(session_id=uuid.uuid4(), allowed_tools=("Bash(git *)",)), cli=inside.cli)
        env = environment(socket=socket, token=_TOKEN, home=inside.home, config_dir=config, tmp=inside.tmp)
        return argv, env

    async def platform(self) -> float:
        """Seconds to the first request through the executor."""
        inside = self.executor.inside(_RUN)
        argv, env = self.line(inside.credentials, inside.socket("api"))
        seen = len(self.api.calls)
        began = time.monotonic()
        execution = await self.executor.start(ExecutionSpec(_RUN, tuple(argv), env, _LIMITS))
        await execution.send(user_message("Hello."))
        await self.api.wait_for(seen + 1)
        taken = time.monotonic() - began
        await execution.kill()
        return taken

    async def bare(self, launcher: list[str]) -> float:
        """Seconds to the first request of a bare program: `launcher` and the CLI's command."""
        seen = len(self.api.calls)
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *launcher, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        process.stdin.write(user_message("Hello."))
        await self.api.wait_for(seen + 1)
        taken = time.monotonic() - began
        process.stdin.close()
        await process.wait()
        return taken


def docker_start(on: Ground) -> list[Result]:
    """DockerExecutor against `docker run` of the same image with the same volumes and socket."""
    pairs = _measure(on, "docker")
    return [
        compare(
            "executor_docker_first_request",
            pairs,
            unit="s",
            target=Goal("ratio", "at most", 1.3),
            notes={"baseline": "docker run -i --rm --network none of the same image, volumes and socket"},
        )
    ]


def local_start(on: Ground) -> list[Result]:
    """LocalExecutor against the CLI in a plain bubblewrap of its own namespaces."""
    pairs = _measure(on, "local")
    return [
        compare(
            "executor_local_first_request",
            pairs,
            unit="s",
            target=Goal("ratio", "at most", 1.15),
            notes={"baseline": "bwrap --unshare-all with the same socket and folders of the same kind"},
        )
    ]


def _measure(on: Ground, kind: Literal["docker", "local"]) -> list[tuple[float, float]]:
    """Pairs of bare and ours, each the median of some starts in turn."""
    with asyncio.Runner() as runner:
        ready = _ready(kind)
        bench = runner.run(ready.__aenter__())
        try:
            runner.run(_pair(bench, kind, 1))
            times = 1 if on.quick else _TIMES
            if kind == "docker":  # what containers use would count as the use of others
                return [runner.run(_pair(bench, kind, times)) for _ in range(on.repetitions)]
            return [quietly(on, lambda: runner.run(_pair(bench, kind, times)))[0] for _ in range(on.repetitions)]
        finally:
            runner.run(ready.__aexit__(None, None, None))


async def _pair(bench: _Bench, kind: Literal["docker", "local"], times: int) -> tuple[float, float]:
    bare: list[float] = []
    ours: list[float] = []
    for _ in range(times):
        bare.append(await bench.bare(_launcher(bench, kind)))
        ours.append(await bench.platform())
    return statistics.median(bare), statistics.median(ours)


@asynccontextmanager
async def _ready(kind: Literal["docker", "local"]) -> AsyncGenerator[_Bench]:
    folder = Path(tempfile.mkdtemp(prefix="am-bench-"))  # short: sockets stand in it
    settings = Settings.model_validate(
        {"data_dir": folder / "data", "runtime_dir": folder / "run", "executor": kind, "sandbox_image": _IMAGE}
    )
    if kind == "docker":
        await build_image(settings, base="host", tag=_IMAGE)
    executor = DockerExecutor(settings) if kind == "docker" else LocalExecutor(settings)
    try:
        await executor.prepare(_RUN)
        init = "git init -q . && git config user.name A && git config user.email a@example.org"
        done = await executor.once(_RUN, ("sh", "-c", init), timeout_seconds=30, writable=True)
        assert done.exit.code == 0, done
        async with ScriptedMessages({"default": {"text": "Hello."}}, socket=executor.socket(_RUN, "api")) as api:
            await executor.share(_RUN, "api")
            yield _Bench(executor, settings, api)
        await executor.remove(_RUN)
    finally:
        await executor.close()
        shutil.rmtree(folder)


def _launcher(bench: _Bench, kind: Literal["docker", "local"]) -> list[str]:
    """The bare program that does without the platform, up to the end of the CLI's command."""
    sockets = bench.executor.socket(_RUN, "api").parent
    argv, env = bench.line("/credentials", "/run/agent/api.sock")
    if kind == "docker":
        instance = (bench.settings.data_dir / "docker-instance").read_text()[:8]
        volumes = [f"automagik-{instance}-{_RUN}-{area}:/{area}" for area in ("workspace", "credentials")]
        words = ["docker", "run", "-i", "--rm", "--network", "none"]
        for mount in (*volumes, f"{sockets}:/run/agent:ro"):
            words += ["-v", mount]
        for name, value in env.items():
            words += ["-e", f"{name}={value}"]
        return [*words, _IMAGE, *argv]
    run = bench.settings.data_dir / "bare"
    if not run.exists():  # folders of its own: those of the executor belong to the agent
        (run / "credentials").mkdir(parents=True)
        init = "git init -q workspace && cd workspace && git config user.name A && git config user.email a@example.org"
        subprocess.run(["sh", "-c", init], cwd=run, check=True)
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--proc", "/proc", "--dev", "/dev"]
    for place in ("/usr", "/etc"):
        words += ["--ro-bind", place, place]
    for place in ("/bin", "/lib", "/lib64", "/sbin"):
        words += (
            ["--ro-bind", place, place]
            if not Path(place).is_symlink()
            else ["--symlink", str(Path(place).readlink()), place]
        )
    words += ["--tmpfs", "/tmp", "--tmpfs", "/home/agent", "--ro-bind", str(sockets), "/run/agent"]
    words += ["--bind", str(run / "workspace"), "/workspace", "--bind", str(run / "credentials"), "/credentials"]
    words += ["--ro-bind", str(claude_cli(bench.settings)), argv[0], "--chdir", "/workspace"]
    for name, value in env.items():
        words += ["--setenv", name, value]
    return [*words, *argv]
