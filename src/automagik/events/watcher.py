"""Watcher: one reader here of a run that is carried out on another instance, or by nobody yet."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from automagik.errors import ServiceUnavailable
from automagik.events.event import RunEvent
from automagik.events.text import TextUnderWay
from automagik.events.wire import Piece
from automagik.types import Clock

__all__ = ["Look", "Looked", "Watcher"]

_MOST_PIECES = 500
"""How many pieces of text wait for a slow reader; beyond that they are dropped, and the text is asked for as a whole."""
_RETRY_SECONDS = 1.0
"""How long a store that is away is left alone, and how often a snapshot is asked for at the most."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the store has of a run at one moment: its events after some `seq`, and whether the run has ended."""

    events: Sequence[RunEvent]
    is_over: bool


Look = Callable[[str, int], Awaitable[Looked]]
"""Looks into the store: a run's events after a `seq`."""


class Watcher:
    """Gives the events of one run as the store has them, and between them the text under way as its owner sends it.

    The owner sends what it has stored, too; where that does not follow what was given without a gap, the store has it.
    """

    def __init__(self, run_id: str, after: int, look: Look, *, clock: Clock, ask: Callable[[str], None]) -> None:
        """`ask` asks the run's owner, whoever it is, for the text under way."""
        self.run_id = run_id
        self.after = after
        """The last `seq` that was given."""
        self.is_finished = False
        """Whether the run has ended, and its last event was given."""
        self._look = look
        self._clock = clock
        self._ask = ask
        self._text = TextUnderWay()
        self._pieces: deque[Piece] = deque()
        self._woken = asyncio.Event()
        self._must_look = True
        self._stopped = False
        self._text.lacks = True  # what is under way when the reader comes
        self._asked_at = float("-inf")

    @property
    def has_asked(self) -> bool:
        """Whether the run's owner was told that somebody looks on."""
        return self._asked_at > float("-inf")

    def wake(self, *, through: int | None = None) -> None:
        """Have the store looked at, where it has more than `through` says was given."""
        if through is None or through > self.after:
            self._must_look = True
            self._woken.set()

    def hear(self, piece: Piece) -> None:
        """Take a piece that the run's owner sent; pieces are gone through in the order in which they came."""
        if len(self._pieces) >= _MOST_PIECES:
            self._pieces.clear()
            self._text.lacks = self._must_look = True
        self._pieces.append(piece)
        self._woken.set()

    def stop(self) -> None:
        """Let the reader go."""
        self._stopped = True
        self._woken.set()

    async def batches(self) -> AsyncGenerator[Sequence[RunEvent]]:
        """What comes, in order, until the run is finished or `stop` is called."""
        while not self._stopped:
            self._woken.clear()
            while self._pieces and not self.is_finished:
                if self._pieces[0].seq > self.after:
                    events = self._sent_events() or await self._new_events()
                    if not events:
                        break  # the store is away: what it has comes first
                    yield events
                elif shown := self._shown():
                    yield shown
            if self._must_look and not self.is_finished and (events := await self._new_events()):
                yield events
            if self.is_finished:
                return
            self._ask_for_what_lacks()
            await self._wait()

    async def _new_events(self) -> Sequence[RunEvent]:
        self._must_look = False
        try:
            looked = await self._look(self.run_id, self.after)
        except ServiceUnavailable:
            self._must_look = True
            await asyncio.sleep(_RETRY_SECONDS)
            return ()
        for event in looked.events:
            self._pass(event)
        self.is_finished = looked.is_over
        return looked.events

    def _sent_events(self) -> list[RunEvent]:
        """The stored events that the owner sent, as far as they follow what was given without a gap."""
        events: list[RunEvent] = []
        while self._pieces and (event := self._pieces[0].event) is not None and event.seq == self.after + 1:
            self._pieces.popleft()
            self._pass(event)
            events.append(event)
        return events

    def _pass(self, event: RunEvent) -> None:
        self.after = event.seq or self.after
        if event.type == "message_completed":
            self._text.complete()
        elif event.type == "run_finished":
            self.is_finished = True

    def _shown(self) -> list[RunEvent]:
        """The pieces that follow what was given, as events; what came before that is past."""
        texts: list[tuple[str, list[str]]] = []
        while self._pieces and self._pieces[0].seq <= self.after:
            piece = self._pieces.popleft()
            if piece.seq < self.after or piece.kind == "event" or (taken := self._text.take(piece)) is None:
                continue
            kind, text = taken
            if texts and texts[-1][0] == kind and kind != "text_snapshot":
                texts[-1][1].append(text)
            else:
                texts.append((kind, [text]))
        now = self._clock.now()
        return [RunEvent(self.run_id, None, kind, now, {"text": "".join(parts)}) for kind, parts in texts]

    async def _wait(self) -> None:
        if self._must_look or self._stopped:
            return
        if not self._text.lacks:
            await self._woken.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await self._woken.wait()

    def _ask_for_what_lacks(self) -> None:
        if self._text.lacks and self._clock.monotonic() - self._asked_at >= _RETRY_SECONDS:
            self._text.lacks = False
            self._asked_at = self._clock.monotonic()
            self._ask(self.run_id)
