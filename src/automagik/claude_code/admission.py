"""HostAdmission: whether this host has room for another workflow."""

import asyncio
import shutil
from pathlib import Path

import structlog

from automagik.claude_code.factory import ExecutorFactory
from automagik.settings import Settings
from automagik.types import Clock

__all__ = ["HostAdmission", "available_memory"]

_log = structlog.stdlib.get_logger(__name__)

_FRESH_SECONDS = 2.0
"""How long what was seen is believed: a worker asks at each look at the queue."""
_USUAL_BYTES = 768 * 1024**2
"""What one run usually takes: the CLI 230 MB, and the tools that it starts as measured."""
_MEMINFO = Path("/proc/meminfo")


class HostAdmission:
    """Says whether another workflow may begin here; while it may not, workflows wait in the queue for this or another host."""

    def __init__(self, settings: Settings, executors: ExecutorFactory, clock: Clock, *, alone: bool) -> None:
        """`alone`: no other host could take the runs, so that one without a sandbox takes them, and says in their end what is
        missing."""
        self._settings = settings
        self._executors = executors
        self._clock = clock
        self._alone = alone
        self._looked_at = float("-inf")
        self._has_room = True
        self._looking = asyncio.Lock()

    async def __call__(self) -> bool:
        """Whether there is a sandbox that works, memory and disk."""
        async with self._looking:
            now = self._clock.monotonic()
            if now - self._looked_at >= _FRESH_SECONDS:
                self._has_room = await self._look()
                self._looked_at = self._clock.monotonic()
            return self._has_room

    async def _look(self) -> bool:
        settings = self._settings
        free_memory = await asyncio.to_thread(available_memory)
        free_disk = (await asyncio.to_thread(shutil.disk_usage, settings.data_dir)).free
        wanted = settings.min_free_memory_bytes + min(_USUAL_BYTES, settings.sandbox_memory_bytes)
        has_room = free_memory >= wanted and free_disk >= settings.min_free_disk_bytes
        if has_room != self._has_room:
            _log.warning("host_admission_changed", admits=has_room, free_memory=free_memory, free_disk=free_disk)
        return has_room and (self._alone or bool(await self._executors.working()))


def available_memory() -> int:
    """How much memory may be taken without swapping, in bytes (`MemAvailable` of Linux); a large number where that is not told."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
