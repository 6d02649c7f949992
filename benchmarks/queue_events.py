"""How soon a reader on one instance sees what happens in a run that another one carries out."""

import asyncio
import time
from collections import defaultdict
from datetime import datetime
from typing import Any, cast

import httptools
import orjson
import uvloop

from benchmarks.delays import TEXT, delay_results
from benchmarks.queue_fleet import Fleet, fleet, now
from benchmarks.queue_models import PAUSE_SECONDS, ROUNDS
from benchmarks.report import Result
from benchmarks.report import Target as Goal
from benchmarks.running import Ground, quietly

__all__ = ["other_instance"]

_RUNS = 5
_WAITING = frozenset({"message_completed", "usage"})
"""Events that are stored with the next one, with the run's end, or after a moment: nobody sees them at once."""
_FIRST = frozenset({"run_queued", "run_started"})
"""Events that may have come before the reader did."""


class _Reader(asyncio.Protocol):
    """Reads one stream of server-sent events and notes when each event came."""

    def __init__(self, request: bytes) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.delays_ms: dict[str, list[float]] = defaultdict(list)
        """By the event's type; of text each piece, which says itself when it was said."""
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._at = time.time()
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            _, found, data = event.partition(b"data: ")
            if found:
                self._note(orjson.loads(data))

    def on_message_complete(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("the stream broke off"))

    def _note(self, event: dict[str, Any]) -> None:
        is_text = event["type"] == TEXT  # its words are the moments at which they were said
        said = event["data"]["text"].split() if is_text else [datetime.fromisoformat(event["at"]).timestamp()]
        self.delays_ms[event["type"]] += [(self._at - float(at)) * 1000 for at in said]

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def other_instance(on: Ground) -> list[Result]:
    """From an event's `at`, before it is stored on a worker, to its receipt by a reader of the server: p95; and of text."""
    with fleet(on, "postgresql", workers=1) as ours:
        _read_runs(ours)
        taken = [quietly(on, lambda: _read_runs(ours)) for _ in range(on.repetitions)]
    notes = {
        "streams_at_once": _RUNS,
        "events_a_run": 2 * ROUNDS + 1,
        "seconds_between_pieces_of_text": PAUSE_SECONDS,
        "left_out": sorted(_WAITING),
    }
    return delay_results(
        taken,
        events=("queue_event_other_instance", Goal("figure", "at most", 50.0)),
        texts=("queue_text_other_instance", None),
        left_out=_WAITING | _FIRST,
        notes=notes,
    )


def _read_runs(ours: Fleet) -> dict[str, list[float]]:
    """Delays by the type of event, of runs that are read while a worker carries them out."""
    began = now()
    ours.accept([ours.ask("talking")], _RUNS)
    run_ids = [row.run_id for row in ours.runs(began, name="talking")]
    found: dict[str, list[float]] = defaultdict(list)
    for delays in uvloop.run(_read(ours, run_ids)):
        for kind, of_kind in delays.items():
            found[kind] += of_kind
    if len(found["tool_result"]) != len(run_ids) * ROUNDS:
        raise RuntimeError(f"{len(found['tool_result'])} results of tools came, not {len(run_ids) * ROUNDS}")
    return found


async def _read(ours: Fleet, run_ids: list[str]) -> list[dict[str, list[float]]]:
    async def read(run_id: str) -> dict[str, list[float]]:
        request = (
            f"GET /api/v1/runs/{run_id}/events HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n"
            f"x-api-key: {ours.prepared.key}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        port = int(ours.prepared.env["AUTOMAGIK_PORT"])
        transport, reader = await loop.create_connection(lambda: _Reader(request.encode()), "127.0.0.1", port)
        await reader.ended
        transport.close()
        return reader.delays_ms

    return await asyncio.gather(*(read(run_id) for run_id in run_ids))
