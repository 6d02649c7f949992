"""A scripted model provider that speaks OpenAI's Chat Completions on loopback: what it answers is known beforehand.

In a test, in process:

    async with ScriptedOpenAI(Reply(text="Hello there")) as provider:
        ...  # provider.base_url, provider.requests

As a process, which prints its port: `python -m automagik.testing.scripted_openai --port 0`. There the model's name says
what is answered, so that one process serves every benchmark:

    bulk-200        200 tokens at once
    paced-20-1.0    20 tokens, one each 1.0 s, the first at once
    echo            the last user message
    delay-0.5       the default answer, after 0.5 s
    status-503      an error of that status
    any other       `--tokens N`, `--interval S`, or "Hello from the scripted model."

It is a bare protocol over httptools with answers rendered once, because it shares the machine with what it measures.
"""

import argparse
import asyncio
import re
import signal
import sys
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import httptools
import orjson

from automagik.types import Json, JsonObject

__all__ = ["Reply", "ScriptedOpenAI", "ToolCall"]

_DEFAULT_TEXT = "Hello from the scripted model."
_PROMPT_TOKENS = 25
_CREATED = 1_767_225_600
_MAX_RENDERED = 512
_MAX_TOKENS = 100_000
_NAMED = re.compile(
    r"(?P<kind>bulk|paced|delay|status)-(?P<number>\d+(?:\.\d+)?)(?:-(?P<seconds>\d+(?:\.\d+)?))?", re.ASCII
)
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
_SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model asks for. `arguments` is JSON text, sent as it is, also where it is none."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the model."""

    text: str = ""
    """The answer; streamed a word at a time where `tokens` is empty."""
    tokens: tuple[str, ...] = ()
    """The answer in exactly these pieces, instead of `text`."""
    calls: tuple[ToolCall, ...] = ()
    """Tools asked for, after the text."""
    interval: float = 0.0
    """Seconds between tokens; 0: all at once. A plain answer comes when the last token would have."""
    delay: float = 0.0
    """Seconds before anything is sent."""
    status: int = 200
    """Another status than 200 sends OpenAI's error shape instead."""
    retry_after: int | None = None
    """Seconds, for the `retry-after` header of an error."""
    cut_after: int | None = None
    """The connection is cut after so many tokens; 0: before anything is sent. A plain answer is cut in its body."""
    garbage: bool = False
    """A 200 whose body is no JSON."""

    def pieces(self) -> tuple[str, ...]:
        """The text as it is streamed."""
        return self.tokens or tuple(re.findall(r"\s*\S+\s*$|\s*\S+", self.text))


@dataclass(frozen=True, slots=True)
class _Rendered:
    """An answer in bytes. A paced one is sent frame by frame, any other in one write."""

    whole: bytes
    frames: tuple[bytes, ...] = ()
    """Head and first token, then a token each, the last with the end."""


