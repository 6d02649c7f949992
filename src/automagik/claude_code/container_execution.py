"""A container as an execution: its output is the engine's log, found again by its labels, read again from its beginning."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from automagik.claude_code.containers import Attached, ContainerManager
from automagik.claude_code.courier import Letters
from automagik.claude_code.executor import ExitStatus, Resources
from automagik.claude_code.one_shot import exit_status
from automagik.errors import Conflict, NotFound, ServiceUnavailable
from automagik.types import JsonObject

__all__ = ["DockerExecution"]

T = TypeVar("T")

_KILL_SECONDS = 2.0
_PATIENCE_SECONDS = 300.0
"""How long an engine may be away: it is restarted, or updated."""

_STDERR_BYTES = 4096
_STDERR_SECONDS = 30.0
"""How long the end of what was written to it is looked for: the whole log is read for that."""
_LOG_ROOM = 3
"""How much more than its output a command's log may take on the disk: hexadecimal letters take two bytes for one."""


class DockerExecution:
    """A run's container."""

    def __init__(
        self, manager: ContainerManager, container: str, *, output_bytes: int, attached: Attached | None
    ) -> None:
        self._manager = manager
        self._container = container
        self._attached = attached
        self._output_bytes = output_bytes
        self._sending = asyncio.Lock()
        self._exit: ExitStatus | None = None
        self._full = False

    @property
    def place(self) -> JsonObject:
        return {"container": self._container}

    async def output(self) -> AsyncIterator[bytes]:
        given = 0
        while True:
            letters, seen, logged = Letters(), 0, 0
            try:
                async for piece in self._manager.log(self._container, "stdout", "stderr", follow=True):
                    said = letters.open(piece.stdout)
                    seen += len(said)
                    logged += piece.cost_bytes
                    if seen > given:  # the engine came back, so the beginning was given before
                        yield said[-(seen - given) :]
                        given = seen
                    # Whatever else is in the log fills the disk as well.
                    if given > self._output_bytes or logged > _LOG_ROOM * self._output_bytes:
                        self._full = True
                        await self._manager.signal(self._container, "SIGKILL")
                        return  # what it had written by then may be any amount
                if not await self._running():
                    return
            except (NotFound, Conflict):  # it was removed, or is about to be
                return
            except ServiceUnavailable:
                await self._patiently(self._running)

    async def send(self, data: bytes) -> bool:
        async with self._sending:
            return self._attached is not None and await self._attached.send(data)

    async def close_input(self) -> None:
        async with self._sending:
            if self._attached is not None:
                await self._attached.close()
                self._attached = None

    async def interrupt(self) -> None:
        await self._manager.signal(self._container, "SIGINT")

    async def kill(self) -> None:
        await self._manager.signal(self._container, "SIGKILL")
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await self._manager.wait(self._container)
        except TimeoutError:
            raise ServiceUnavailable(
                f"The container {self._container[:12]} can't be killed.", hint="See what the engine says of it."
            ) from None
        await self.close_input()

    async def wait(self) -> ExitStatus:
        if self._exit is None:
            self._exit = await self._patiently(self._ended)
            await self.close_input()
        return self._exit

    async def usage(self) -> Resources:
        return await self._manager.usage(self._container)

    # -- inner parts

    async def _running(self) -> bool:
        state = await self._manager.state(self._container)
        return state is not None and bool(state["Running"])

    async def _ended(self) -> ExitStatus:
        while True:
            await self._manager.wait(self._container)
            state = await self._manager.state(self._container)
            if state is None:  # somebody removed it, with its exit code
                return ExitStatus(code=None)
            if not state["Running"]:
                return await self._status(state)

    async def _status(self, state: dict[str, Any]) -> ExitStatus:
        tail = b""
        with contextlib.suppress(NotFound, Conflict, TimeoutError):  # somebody removes it just now; or it is very long
            async with asyncio.timeout(0 if self._full else _STDERR_SECONDS):
                async for piece in self._manager.log(self._container, "stderr"):
                    tail = (tail + piece.stderr)[-_STDERR_BYTES:]
        return exit_status(
            state["ExitCode"],
            stderr=tail.decode(errors="replace") or state["Error"],
            oom_killed=state["OOMKilled"],
            output_full=self._full,
        )

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers, as soon as the engine does. Raises: ServiceUnavailable when it stays away."""
        clock = asyncio.get_running_loop()
        away_since: float | None = None
        pause = 0.1
        while True:
            asked = clock.time()
            try:
                return await ask()
            except ServiceUnavailable:
                if away_since is None or clock.time() - asked > _PATIENCE_SECONDS:  # it answered for long
                    away_since, pause = clock.time(), 0.1
                elif clock.time() - away_since > _PATIENCE_SECONDS:
                    raise
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)
