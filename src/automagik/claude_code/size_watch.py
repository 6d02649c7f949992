"""SizeWatch: when a run's workspace is over its limit, found out at a bounded cost."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from automagik.claude_code.measuring import Size
from automagik.errors import RunFailed, ServiceUnavailable
from automagik.types import Clock, SystemClock

__all__ = ["SizeWatch"]

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)

_EVERY_SECONDS = 5.0
"""How often the workspace is measured, at the most."""
_REST = 9
"""How much longer than it took to measure it, it is then left alone: a tenth of a core goes into that, at the most."""
_ROOM = 10
"""It is measured at once where the disk got fuller by what the run had left, or by this part of its limit where it had less left."""
_BLIND_SECONDS = 60.0
"""How long it is left alone, at the most, where nobody sees how full the disk is."""
_LOOKS = 2
"""How often a workspace is found too large before that is believed: what was moved meanwhile may have been counted twice."""


@dataclass(slots=True)
class SizeWatch:
    """The watch over one run's workspace. Memory is no matter of its: the executor holds that, and kills the process that takes too much."""

    run_id: str
    limit: int
    size: Callable[[], Awaitable[Size]]
    """`Executor.size` of what is watched, for this limit."""
    disk_used: Callable[[], Awaitable[int | None]]
    """`Executor.disk_used`."""
    clock: Clock = field(default_factory=SystemClock)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def until_over(self) -> Size:
        """The size of the workspace when that is over its limit, or can't be found out, which counts as the same.

        While the engine is away nothing is measured: how long it may be away is the execution's to say.
        """
        await self.sleep(_EVERY_SECONDS)
        while True:
            began, used, room = self.clock.monotonic(), None, 0
            try:
                used = await self.disk_used()
                size = await self._measured()
            except ServiceUnavailable as away:
                _log.warning("workspace_not_measured_yet", run_id=self.run_id, reason=away.detail)
            else:
                if size.is_over(self.limit):
                    return size
                room = max(self.limit - size.bytes, self.limit // _ROOM)
            await self._rest(self.clock.monotonic() - began, used, room)

    async def within(self, work: Coroutine[Any, Any, T]) -> T:
        """What the setup of a toolchain comes to. Raises: RunFailed where the limit is passed meanwhile; it was stopped then."""
        loop = asyncio.get_running_loop()
        working, watching = loop.create_task(work), loop.create_task(self.until_over())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            size = watching.result()
            what = f"could not be measured: {size.why}" if size.unknown is not None else "grew over its limit"
            raise RunFailed(
                f"The setup of the repository's toolchain was ended: the workspace with it {what}.",
                outcome="sandbox_error",
                hint="See what the workflow's setup writes; raise AUTOMAGIK_MAX_WORKSPACE_BYTES where it needs more.",
            )
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _measured(self) -> Size:
        looks = 0
        while True:
            size = await self.size()
            looks += 1
            if looks == _LOOKS or size.unknown == "time" or not size.is_over(self.limit):
                return size

    async def _rest(self, took: float, used: int | None, room: int) -> None:
        """Leave the workspace alone after it was measured: when that began, this much of the disk was used."""
        ended = self.clock.monotonic()
        while True:
            await self.sleep(_EVERY_SECONDS)
            rested = self.clock.monotonic() - ended
            if rested >= _REST * took:
                return
            try:
                now = None if used is None else await self.disk_used()
            except ServiceUnavailable:
                now = None
            if (rested >= _BLIND_SECONDS) if used is None or now is None else (now - used >= room):
                return
