"""Probing: before the first run on a host, its sandbox is tried; one that does not hold runs nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from automagik.claude_code.executor import Executor
from automagik.errors import RunFailed
from automagik.sandbox.confinement import Limits
from automagik.sandbox.probe import Finding, ProbeGround, findings, probe_command, probe_environment
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SYSTEM, JsonObject, new_id

__all__ = ["Probing", "probe_executor"]

_log = structlog.stdlib.get_logger(__name__)

_PROBE_SECONDS = 90.0
_MAX_SAID = 300
_DOCKER_SOCKETS = (
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
)


class Probing:
    """Tries each executor's sandbox once in this process's life, and remembers only that it held."""

    def __init__(self, settings: Settings, store: Store, *, host: str) -> None:
        self._settings = settings
        self._store = store
        self._host = host
        self._held: set[str] = set()
        self._trying = asyncio.Lock()

    async def check(self, executor: Executor, *, tell: Callable[[str, JsonObject], None]) -> None:
        """Return when commands may run there. Where there is no sandbox, because the settings say so by name, `tell` is warned.

        Raises: RunFailed (`sandbox_error`) where it can't be used, or something in it reaches out; that is in the audit log.
        """
        availability = await executor.check()
        if not availability.works:
            raise RunFailed(
                f"Workflows can't run on the host '{self._host}': {availability.reason}",
                outcome="sandbox_error",
                hint=availability.remedy,
            )
        if not executor.sandboxed:
            _log.warning("run_without_sandbox", executor=executor.name)
            detail = (
                "It runs without a sandbox, as AUTOMAGIK_RUN_WITHOUT_SANDBOX says: it can do whatever the server can."
            )
            tell("warning", {"code": "no_sandbox", "detail": detail})
            return
        async with self._trying:
            if executor.name in self._held:
                return
            found = await probe_executor(self._settings, executor)
            if found:
                await self._refuse(executor, found)
            self._held.add(executor.name)

    async def _refuse(self, executor: Executor, found: tuple[Finding, ...]) -> None:
        told = [str(finding) for finding in found]
        _log.error("sandbox_does_not_hold", executor=executor.name, findings=told)
        await self._store.write(
            lambda tx: tx.audit.append(
                "sandbox.refused", f"{self._host}/{executor.name}", caller=SYSTEM, details={"findings": [*told]}
            )
        )
        raise RunFailed(
            f"The sandbox ({executor.name}) of the host '{self._host}' does not hold: {'; '.join(told)[:500]}",
            outcome="sandbox_error",
            hint="`automagik doctor` on that host shows what is open. Nothing runs there until it is shut.",
        )


async def probe_executor(settings: Settings, executor: Executor) -> tuple[Finding, ...]:
    """What is open in the executor's sandbox, or not known to be shut; nothing: it holds."""
    run_id = new_id("run")
    ground = ProbeGround(
        settings.data_dir,
        settings.runtime_folder,
        workspaces=settings.data_dir,
        engines=await asyncio.to_thread(lambda: [path for path in _DOCKER_SOCKETS if Path(path).exists()]),
    )
    try:
        await executor.prepare(run_id)
        async with ground as targets:
            done = await executor.once(
                run_id,
                probe_command(),
                env=probe_environment(targets),
                limits=Limits.from_settings(settings),
                timeout_seconds=_PROBE_SECONDS,
            )
    finally:
        await executor.remove(run_id)
    if done.timed_out:
        return (Finding("output", "unknown", "the probe did not end in time"),)
    if not done.stdout.strip():  # not one way out was tried: why it did not run is what is worth to know
        said = " ".join(done.exit.stderr.split())[-_MAX_SAID:]
        return (
            Finding("output", "unknown", f"the probe said nothing (exit code {done.exit.code}): {said or 'no reason'}"),
        )
    return findings(done.stdout)
