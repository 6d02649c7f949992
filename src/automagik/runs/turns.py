"""Turns: who waits in this process for their turn in a session. The order itself stands in the database."""

import asyncio

__all__ = ["Turns"]


class Turns:
    """The runs of this process that wait for an earlier run of their session, by run id."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def expect(self, run_id: str) -> "asyncio.Future[None]":
        """A future that is done when the run's turn has come, or the run has ended."""
        waiting = self._waiting.get(run_id)
        if waiting is None:
            waiting = self._waiting[run_id] = asyncio.get_running_loop().create_future()
        return waiting

    def come(self, run_id: str) -> None:
        """Say that the turn of `run_id` has come; runs that nobody waits for here are fine."""
        waiting = self._waiting.pop(run_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def forget(self, run_id: str) -> None:
        """Nobody waits for that run any more."""
        self._waiting.pop(run_id, None)

    @property
    def waiting(self) -> list[str]:
        """The runs that wait."""
        return list(self._waiting)
