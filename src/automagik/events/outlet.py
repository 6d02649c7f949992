"""Outlet: tells other instances what happens in a run that is alive here, as long as somebody there looks on."""

import asyncio
import contextlib
from collections.abc import Iterator

from automagik.events.event import RunEvent
from automagik.events.stream import EventStream
from automagik.events.wire import Piece, PieceKind, encode_pieces
from automagik.store.signals import Signals

__all__ = ["Outlet"]

_BATCH_SECONDS = 0.04
"""How long pieces of text are gathered before they leave together. What is stored leaves at once."""
_TOPIC_BYTES = 64
"""What an instance's name takes of each message, at the most."""


class Outlet:
    """A reader of a live stream that sends on what it reads, to the instances that it was told of. It ends with the stream."""

    def __init__(self, stream: EventStream, signals: Signals) -> None:
        self._stream = stream
        self._signals = signals
        self._instances: set[str] = set()
        self._asked: set[str] = set()
        self._pending: list[RunEvent | tuple[str, str]] = []
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()
        self._ended = False
        text, self._base, self._seq = stream.attach(self)
        self._text = [text]
        self._length = len(text)
        self.task = asyncio.get_running_loop().create_task(self._send_on(), name=f"outlet {stream.run_id}")
        """Ends when everything is sent and the stream has ended, or nobody looks on any more."""

    @property
    def instances(self) -> frozenset[str]:
        """Who is told."""
        return frozenset(self._instances)

    @property
    def has_ended(self) -> bool:
        """Whether it tells nobody any more, once what is pending is sent."""
        return self._ended

    def tell(self, instance: str) -> None:
        """Tell an instance from now on; first the text under way as it is."""
        self._instances.add(instance)
        self._asked.add(instance)
        self._hurry()

    def leave(self, instance: str) -> None:
        """Tell an instance no more."""
        self._instances.discard(instance)
        self._asked.discard(instance)
        if not self._instances:
            self._stream.unsubscribe(self)
            self.end()

    # -- as a reader of the stream

    def push(self, event: RunEvent) -> None:
        """Take a stored event."""
        self._pending.append(event)
        self._hurry()

    def push_delta(self, kind: str, text: str) -> None:
        """Take a piece of text."""
        self._pending.append((kind, text))
        self._something.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._hurry()

    # -- sending

    def _hurry(self) -> None:
        self._something.set()
        self._urgent.set()

    async def _send_on(self) -> None:
        while not self._ended or self._pending:
            await self._something.wait()
            self._something.clear()
            self._urgent.clear()
            sending = [self._signals.send(instance, message) for instance, message in self._messages()]
            if sending:
                await asyncio.gather(*sending)
            if not self._ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BATCH_SECONDS):
                        await self._urgent.wait()

    def _messages(self) -> Iterator[tuple[str, str]]:
        """What is to be sent to whom, in order: to those who asked how far the run is, then to all what is new."""
        asked, self._asked = self._asked, set()
        if asked:
            self._text = ["".join(self._text)]
            stands = [Piece("event", self._stream.run_id, self._seq)]
            if self._length:
                stands.append(self._piece("snapshot", 0, self._text[0]))
            for message in (message for piece in stands for message in self._encoded(piece)):
                for instance in asked:
                    yield instance, message
        pending, self._pending = self._pending, []
        for piece in self._pieces(pending):
            for message in self._encoded(piece):
                for instance in self._instances:
                    yield instance, message

    def _pieces(self, pending: list[RunEvent | tuple[str, str]]) -> Iterator[Piece]:
        index = 0
        while index < len(pending):
            item = pending[index]
            if isinstance(item, RunEvent):
                self._seq = item.seq or self._seq
                if item.type == "message_completed":
                    self._text, self._length, self._base = [], 0, self._seq
                index += 1
                yield Piece("event", item.run_id, self._seq, item)
                continue
            parts: list[str] = []
            while index < len(pending) and isinstance(part := pending[index], tuple) and part[0] == item[0]:
                parts.append(part[1])
                index += 1
            yield self._joined(item[0], "".join(parts))

    def _joined(self, kind: str, text: str) -> Piece:
        if kind != "text_delta":
            return self._piece("thinking", 0, text)
        piece = self._piece("text", self._length, text)
        self._text.append(text)
        self._length += len(text)
        return piece

    def _piece(self, kind: PieceKind, offset: int, text: str) -> Piece:
        stream = self._stream
        return Piece(kind, stream.run_id, self._seq, attempt=stream.attempt, base=self._base, offset=offset, text=text)

    def _encoded(self, piece: Piece) -> Iterator[str]:
        return encode_pieces(piece, self._signals.largest - _TOPIC_BYTES)
