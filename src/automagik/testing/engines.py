"""DirectEngine: queued work carried out by a task of the event loop, for platforms that share a process or live for a moment."""

import asyncio

from automagik.runs.worker import Carry

__all__ = ["DirectEngine"]


class DirectEngine:
    """Carries out work at once and remembers nothing: our rows decide what is done again."""

    def __init__(self, carry: Carry, executor_id: str) -> None:
        del executor_id
        self._carry = carry
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Be ready for work."""

    async def close(self) -> None:
        """Let what is under way end."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def start(self, workflow_id: str, run_id: str) -> None:
        """Begin to carry out `run_id`."""
        task = asyncio.get_running_loop().create_task(self._carry_out(run_id), name=workflow_id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, run_id: str) -> None:
        await self._carry(run_id)
