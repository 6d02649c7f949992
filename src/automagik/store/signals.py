"""Signals: short messages between the processes that share a database. They wake; what is true stands in the tables."""

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["Listeners", "LocalSignals", "Signals", "message_of"]

Heard = Callable[[str], None]


class Signals(Protocol):
    """Messages of a topic (one word) and a text, to whoever listens in any process, the sender's own too.

    One may be lost, so whoever waits for one also looks at the store now and then, and whenever `on_gap` says so.
    """

    largest: int
    """How many bytes of UTF-8 topic and text may have together."""

    async def open(self) -> None:
        """Begin to hear other processes. Raises ServiceUnavailable when the database is away."""
        ...

    async def close(self) -> None:
        """Hear and send no more."""
        ...

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Have `heard` called in the event loop with each text of `topic`; call what is returned to end that."""
        ...

    def on_gap(self, missed: Callable[[], None]) -> Callable[[], None]:
        """Have `missed` called when signals may have been lost; call what is returned to end that."""
        ...

    async def send(self, topic: str, text: str = "") -> None:
        """Send a signal as well as it can be done now: a failure is logged and never the caller's.

        Raises: ValueError for a topic that is not one word, or a message beyond `largest`.
        """
        ...


class Listeners:
    """Who listens in this process: what every kind of Signals has."""

    def __init__(self) -> None:
        self._heard: dict[str, list[Heard]] = {}
        self._missed: list[Callable[[], None]] = []

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """As `Signals.listen`."""
        listening = self._heard.setdefault(topic, [])
        listening.append(heard)

        def leave() -> None:
            if heard in listening:
                listening.remove(heard)
            if not listening and self._heard.get(topic) is listening:
                del self._heard[topic]

        return leave

    def on_gap(self, missed: Callable[[], None]) -> Callable[[], None]:
        """As `Signals.on_gap`."""
        self._missed.append(missed)

        def leave() -> None:
            if missed in self._missed:
                self._missed.remove(missed)

        return leave

    def hear(self, message: str) -> None:
        """Give a message, `topic text`, to those who listen to its topic."""
        topic, _, text = message.partition(" ")
        loop = asyncio.get_running_loop()
        for heard in self._heard.get(topic, ()):
            loop.call_soon(heard, text)

    def tell_gap(self) -> None:
        """Tell everybody that messages may have been lost."""
        loop = asyncio.get_running_loop()
        for missed in self._missed:
            loop.call_soon(missed)


def message_of(topic: str, text: str, largest: int) -> str:
    """The message as it travels. Raises ValueError for a topic that is not one word, or a message beyond `largest` bytes."""
    if not topic or " " in topic:
        raise ValueError("the topic of a signal is one word")
    message = f"{topic} {text}" if text else topic
    if len(message) * 4 > largest and len(message.encode()) > largest:
        raise ValueError(f"a signal has {largest} bytes at the most")
    return message


class LocalSignals:
    """Signals where one process has the database to itself (SQLite)."""

    largest = 1 << 20

    def __init__(self) -> None:
        self._listeners = Listeners()

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """As `Signals.listen`."""
        return self._listeners.listen(topic, heard)

    def on_gap(self, missed: Callable[[], None]) -> Callable[[], None]:
        """As `Signals.on_gap`; there is never one."""
        return self._listeners.on_gap(missed)

    async def send(self, topic: str, text: str = "") -> None:
        """As `Signals.send`."""
        self._listeners.hear(message_of(topic, text, self.largest))
