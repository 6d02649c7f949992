"""Carries the bytes of a connection both ways until both have ended, nothing moves any more, or something fails."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

__all__ = ["CHUNK_BYTES", "Pulse", "both_ways", "end", "pump"]

CHUNK_BYTES = 64 * 1024


class Pulse:
    """When something last moved on a connection, in either direction: a long answer is no silence of who waits for it."""

    def __init__(self, idle_seconds: float) -> None:
        self.idle_seconds = idle_seconds
        self._last = asyncio.get_running_loop().time()

    def beat(self) -> None:
        """Something moved now."""
        self._last = asyncio.get_running_loop().time()

    @property
    def left_seconds(self) -> float:
        """How much longer nothing may move; not above 0 once it has been too long."""
        return self._last + self.idle_seconds - asyncio.get_running_loop().time()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pulse: Pulse) -> None:
    """Carry bytes until the end, which is passed on. Raises: OSError."""
    while chunk := await reader.read(CHUNK_BYTES):
        pulse.beat()
        writer.write(chunk)
        await writer.drain()
        pulse.beat()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):
            writer.write_eof()


async def both_ways(
    request: Coroutine[Any, Any, None], answer: Coroutine[Any, Any, None], pulse: Pulse, *, answer_ends: bool = False
) -> None:
    """Carry both ways until both have ended (or the answer has, where that ends all); what fails in one ends the other.

    Raises: TimeoutError once nothing has moved for too long, and what the two raise.
    """
    sending, answering = asyncio.create_task(request), asyncio.create_task(answer)
    waiting = {sending, answering}
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, pulse.left_seconds), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if answer_ends and answering in done:
                break
            if not done and pulse.left_seconds <= 0:
                raise TimeoutError
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def end(writer: asyncio.StreamWriter, *, seconds: float) -> None:
    """Close, and give the other side so long to take what was written. What it has not taken then, it does not get."""
    writer.close()
    try:
        async with asyncio.timeout(seconds):
            await writer.wait_closed()
    except OSError:  # TimeoutError is one
        pass
    finally:
        # Only where something is left: a transport that has ended after its last byte can't be aborted (Python 3.11).
        if writer.transport.get_write_buffer_size():
            writer.transport.abort()