class ScriptedOpenAI:
    """The provider. Queued `replies` answer the first requests; after them the model's name does, or `default`."""

    def __init__(
        self,
        *replies: Reply,
        default: Reply | None = None,
        models: tuple[str, ...] = ("scripted",),
        port: int = 0,
        keep: int = 100,
        keep_headers: bool = True,
    ) -> None:
        self._queue = deque(replies)
        self._default = default or Reply(text=_DEFAULT_TEXT)
        self._models = models
        self._port = port
        self._bodies: deque[bytes] = deque(maxlen=keep)
        self._headers: deque[dict[str, str]] = deque(maxlen=keep)
        self._connection = _RecordingConnection if keep_headers else _Connection
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._named: dict[str, Reply] = {}
        self._rendered: dict[tuple[Reply, str, bool, bool], _Rendered] = {}
        self._calls = 0
        self.chats = 0
        """How many chat completions were asked for."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self._connection(self), "127.0.0.1", self._port, backlog=4096)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._port

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> list[JsonObject]:
        """The bodies of the last chat requests, oldest first."""
        return [orjson.loads(body) for body in self._bodies]

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers (lower case) of the last chat requests; empty with `keep_headers=False`."""
        return list(self._headers)

    @property
    def answering(self) -> int:
        """How many answers are under way: a client that goes away ends its own."""
        return sum(connection.busy for connection in self._connections)

    def reply(self, *replies: Reply) -> None:
        """Queue answers for the next requests."""
        self._queue.extend(replies)

    def opened(self, connection: "_Connection") -> None:
        """For a connection to say that it is there."""
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        """For a connection to say that it is gone."""
        self._connections.discard(connection)

    def answer(self, method: bytes, path: bytes, body: bytes, headers: dict[str, str]) -> tuple[Reply, _Rendered]:
        """What is sent for one request."""
        if path == b"/v1/chat/completions" and method == b"POST":
            return self._chat(body, headers)
        if path == b"/v1/models" and method == b"GET":
            entries: list[Json] = [
                {"id": name, "object": "model", "created": _CREATED, "owned_by": "script"} for name in self._models
            ]
            return Reply(), _Rendered(_plain(200, {"object": "list", "data": entries}))
        return Reply(), _Rendered(_plain(404, _error(404)))

    def _chat(self, body: bytes, headers: dict[str, str]) -> tuple[Reply, _Rendered]:
        try:
            request: dict[str, Any] = orjson.loads(body)
            model, stream = str(request["model"]), bool(request.get("stream"))
            options: dict[str, Any] = request.get("stream_options") or {}
            usage = bool(options.get("include_usage"))
        except (ValueError, TypeError, KeyError, AttributeError):
            return Reply(), _Rendered(_plain(400, _error(400)))
        self.chats += 1
        self._bodies.append(body)
        self._headers.append(headers)
        if self._queue:
            reply = self._queue.popleft()
        elif model == "echo":
            reply = Reply(text=_last_user_text(request))
        else:
            reply = self._by_name(model)
        return reply, self._render(reply, model, stream, usage)

    def _by_name(self, model: str) -> Reply:
        known = self._named.get(model)
        if known is None:
            if len(self._named) >= _MAX_RENDERED:
                self._named.clear()
            known = self._named[model] = _named_reply(model, self._default)
        return known

    def _render(self, reply: Reply, model: str, stream: bool, usage: bool) -> _Rendered:
        key = (reply, model, stream, usage)
        known = self._rendered.get(key)
        if known is not None:
            return known
        rendered = self._streamed(reply, model, usage) if stream else _Rendered(self._complete(reply, model))
        if not reply.calls:  # a call's id is used once
            if len(self._rendered) >= _MAX_RENDERED:
                self._rendered.clear()
            self._rendered[key] = rendered
        return rendered

    def _tool_calls(self, reply: Reply) -> list[Json]:
        calls: list[Json] = []
        for index, call in enumerate(reply.calls):
            self._calls += 1
            function: JsonObject = {"name": call.name, "arguments": call.arguments}
            calls.append({"index": index, "id": f"call_{self._calls}", "type": "function", "function": function})
        return calls

    def _complete(self, reply: Reply, model: str) -> bytes:
        if reply.status != 200:
            return _plain(reply.status, _error(reply.status), retry_after=reply.retry_after)
        if reply.garbage:
            return _framed(200, b"<html>this is no JSON")
        pieces = reply.pieces()
        message: JsonObject = {"role": "assistant", "content": "".join(pieces) or None}
        if reply.calls:
            message["tool_calls"] = self._tool_calls(reply)
        choice: JsonObject = {"index": 0, "message": message, "finish_reason": "tool_calls" if reply.calls else "stop"}
        return _plain(200, {**_envelope(model, "chat.completion"), "choices": [choice], "usage": _usage(len(pieces))})

    def _streamed(self, reply: Reply, model: str, usage: bool) -> _Rendered:
        if reply.status != 200:
            return _Rendered(self._complete(reply, model))
        if reply.garbage:
            return _Rendered(_SSE_HEAD + _chunk(b"data: {this is no JSON\n\n") + b"0\r\n\r\n")
        envelope = _envelope(model, "chat.completion.chunk")
        pieces = reply.pieces()

        def event(delta: JsonObject, finish: str | None = None) -> bytes:
            return _event({**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        frames = [event({"content": piece}) for piece in pieces]
        frames += [event({"tool_calls": [call]}) for call in self._tool_calls(reply)]
        opening = event({"role": "assistant", "content": ""})
        ending = event({}, "tool_calls" if reply.calls else "stop")
        if usage:
            ending += _event({**envelope, "choices": [], "usage": _usage(len(pieces))})
        ending += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        if not frames:
            return _Rendered(_SSE_HEAD + opening + ending)
        frames[0] = _SSE_HEAD + opening + frames[0]
        frames[-1] += ending
        return _Rendered(b"".join(frames), tuple(frames))


class _Connection(asyncio.Protocol):
    """One client's connection, kept alive; answers one request at a time."""

    def __init__(self, owner: ScriptedOpenAI) -> None:
        self._owner = owner
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._request_headers: dict[str, str] = {}
        self._frames: tuple[bytes, ...] = ()
        self._sent = 0
        self._next_at = 0.0
        self._reply = Reply()
        self._timer: asyncio.TimerHandle | None = None
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.busy = False
        if self._timer is not None:
            self._timer.cancel()
        self._owner.closed(self)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, body, headers = self._url.split(b"?", 1)[0], b"".join(self._body), self._request_headers
        self._url, self._body, self._request_headers = b"", [], {}
        if self.busy:  # pipelining: no client of ours does it
            self._transport.close()
            return
        reply, rendered = self._owner.answer(self._parser.get_method(), path, body, headers)
        self.busy = True
        self._reply = reply
        if reply.delay or reply.interval or reply.cut_after is not None:
            self._pace(reply, rendered)
        else:
            self._transport.write(rendered.whole)
            self._done()

    def _pace(self, reply: Reply, rendered: _Rendered) -> None:
        self._frames, self._sent = rendered.frames, 0
        plain_wait = 0.0
        if not self._frames:  # a plain answer: one frame, when it is complete
            plain_wait = reply.interval * max(len(reply.pieces()) - 1, 0)
            half = len(rendered.whole) - 2 if reply.cut_after else len(rendered.whole)
            self._frames = (rendered.whole[:half],)
        elif not reply.interval and reply.cut_after is None:
            self._frames = (rendered.whole,)
        self._next_at = self._loop.time() + reply.delay + plain_wait
        if reply.delay or plain_wait:
            self._timer = self._loop.call_at(self._next_at, self._tick)
        else:
            self._tick()

    def _tick(self) -> None:
        reply = self._reply
        while True:
            if reply.cut_after is not None and self._sent >= reply.cut_after:
                self._transport.close()
                return
            self._transport.write(self._frames[self._sent])
            self._sent += 1
            if self._sent == len(self._frames):
                if reply.cut_after is None:
                    self._done()
                else:
                    self._transport.close()
                return
            if reply.interval:
                self._next_at += reply.interval
                self._timer = self._loop.call_at(self._next_at, self._tick)
                return

    def _done(self) -> None:
        self.busy = False
        if not self._parser.should_keep_alive():
            self._transport.close()


class _RecordingConnection(_Connection):
    """Keeps the request's headers too."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request_headers[name.decode("latin-1").lower()] = value.decode("latin-1")


def _named_reply(model: str, default: Reply) -> Reply:
    match = _NAMED.fullmatch(model)
    if match is None:
        return default
    number = float(match["number"])
    tokens = tuple(f" token{index}" for index in range(min(int(number), _MAX_TOKENS)))
    match match["kind"]:
        case "bulk":
            return Reply(tokens=tokens)
        case "paced":
            return Reply(tokens=tokens, interval=float(match["seconds"] or 1))
        case "delay":
            return Reply(text=_DEFAULT_TEXT, delay=number)
        case _:
            return Reply(status=int(number))


def _last_user_text(request: dict[str, Any]) -> str:
    messages: list[dict[str, Any]] = request.get("messages") or []
    for message in reversed(messages):
        if message.get("role") == "user":
            content: str | list[dict[str, Any]] = message.get("content") or ""
            return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    return ""


def _envelope(model: str, kind: str) -> JsonObject:
    return {"id": "chatcmpl-scripted", "object": kind, "created": _CREATED, "model": model}


def _usage(completion: int) -> JsonObject:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": completion,
        "total_tokens": _PROMPT_TOKENS + completion,
    }


def _error(status: int) -> JsonObject:
    text = f"Scripted error {status}"
    return {"error": {"message": text, "type": "scripted_error", "param": None, "code": f"scripted_{status}"}}


def _plain(status: int, content: JsonObject, *, retry_after: int | None = None) -> bytes:
    return _framed(status, orjson.dumps(content), retry_after=retry_after)


def _framed(status: int, body: bytes, *, retry_after: int | None = None) -> bytes:
    retry = f"retry-after: {retry_after}\r\n" if retry_after is not None else ""
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Scripted')}\r\ncontent-type: application/json\r\n{retry}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _event(content: JsonObject) -> bytes:
    return _chunk(b"data: " + orjson.dumps(content) + b"\n\n")


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


async def _serve(options: argparse.Namespace) -> None:
    interval = 0.0 if options.bulk else options.interval
    default = Reply(tokens=tuple(f" token{index}" for index in range(options.tokens)), interval=interval)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with ScriptedOpenAI(
        default=default if options.tokens else None, port=options.port, keep=1, keep_headers=False
    ) as provider:
        sys.stdout.write(f"{provider.port}\n")
        sys.stdout.flush()
        await stop.wait()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="scripted_openai", description="A scripted OpenAI-compatible provider.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    parser.add_argument("--tokens", type=int, default=0, help="tokens of the answer to a model of any other name")
    parser.add_argument("--interval", type=float, default=0.0, help="seconds between these tokens")
    parser.add_argument("--bulk", action="store_true", help="all tokens at once, whatever the interval")
    options = parser.parse_args()
    import uvloop  # noqa: PLC0415 - only as a process, and not on Windows, where it doesn't exist

    uvloop.run(_serve(options))


if __name__ == "__main__":
    _main()
