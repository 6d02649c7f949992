"""A small real HTTP server that answers as a test tells it, and the real command in a process of its own."""

import json
import os
import pty
import signal
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from automagik.testing.warm import WarmPython

__all__ = ["Answer", "Asked", "Command", "Done", "StubApi", "event", "problem", "run_document"]


@dataclass(frozen=True)
class Asked:
    """One request as the server got it."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """What the server answers. `breaks` cuts the connection after the body, in the middle of what was promised."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    breaks: bool = False
    holds_seconds: float = 0.0


Handler = Callable[[Asked], Answer] | Answer


class StubApi(ThreadingHTTPServer):
    """The API as a table of (method, path): what isn't in it is a 404 problem."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[tuple[str, str], Handler] = {}
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def on(self, method: str, path: str, handler: Handler | dict[str, Any] | str) -> None:
        self.answers[method, path] = Answer(handler) if isinstance(handler, dict | str) else handler

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        handler = self.answers.get((asked.method, asked.path))
        if handler is None:
            return problem(404, "not_found", f"Nothing at {asked.path}.")
        return handler if isinstance(handler, Answer) else handler(asked)

    def bodies(self, method: str) -> list[Any]:
        return [asked.body for asked in self.asked if asked.method == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        stub = cast("StubApi", self.server)
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        sent = json.loads(raw) if raw and "json" in headers.get("content-type", "") else raw or None
        asked = Asked(self.command, parts.path, dict(parse_qsl(parts.query)), headers, sent)
        answer = stub.answer(asked)
        body = answer.body
        data = body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
        self.send_response(answer.status)
        told = {"content-type": "text/event-stream" if isinstance(body, str) else "application/json", **answer.headers}
        for name, value in told.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("content-length", str(len(data) + (100 if answer.breaks or answer.holds_seconds else 0)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        if answer.holds_seconds:
            time.sleep(answer.holds_seconds)
        if answer.breaks or answer.holds_seconds:
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the library looks for these names

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing."""


def problem(status: int, code: str, detail: str, **more: Any) -> Answer:
    body = {"type": "about:blank", "title": "Wrong", "status": status, "code": code, "detail": detail, **more}
    return Answer(body, status, {"content-type": "application/problem+json"})


def event(kind: str, data: Any, seq: int | None = None, run_id: str = "run_1") -> str:
    document = {"run_id": run_id, "seq": seq, "type": kind, "at": "2026-11-24T09:30:00.000000Z", "data": data}
    number = "" if seq is None else f"id: {seq}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(document)}\n\n"


def run_document(**changes: Any) -> dict[str, Any]:
    return {
        "run_id": "run_1",
        "name": "simple",
        "status": "completed",
        "outcome": "completed",
        "session_id": "01900000-0000-7000-8000-000000000000",
        "output": {"message": "Hello there", "data": None, "tool_calls": [], "tool_outputs": []},
        "error": None,
        **changes,
    }


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Command:
    """The real `automagik`, with folders of its own and nothing of this process's environment."""

    def __init__(self, folder: Path, warm: WarmPython) -> None:
        self._warm = warm
        self.data_dir = folder / "data"
        self.config_dir = folder / "config"
        self.environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "AUTOMAGIK_DATA_DIR": str(self.data_dir),
            "AUTOMAGIK_CONFIG_DIR": str(self.config_dir),
            "AUTOMAGIK_MODEL": "demo",
        }

    @property
    def profile(self) -> Path:
        return self.config_dir / "profile.json"

    def write_profile(self, url: str, key: str = "amk_" + "p" * 43, *, mode: int = 0o600) -> None:
        self.config_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.profile.write_text(json.dumps({"url": url, "key": key, "key_id": "key_profile"}))
        self.profile.chmod(mode)

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Done:
        done = self._warm.run(arguments, env={**self.environment, **environment}, stdin=stdin)
        return Done(done.returncode, done.stdout, done.stderr)

    def on_terminal(
        self,
        *arguments: str,
        types: Sequence[tuple[str, str]] = (),
        columns: int | None = None,
        **environment: str,
    ) -> Done:
        """The same on a terminal, of a real width with `columns`. A person who sees the first text of `types` types the second, and so on.

        `out` is all that the terminal shows.
        """
        ours, theirs = pty.openpty()
        if columns is not None:
            termios.tcsetwinsize(theirs, (24, columns))
        environment = {**self.environment, "TERM": "xterm", "COLUMNS": "200", **environment}
        process = self._warm.start(
            arguments, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, own_terminal=True
        )
        os.close(theirs)
        left = list(types)
        shown, seen = bytearray(), 0
        while True:
            while left and (found := shown.find(left[0][0].encode(), seen)) >= 0:
                seen = found + len(left[0][0])
                os.write(ours, left.pop(0)[1].encode())
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not chunk:
                break
            shown += chunk
        os.close(ours)
        return Done(process.wait(timeout=60), shown.decode(), "")

    def interrupted(self, *arguments: str, when: Callable[[], bool], **environment: str) -> Done:
        """The command, which gets Ctrl-C as soon as `when` is true."""
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            Path(os.devnull).open() as nothing,
        ):
            process = self._warm.start(
                arguments,
                env={**self.environment, **environment},
                stdin=nothing.fileno(),
                stdout=out.fileno(),
                stderr=err.fileno(),
            )
            deadline = time.monotonic() + 30
            while not when() and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=30)
            out.seek(0)
            err.seek(0)
            return Done(code, out.read(), err.read())
