"""Following: one execution of the CLI, from its first word to its end: events, words for it, and its limits."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import structlog

from automagik.claude_code.command import interrupt_request, user_message
from automagik.claude_code.control import Control
from automagik.claude_code.executor import Execution, Executor, ExitStatus
from automagik.claude_code.size_watch import SizeWatch
from automagik.claude_code.transcript import Transcript, TranscriptEvent
from automagik.gateway import Door
from automagik.sandbox.confinement import Limits
from automagik.store import Store
from automagik.types import Clock, JsonObject

__all__ = ["Following", "Limit", "unread"]

_log = structlog.stdlib.get_logger(__name__)

_TICK_SECONDS = 0.25
_WORDS_SECONDS = 1.0
"""How often words are looked for whose signal may have been lost."""
_CHECKPOINT_SECONDS = 40.0
"""How long after something was done with a tool the commits are taken out, at the latest: within the promised minute."""
_LAST_LOOKS = 5
"""How often it is looked for words before nobody is heard any more."""
_MAX_QUOTED = 500
_MOST_BUSY = 40
"""How often the ledger may answer "busy" before a run is ended whose CLI does not give up by itself."""


def unread(run_id: str, text: str) -> JsonObject:
    """The warning of a message that no model has read."""
    said = text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
    detail = f"The model has not read this any more: “{said}” Say it in a run with `resume_of` {run_id}."
    return {"code": "message_too_late", "detail": detail}


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a run may take in all (from `began`, of the clock's `monotonic`), and may be silent, in seconds."""

    began: float
    timeout_seconds: float
    stall_seconds: float


@dataclass(slots=True)
class Following:
    """What is done while the CLI works. `follow` returns when it has ended, or when this process is to leave it."""

    run_id: str
    owner: str
    executor: Executor
    execution: Execution
    transcript: Transcript
    door: Door
    control: Control
    store: Store
    clock: Clock
    limit: Limit
    limits: Limits
    emit: Callable[[str, JsonObject], None]
    checkpoint: Callable[[], Awaitable[None]]
    """Takes out what was made until now."""
    seen: tuple[int, int] = (0, -1)
    """The last event of the transcript that is stored already, by line and part."""
    task: bytes = b""
    """What the CLI is told first, where it has not been told."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where somebody spoke to the run."""
    _heard_at: float = 0.0
    _worked: bool = False
    _interrupted: bool = False
    _closed: bool = False
    _turn: JsonObject | None = None
    """The result of the last turn that is over."""
    _requests: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _speaking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def follow(self) -> ExitStatus | None:
        """How the CLI ended; None where this process leaves it at work."""
        self._heard_at = self.clock.monotonic()
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read(), name=f"read {self.run_id}")
        helpers = [
            loop.create_task(self._watch(), name=f"watch {self.run_id}"),
            loop.create_task(self._measure(), name=f"measure {self.run_id}"),
            loop.create_task(self._listen(), name=f"listen {self.run_id}"),
            loop.create_task(self._take_out(), name=f"take out {self.run_id}"),
        ]
        pulled = loop.create_task(self.control.pulled())
        try:
            await asyncio.wait({reading, pulled, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            for task in helpers:
                if task.done():
                    task.result()
            if self.control.leaves:
                return None
            if self.control.ended_by is not None:
                await self.execution.kill()
            await reading
            return await self.execution.wait()
        finally:
            for task in (reading, pulled, *helpers):
                task.cancel()
            await asyncio.wait({reading, pulled, *helpers})

    async def _read(self) -> None:
        async for chunk in self.execution.output():
            self._heard_at = self.clock.monotonic()
            for event in self.transcript.feed(chunk):
                self._tell(event)
            result = self.transcript.result
            if result is not None and result is not self._turn:
                await self._turn_over()
            self._turn = result
        for event in self.transcript.finish():
            self._tell(event)

    def _tell(self, event: TranscriptEvent) -> None:
        if (event.line, event.part) <= self.seen:
            return
        if event.type in {"text_delta", "thinking_delta"}:
            self.emit(event.type, event.data)
            return
        self._worked = self._worked or event.type == "tool_result"
        self.emit(event.type, {**event.data, "line": event.line, "part": event.part, "turn": self.transcript.num_turns})

    async def _turn_over(self) -> None:
        """The CLI waits for another message, or for the end of its input."""
        if self._closed:
            return
        for _ in range(_LAST_LOOKS):
            if await self._speak():
                self._interrupted = False
                return
            # From here on a message is refused by name, so that none is accepted and then not read.
            if await self.store.write(lambda tx: tx.executions.close(self.run_id, self.owner)):
                break
        if self._interrupted:
            self.control.ended_by = self.control.ended_by or "interrupt"
        self._closed = True
        await self.execution.close_input()

    # -- words

    async def _listen(self) -> None:
        """Apart from the limits: words wait for as long as the CLI does not read them, and one that was stopped never does."""
        if self.task:
            await self.execution.send(self.task)
        while True:
            try:
                async with asyncio.timeout(_WORDS_SECONDS):
                    await self.told.wait()
            except TimeoutError:
                pass
            self.told.clear()
            await self._speak()

    async def _speak(self) -> bool:
        """Whether the CLI was told a message that it had not been told before."""
        spoken = False
        async with self._speaking:  # else two who look at the same time would say the same twice
            for word in await self.store.read(lambda tx: tx.words.waiting(self.run_id)):
                if word.kind == "message":
                    if self._closed or not await self.execution.send(user_message(word.text)):
                        continue  # nothing is let in any more: the run's end tells what was not read
                    spoken = True
                    self.emit("guidance", {"text": word.text, "kind": "message"})
                else:
                    await self._interrupt()
                await self.store.write(lambda tx, word=word: tx.words.take(word.id))
        return spoken

    async def _interrupt(self) -> None:
        self._interrupted = True
        self.emit("guidance", {"text": "", "kind": "interrupt"})
        if not await self.execution.send(interrupt_request(f"interrupt-{next(self._requests)}")):
            self.control.ended_by = self.control.ended_by or "interrupt"
            await self.execution.interrupt()

    # -- limits

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._check(self.clock.monotonic())

    def _check(self, now: float) -> None:
        if now - self.limit.began >= self.limit.timeout_seconds:
            self.control.end("timeout")
        elif now - self._heard_at >= self.limit.stall_seconds:
            self.control.end("stall")
        elif self.door.retry_refusals >= _MOST_BUSY:
            self.control.end("budget")

    async def _measure(self) -> None:
        run_id, limit = self.run_id, self.limits.workspace_bytes
        measure, disk_used = partial(self.executor.size, run_id, limit=limit), partial(self.executor.disk_used, run_id)
        size = await SizeWatch(run_id, limit, measure, disk_used, self.clock).until_over()
        if size.unknown is not None:
            detail = f"The workspace could not be measured, which counts as over its limit: {size.why}."
            self.emit("warning", {"code": "workspace_unmeasured", "detail": detail})
        self.control.end("size" if size.unknown is None else "unmeasured")

    async def _take_out(self) -> None:
        while True:
            await asyncio.sleep(_CHECKPOINT_SECONDS)
            if self._worked:
                self._worked = False
                await self.checkpoint()
