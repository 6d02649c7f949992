"""`automagik run` and `automagik chat`: ask an agent, and read the answer while it is written."""

import base64
import mimetypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Url, connect, given, is_uuid
from automagik.cli.output import note, print_json, print_text
from automagik.types import Json, JsonObject, new_uuid

if TYPE_CHECKING:
    from automagik.cli.client import ApiClient, StreamEvent

__all__ = ["chat", "run"]

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.", show_default=False)]
Session = Annotated[
    str | None, typer.Option("--session", help="A session to go on with: its name or UUID; an unknown one is made.")
]
Model = Annotated[str | None, typer.Option("--model", help="Another model, where the agent or the key allows it.")]
User = Annotated[str | None, typer.Option("--user", metavar="UUID", help="The user for whom the agent works.")]
Files = Annotated[
    list[str] | None,
    typer.Option("--file", metavar="PATH/URL", help="An image, audio or document to send along; TYPE/SUBTYPE=... names its kind."),
]  # fmt: skip

_TYPED = re.compile(r"([a-z]+/[A-Za-z0-9.+-]+)=(.+)", re.DOTALL)


def run(
    agent: Agent,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="What you say to it; '-' reads standard input.", show_default=False)
    ],
    session: Session = None,
    model: Model = None,
    user: User = None,
    file: Files = None,
    background: Annotated[
        bool, typer.Option("--background", help="Put the run into the queue, and print its id at once.")
    ] = False,
    priority: Annotated[
        int | None,
        typer.Option("--priority", min=-100, max=100, help="Of a background run: smaller numbers go first; else 0."),
    ] = None,
    queue_timeout: Annotated[
        float | None,
        typer.Option("--queue-timeout", metavar="SECONDS", help="How long a background run may wait in the queue."),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Ask an agent; the answer streams. Ctrl-C cancels the run. With --json the run is printed when it has ended."""
    if not background and (priority is not None or queue_timeout is not None):
        raise CliError(
            "--priority and --queue-timeout are for runs that wait in the queue.",
            exit_code=ExitCode.USAGE,
            hint="Add --background.",
        )
    content = sys.stdin.read() if text == "-" else text
    media = [_media(item) for item in file or []]
    body = _body(content, session, model, user, media)
    with connect(url) as client:
        if background:
            body |= given(priority=priority, queue_timeout_seconds=queue_timeout)
            _tell_queued(client.post(f"/api/v1/agent/{quote(agent, safe='')}/run/async", body), as_json=as_json)
            return
        document = _Answer(client, as_json=as_json).follow(client.run(agent, body))
    _end(document, as_json=as_json)


def _tell_queued(document: JsonObject, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    run_id = str(document["run_id"])
    note(f"The run waits in the queue. Follow it: automagik runs events {run_id}")
    print_text(run_id)


def chat(
    agent: Agent,
    session: Session = None,
    model: Model = None,
    user: User = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Talk with an agent: a line a message, until Ctrl-D; Ctrl-C stops an answer. Without a terminal: the lines of standard input."""
    name = session or str(new_uuid())
    failed = False
    with connect(url) as client:
        for line in _lines(agent, name):
            body = _body(line, name, model, user, [])
            try:
                document = _Answer(client, as_json=as_json).follow(client.run(agent, body))
            except KeyboardInterrupt:  # on a terminal it stops the answer, and the talk goes on
                if not sys.stdin.isatty():
                    raise
                continue
            try:
                _end(document, as_json=as_json)
            except CliError as failure:  # a run that failed is told, and the talk goes on
                failed = True
                note(f"error: {failure.detail}")
    if failed and not sys.stdin.isatty():
        raise typer.Exit(int(ExitCode.FAILED))


class _Answer:
    """Shows one run as its events come: the text on standard output, what else happens on standard error."""

    def __init__(self, client: "ApiClient", *, as_json: bool) -> None:
        self._client = client
        self._as_json = as_json
        self._message = ""
        """What was shown of the message under way."""
        self._shown_any = False
        self._line_open = False

    def follow(self, events: "Iterator[StreamEvent]") -> JsonObject:
        """The run as it ended, or as it waits. Ctrl-C cancels it."""
        run_id: str | None = None
        try:
            for event in events:
                run_id = event.run_id
                self._show(event)
                if event.type == "run_finished":
                    return self._finish(cast("JsonObject", event.data["run"]))
                if event.type == "run_waiting":
                    break
        except KeyboardInterrupt:
            self._close_line()
            self._cancel(run_id)
            raise
        if run_id is None:
            raise CliError("The server sent no events.", exit_code=ExitCode.UNREACHABLE)
        return self._client.get(f"/api/v1/runs/{run_id}")

    def _show(self, event: "StreamEvent") -> None:
        if self._as_json:
            return
        match event.type:
            case "text_delta":
                self._write(cast("str", event.data["text"]))
            case "text_snapshot":  # after a break: the whole message so far
                self._catch_up(cast("str", event.data["text"]))
            case "message_completed":
                text = event.data.get("text")
                if isinstance(text, str):
                    self._catch_up(text)
                self._message = ""
            case "tool_call":
                self._close_line()
                note(f"  → {event.data.get('tool_name')}")
            case "warning" | "budget_warning":
                self._close_line()
                note(f"  ! {event.data.get('detail') or event.data}")
            case _:
                return

    def _catch_up(self, text: str) -> None:
        if text.startswith(self._message):
            self._write(text[len(self._message) :])
        elif self._message != text:
            self._close_line()
            self._message = ""
            self._write(text)

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._shown_any and not self._message and not self._line_open:
            print_text("")  # an empty line between two messages
        print_text(text, end="")
        self._message += text
        self._shown_any = True
        self._line_open = not text.endswith("\n")

    def _close_line(self) -> None:
        if self._line_open:
            print_text("")
            self._line_open = False

    def _finish(self, document: JsonObject) -> JsonObject:
        output = document.get("output")
        if not self._as_json and not self._shown_any and isinstance(output, dict):
            self._write(str(output.get("message") or ""))
        self._close_line()
        return document

    def _cancel(self, run_id: str | None) -> None:
        if run_id is None:
            return
        try:
            self._client.post(f"/api/v1/runs/{run_id}/cancel")
            note(f"Cancelled {run_id}.")
        except CliError as failure:
            note(f"The run goes on, it could not be cancelled: {failure.detail} ({run_id})")


def _end(document: JsonObject, *, as_json: bool) -> None:
    """Print the run where JSON is asked for. Raises CliError for one that did not end well."""
    if as_json:
        print_json(document)
    if document["status"] == "completed":
        return
    if as_json:
        raise typer.Exit(int(ExitCode.FAILED))
    error = document.get("error")
    described = error if isinstance(error, dict) else {}
    detail = described.get("detail") or f"The run is {document['status']}."
    hint = described.get("hint")
    raise CliError(
        f"{detail} ({document['run_id']})",
        exit_code=ExitCode.FAILED,
        hint=hint if isinstance(hint, str) else None,
    )


def _body(text: str, session: str | None, model: str | None, user: str | None, media: list[JsonObject]) -> JsonObject:
    body = given(message_content=text, model=model, user_id=user, session_origin="cli")
    if session is not None:
        body["session_id" if is_uuid(session) else "session_name"] = session
    if media:
        body["media_contents"] = cast("list[Json]", media)
    return body


def _lines(agent: str, session: str) -> Iterator[str]:
    """What the person says: prompted for on a terminal, else the lines of standard input. Empty ones are skipped."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")
        return
    import readline

    readline.set_auto_history(True)  # `input` then edits lines and knows the earlier ones

    note(f"Talking with '{agent}', session {session}. Ctrl-D ends.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print_text("")
            return
        except KeyboardInterrupt:
            print_text("")
            raise
        if line.strip():
            yield line


def _media(item: str) -> JsonObject:
    """A file or URL as the API takes it: its kind, and its bytes in base64 or its address."""
    typed = _TYPED.fullmatch(item)
    kind, place = (typed[1], typed[2]) if typed else (None, item)
    is_url = place.startswith(("http://", "https://"))
    kind = kind or mimetypes.guess_type(place.split("?", 1)[0] if is_url else place)[0]
    if kind is None:
        raise CliError(
            f"What kind of file is '{place}'?",
            exit_code=ExitCode.USAGE,
            hint=f"Say it as in --file application/pdf={place}",
        )
    if is_url:
        return {"mime_type": kind, "media_url": place}
    try:
        data = Path(place).read_bytes()
    except OSError as error:
        raise CliError(f"'{place}' can't be read: {error.strerror}.", exit_code=ExitCode.USAGE) from error
    media: JsonObject = {"mime_type": kind, "data": base64.b64encode(data).decode()}
    if kind.startswith(("application/", "text/")):
        media["name"] = Path(place).name
    return media
