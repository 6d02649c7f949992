"""A scripted Messages API over HTTP, for the real Claude CLI, the SDKs and the model gateway: offline, with faults on demand.

In a test, in process, on loopback or on a unix socket:

    async with ScriptedMessages({"default": {"text": "Hello"}}, socket=folder / "api.sock") as api:
        ...  # api.calls, await api.wait_for(2), api.script = ...

As a process, which prints its port: `python -m automagik.testing.scripted_messages --port 0 --script script.json`. There
`PUT /__script__` changes the script and `GET /__calls__` counts the calls.

It answers `POST /v1/messages` (streamed and not), `POST /v1/messages/count_tokens`, `GET /v1/models` and `HEAD /`. What a script
is, is described in `automagik.providers.scripted_messages`; the faults of a script happen here. `refuse` and `accept` take the
server away and bring it back.
"""

import argparse
import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import httptools
import orjson

from automagik.errors import InvalidInput
from automagik.providers.scripted_answer import ScriptedAnswer, ScriptedFault
from automagik.providers.scripted_conversation import Conversation
from automagik.providers.scripted_messages import DEMO_SCRIPT, Script
from automagik.types import JsonObject

__all__ = ["Call", "ScriptedMessages"]

_SECRETS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}
_SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_OVERLOADED = (
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"This error is scripted."}}\n\n'
)
_GARBAGE = b"<html>this is no JSON"


@dataclass(frozen=True, slots=True)
class Call:
    """One request for a message."""

    at: float
    """Seconds of the loop's clock."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: JsonObject
    rule: str
    """The rule that answered."""
    turn: int
    attempt: int
    """How often the same was asked before."""
    status: int


class ScriptedMessages:
    """The server. Without a script it answers "OK"."""

    def __init__(
        self,
        script: Script | JsonObject | None = None,
        *,
        socket: Path | None = None,
        port: int | None = None,
        record: Path | None = None,
        keep: bool = True,
    ) -> None:
        """It listens on `socket`, on `port` of 127.0.0.1 (0: a free one), or both; with neither, on a free port.

        `record`: a file to which each call is added as a line of JSON, without its credentials. `keep`: whether `calls` keeps them.

        Raises: InvalidInput for a script that is wrong.
        """
        self._script = _script_of(script)
        self._socket = socket
        self._wanted_port = 0 if port is None and socket is None else port
        self._record = record
        self._keep = keep
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._attempts: Counter[str] = Counter()
        self._came = asyncio.Condition()
        self.calls: list[Call] = []
        """The requests for a message, oldest first."""
        self.count = 0
        """How many there were."""

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        assert self._wanted_port, "it listens on no port"
        return self._wanted_port

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def script(self) -> Script:
        """What it answers by; may be set while it runs, also to a document. Then attempts are counted anew."""
        return self._script

    @script.setter
    def script(self, script: Script | JsonObject) -> None:
        self._script = _script_of(script)
        self._attempts.clear()

    @property
    def answering(self) -> int:
        """How many answers are under way: a client that goes away ends its own."""
        return sum(connection.is_busy for connection in self._connections)

    async def accept(self) -> None:
        """Listen, again where `refuse` was called: on the same port, on the same path."""
        if self._servers:
            return
        loop = asyncio.get_running_loop()
        if self._wanted_port is not None:
            server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._wanted_port, backlog=4096)
            self._wanted_port = server.sockets[0].getsockname()[1]
            self._servers.append(server)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._servers.append(
                await loop.create_unix_server(lambda: _Connection(self), str(self._socket), backlog=4096)
            )

    async def refuse(self) -> None:
        """Be gone: whoever connects is refused, and what is under way breaks."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.ended() for connection in connections))
        for server in servers:
            await server.wait_closed()
        if servers and self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def wait_for(self, count: int, *, timeout_seconds: float = 20) -> list[Call]:
        """The calls, as soon as there were `count`.

        Raises: TimeoutError that says how many there were.
        """
        try:
            async with asyncio.timeout(timeout_seconds), self._came:
                await self._came.wait_for(lambda: self.count >= count)
        except TimeoutError:
            raise TimeoutError(f"There were {self.count} calls in {timeout_seconds:g} s, not {count}.") from None
        return list(self.calls)

    def opened(self, connection: "_Connection") -> None:
        """For a connection to say that it is there."""
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        """For a connection to say that it is gone."""
        self._connections.discard(connection)

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> ScriptedAnswer:
        """What is sent for one request."""
        match method, path:
            case "POST", "/v1/messages":
                request = _object(body)
                return (
                    _problem(400, "The body is no JSON object.")
                    if request is None
                    else await self._message(request, headers)
                )
            case "POST", "/v1/messages/count_tokens":
                read = _read(_object(body) or {})
                return _json(200, {"input_tokens": read.old_tokens + read.new_tokens})
            case "GET", "/v1/models":
                return _json(200, {"data": [], "has_more": False, "first_id": None, "last_id": None})
            case (("HEAD" | "GET"), ("/" | "/api/hello")):
                return _json(200, {"message": "hello"})
            case "GET", "/__calls__":
                return _json(200, {"calls": self.count, "answering": self.answering})
            case "PUT", "/__script__":
                return self._change(body)
            case _:
                return _problem(404, f"There is no {method} {path} here.")

    def _change(self, body: bytes) -> ScriptedAnswer:
        try:
            self.script = _script_of(_object(body) or {})
        except InvalidInput as error:
            return _problem(400, error.detail)
        return _json(200, {"changed": True})

    async def _message(self, request: JsonObject, headers: Mapping[str, str]) -> ScriptedAnswer:
        # The CLI asks again without a stream where one broke: that is the same question.
        key = _read(request).digest
        attempt = self._attempts[key]
        self._attempts[key] += 1
        answer = self._script.answer(request, attempt=attempt)
        now = asyncio.get_running_loop().time()
        call = Call(now, headers, request, answer.rule, answer.turn, attempt, answer.status)
        if self._record is not None:
            await asyncio.to_thread(_write_down, self._record, call)
        async with self._came:
            self.count += 1
            if self._keep:
                self.calls.append(call)
            self._came.notify_all()
        return answer


