"""Allowance: what all connections of one door may hold together, so that neither a door nor what connects to it takes all."""

import resource
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Allowance", "Places"]

_FEWEST_PLACES = 256
_SHARE = 4
"""Of the process's descriptors one of so many may be a connection to a door."""
_OF_EACH = 8
"""Connections that each door may have, whatever others hold."""


class _Connection(Protocol):
    def abort(self) -> None:
        """Break it off."""
        ...


@dataclass(slots=True)
class Places:
    """How many connections all doors of a process may still take, besides the first few of each."""

    left: int

    @classmethod
    def of_process(cls) -> "Places":
        """A quarter of the files that this process may have open."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(max(_FEWEST_PLACES, soft // _SHARE))


@dataclass(slots=True)
class Allowance:
    """What all connections of one door may hold together, and how long each may take."""

    connections: int
    body_bytes: int
    max_body_bytes: int
    head_seconds: float = 15.0
    body_seconds: float = 120.0
    idle_seconds: float = 300.0
    places: Places = field(default_factory=Places.of_process)
    taken: int = 0
    """How many connections there are."""
    _waiting: dict[_Connection, None] = field(default_factory=dict[_Connection, None])
    """Those on which no request is under way, the one that waits longest first."""

    def enter(self) -> bool:
        """Count a connection more, and return whether it may stay: there is a place, or another one gives up its own, which only
        waits for a request. Who connects and says nothing so takes no place from who has something to say."""
        self.taken += 1
        self.places.left -= 1
        if self.taken <= self.connections and (self.places.left >= 0 or self.taken <= _OF_EACH):
            return True
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.abort()
        return True

    def leave(self, connection: _Connection) -> None:
        """The connection has ended."""
        self.taken -= 1
        self.places.left += 1
        self._waiting.pop(connection, None)

    def waits(self, connection: _Connection) -> None:
        """Nothing of a request has come on it since the last one was answered."""
        self._waiting[connection] = None

    def works(self, connection: _Connection) -> None:
        """A request has begun on it."""
        self._waiting.pop(connection, None)

    def take(self, size: int) -> bool:
        """Whether so many bytes more of bodies may be held; then they are counted."""
        if size > self.body_bytes:
            return False
        self.body_bytes -= size
        return True

    def give_back(self, size: int) -> None:
        """So many bytes are not held any more."""
        self.body_bytes += size
