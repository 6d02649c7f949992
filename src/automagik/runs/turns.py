"""SessionTurns: one run of a session at a time, in the order of acceptance."""

import asyncio
from collections import deque
from collections.abc import Hashable

__all__ = ["SessionTurns", "Turn"]


class Turn:
    """A place in a session's line. `wait` returns when it is this place's turn; `leave` lets the next one go."""

    __slots__ = ("_line", "_turns", "_woken", "key")

    def __init__(self, turns: "SessionTurns", key: Hashable, line: "deque[Turn]") -> None:
        self.key = key
        self._turns = turns
        self._line = line
        self._woken: asyncio.Future[None] | None = None

    @property
    def is_first(self) -> bool:
        """Whether nobody stands before."""
        return self._line[0] is self

    async def wait(self) -> None:
        """Return when nobody stands before."""
        while not self.is_first:
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken

    def leave(self) -> None:
        """Give up the place, served or not. Leaving twice does no harm."""
        if self not in self._line:
            return
        self._line.remove(self)
        if self._line:
            self._line[0].wake()
        else:
            self._turns.forget(self.key)

    def wake(self) -> None:
        """Tell the place to look whether it is first."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class SessionTurns:
    """A line for each session that has runs under way in this process. Different sessions never wait for each other."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[Turn]] = {}

    def enter(self, key: Hashable) -> Turn:
        """Take the last place in the line of `key`, at once: the order of calls is the order of service."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
        turn = Turn(self, key, line)
        line.append(turn)
        return turn

    def forget(self, key: Hashable) -> None:
        """Drop the empty line of `key`."""
        self._lines.pop(key, None)

    def __len__(self) -> int:
        return len(self._lines)