class _Connection(asyncio.Protocol):
    """One client's connection, kept alive; each request is answered by a task, one at a time."""

    def __init__(self, owner: ScriptedMessages) -> None:
        self._owner = owner
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way."""
        return self._task is not None and not self._task.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()
        self._owner.closed(self)

    def abort(self) -> None:
        """Break it."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Wait for the answer under way to have ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, body, headers = self._url.split(b"?", 1)[0].decode("latin-1"), b"".join(self._body), self._headers
        self._url, self._body, self._headers = b"", [], {}
        if self.is_busy:  # pipelining: no client of ours does it
            self._transport.close()
            return
        method = self._parser.get_method().decode("latin-1")
        stays = self._parser.should_keep_alive()
        self._task = asyncio.get_running_loop().create_task(self._answer(method, path, headers, body, stays))

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes, stays: bool) -> None:
        answer = await self._owner.answer(method, path, headers, body)
        if answer.delay:
            await asyncio.sleep(answer.delay)
        fault = answer.fault
        if fault is not None and fault.kind == "refuse":
            self._transport.abort()
        elif answer.is_streamed:
            await self._stream(answer, fault)
        else:
            await self._whole(answer, fault, method)
        if not stays:
            self._transport.close()

    async def _whole(self, answer: ScriptedAnswer, fault: ScriptedFault | None, method: str) -> None:
        reason = _REASONS.get(answer.status, "Scripted")
        body = _GARBAGE if fault is not None and fault.kind == "garbage" else answer.body
        fields = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
        head = f"HTTP/1.1 {answer.status} {reason}\r\n" + "".join(
            f"{key}: {value}\r\n" for key, value in fields.items()
        )
        if fault is not None and fault.kind == "hang":
            await asyncio.Event().wait()
        if fault is not None and fault.kind in {"cut", "error"}:
            self._transport.write(f"{head}\r\n".encode() + body[: len(body) // 2])
            self._transport.close()
            return
        self._transport.write(f"{head}\r\n".encode() + (b"" if method == "HEAD" else body))

    async def _stream(self, answer: ScriptedAnswer, fault: ScriptedFault | None) -> None:
        fields = "".join(f"{key}: {value}\r\n" for key, value in answer.headers.items())
        self._transport.write(_SSE_HEAD + fields.encode() + b"transfer-encoding: chunked\r\n\r\n")
        waiting: list[bytes] = []
        for number, chunk in enumerate(answer.stream()):
            if fault is not None and number >= fault.after:
                self._transport.write(b"".join(waiting))
                await self._fail(fault)
                return
            waiting.append(_chunk(chunk))
            if answer.chunk_delay:
                self._transport.write(waiting.pop())
                await asyncio.sleep(answer.chunk_delay)
        self._transport.write(b"".join(waiting) + b"0\r\n\r\n")

    async def _fail(self, fault: ScriptedFault) -> None:
        match fault.kind:
            case "hang":
                await asyncio.Event().wait()
            case "error":
                self._transport.write(_chunk(_OVERLOADED) + b"0\r\n\r\n")
            case "garbage":
                self._transport.write(_chunk(b"data: " + _GARBAGE + b"\n\n") + b"0\r\n\r\n")
            case _:
                self._transport.close()


def _script_of(script: Script | JsonObject | None) -> Script:
    return script if isinstance(script, Script) else Script.parse(script or {})


def _object(body: bytes) -> JsonObject | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return cast("JsonObject", value) if isinstance(value, dict) else None


def _read(request: JsonObject) -> Conversation:
    try:
        return Conversation.of(request)
    except orjson.JSONEncodeError:  # nested too deeply
        return Conversation.of({})


def _json(status: int, content: JsonObject) -> ScriptedAnswer:
    return ScriptedAnswer(status, {}, orjson.dumps(content))


def _problem(status: int, message: str) -> ScriptedAnswer:
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    return _json(status, {"type": "error", "error": {"type": kind, "message": message}})


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _write_down(path: Path, call: Call) -> None:
    line = {
        "at": call.at,
        "rule": call.rule,
        "turn": call.turn,
        "attempt": call.attempt,
        "status": call.status,
        "headers": {key: "(left out)" if key in _SECRETS else value for key, value in call.headers.items()},
        "body": call.body,
    }
    with path.open("ab") as file:
        file.write(orjson.dumps(line) + b"\n")


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    script = DEMO_SCRIPT if options.demo else options.script
    port = None if options.socket is not None and options.port is None else options.port or 0
    async with ScriptedMessages(script, socket=options.socket, port=port, record=options.record, keep=False) as api:
        sys.stdout.write(f"{api.port if port is not None else options.socket}\n")
        sys.stdout.flush()
        await stop.wait()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="scripted_messages", description="A scripted Messages API.")
    parser.add_argument("--port", type=int, default=None, help="0 takes a free one, which is printed")
    parser.add_argument("--socket", type=Path, default=None, help="a unix socket to listen on")
    parser.add_argument("--script", type=Path, default=None, help="a file with a script in JSON; unset: it answers OK")
    parser.add_argument("--demo", action="store_true", help="the script of the workflow demo")
    parser.add_argument("--record", type=Path, default=None, help="a file to which each call is added")
    options = parser.parse_args()
    if options.script is not None:
        try:
            options.script = Script.parse(orjson.loads(options.script.read_bytes()))
        except (OSError, orjson.JSONDecodeError, InvalidInput) as error:
            parser.error(f"--script: {error}")
    import uvloop  # noqa: PLC0415 - only as a process, and not on Windows, where it does not exist

    uvloop.run(_serve(options))


if __name__ == "__main__":
    _main()
