"""RecentBytes: artefacts that were read last, within a bound of bytes; who asks for the same one at once shares one read."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

__all__ = ["RecentBytes"]


class RecentBytes:
    """Bytes by digest, those that were asked for last, `max_bytes` of them at the most."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._reading: dict[str, asyncio.Task[bytes]] = {}

    @property
    def size(self) -> int:
        """How many bytes are held."""
        return self._size

    def find(self, digest: str) -> bytes | None:
        """The bytes, where they are held."""
        data = self._held.get(digest)
        if data is not None:
            self._held.move_to_end(digest)
        return data

    async def get(self, digest: str, read: Callable[[str], Awaitable[bytes]]) -> bytes:
        """The bytes: held, or as `read` gives them. A caller who leaves does not end the read for others."""
        data = self.find(digest)
        if data is not None:
            return data
        task = self._reading.get(digest)
        if task is None:
            task = self._reading[digest] = asyncio.get_running_loop().create_task(self._read(digest, read))
            task.add_done_callback(lambda done: self._forget(digest, done))
        return await asyncio.shield(task)

    def add(self, digest: str, data: bytes) -> None:
        """Hold these; the ones that were asked for longest ago go. One that is larger than half the bound is not held."""
        if digest in self._held or 2 * len(data) > self._max_bytes:
            return
        self._held[digest] = data
        self._size += len(data)
        while self._size > self._max_bytes:
            _, gone = self._held.popitem(last=False)
            self._size -= len(gone)

    async def close(self) -> None:
        """End what is being read, and hold nothing."""
        reading = list(self._reading.values())
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        self._held.clear()
        self._size = 0

    async def _read(self, digest: str, read: Callable[[str], Awaitable[bytes]]) -> bytes:
        data = await read(digest)
        self.add(digest, data)
        return data

    def _forget(self, digest: str, task: "asyncio.Task[bytes]") -> None:
        self._reading.pop(digest, None)
        if not task.cancelled():
            task.exception()  # looked at, also where all who waited have left
