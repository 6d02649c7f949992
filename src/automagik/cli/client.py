"""ApiClient: the HTTP API as the command line uses it. Its Problems become errors that say the way out."""

import ipaddress
import json
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import quote, urlsplit

import httpx2

from automagik import __version__
from automagik.cli.failure import CliError, ExitCode, failure_of_problem
from automagik.cli.output import note
from automagik.cli.profile import load_profile, origin
from automagik.settings import ClientSettings
from automagik.types import Json, JsonObject

__all__ = ["ApiClient", "Server", "StreamEvent", "find_server"]

_DEFAULT_URL = "http://127.0.0.1:8881"
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
"""Longest silence of the server; an event stream has pings in shorter intervals."""
_RESUME_DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0, *(8.0,) * 14)
"""Seconds before each attempt to go on with a stream that broke off: two minutes in all, as long as a run's calls wait for a platform
that is started again."""
_TOLD_AFTER = 2
"""Attempts that failed, before a person is told: a proxy that ends long answers is no news."""
_MAKE_ONE = "run `automagik keys create --first` on the server's machine"
_MAX_EVENT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Server:
    """Where the API is and the key for it. `withheld_for` is the profile's server where its key is not sent to this one."""

    url: str
    key: str | None
    withheld_for: str | None = None
    key_is_given: bool = False
    """Whether the key is AUTOMAGIK_KEY, not the profile's."""

    def __repr__(self) -> str:
        return f"Server(url={self.url!r})"


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a run; `seq` is None for those that are not stored."""

    run_id: str
    seq: int | None
    type: str
    at: str
    data: JsonObject

    def to_json(self) -> JsonObject:
        """The event as the API tells it."""
        return {"run_id": self.run_id, "seq": self.seq, "type": self.type, "at": self.at, "data": self.data}


def find_server(url: str | None, settings: ClientSettings) -> Server:
    """The server and key by, in this order: the option, the environment, the profile, `http://127.0.0.1:8881`.

    The profile's key is only ever sent to the profile's own server: a link or a variable must not lead it elsewhere.
    """
    named = url or settings.url
    if settings.key is not None and named is not None:  # a profile of no use must not stand in the way
        return Server(_checked(named), settings.key.get_secret_value(), key_is_given=True)
    profile = load_profile(settings.config_dir)
    chosen = _checked(named or (profile.url if profile else _DEFAULT_URL))
    if settings.key is not None:
        return Server(chosen, settings.key.get_secret_value(), key_is_given=True)
    if profile is None:
        return Server(chosen, None)
    if origin(chosen) == origin(profile.url):
        return Server(chosen, profile.key)
    return Server(chosen, None, withheld_for=profile.url)


class ApiClient:
    """The API of one server. Every method raises CliError for what the API refuses and for a server that is away."""

    def __init__(self, server: Server) -> None:
        self._server = server
        headers = {"user-agent": f"automagik-cli/{__version__}", "accept": "application/json"}
        if server.key is not None:
            headers["x-api-key"] = server.key
        self._http = httpx2.Client(
            base_url=server.url,
            headers=headers,
            timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            follow_redirects=False,  # a key goes where it was meant to go
            trust_env=not _is_loopback(server.url),  # and not through a proxy to this very machine
            # To load the machine's authorities takes 50 ms, which an address without TLS needs not.
            verify=urlsplit(server.url).scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def url(self) -> str:
        """The server's address."""
        return self._server.url

    def get(self, path: str, **params: str | int | None) -> JsonObject:
        """The resource at `path`. Parameters that are None are left out."""
        return self._send("GET", path, params=params)

    def get_with_etag(self, path: str) -> tuple[JsonObject, str | None]:
        """The resource and its ETag, with which a change says what it is a change of."""
        response = self._request("GET", path)
        return self._json(response), response.headers.get("etag")

    def post(
        self, path: str, body: JsonObject | None = None, *, headers: Mapping[str, str] | None = None
    ) -> JsonObject:
        """What the API answers to `body`."""
        return self._send("POST", path, body=body, headers=headers)

    def upload(self, path: str, file: Path, *, media_type: str) -> JsonObject:
        """What the API answers to the bytes of a file."""
        with file.open("rb") as content:
            try:
                response = self._http.request(
                    "POST",
                    path,
                    content=content,
                    headers={"content-type": media_type, "content-length": str(file.stat().st_size)},
                )
            except httpx2.TransportError as error:
                raise self._unreachable(error) from error
        if not response.is_success:
            raise self._refused(response)
        return self._json(response)

    def patch(self, path: str, body: JsonObject, *, headers: Mapping[str, str] | None = None) -> JsonObject:
        """The changed resource."""
        return self._send("PATCH", path, body=body, headers=headers)

    def delete(self, path: str) -> None:
        """Delete the resource."""
        self._send("DELETE", path)

    def pages(self, path: str, *, limit: int | None, **params: str | int | None) -> Iterator[JsonObject]:
        """The items of a list over all its pages, `limit` at most (None: all)."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            size = 100 if left is None else min(left, 100)
            page = self.get(path, limit=size, cursor=cursor, **params)
            items = cast("list[JsonObject]", page["data"])
            yield from items
            left = None if left is None else left - len(items)
            cursor = cast("str | None", page.get("next_cursor"))
            if cursor is None:
                return

    def run(self, agent: str, body: JsonObject) -> Iterator[StreamEvent]:
        """The events of a new run until its end. A connection that breaks is resumed where it stopped."""
        yield from self._stream("POST", f"/api/v1/agent/{quote(agent, safe='')}/run/stream", body=body)

    def events(self, run_id: str, *, after: int = 0) -> Iterator[StreamEvent]:
        """The events of a run after `after`, and those that come until its end."""
        yield from self._stream("GET", _events_path(run_id), run_id=run_id, after=after)

    @contextmanager
    def download(self, path: str) -> Generator[tuple[str, Iterator[bytes]]]:
        """The media type of what is at `path`, and its bytes as they come."""
        began = False
        try:
            with self._http.stream("GET", path, headers={"accept": "*/*"}) as response:
                if not response.is_success:
                    response.read()
                    raise self._refused(response)
                began = True
                yield response.headers.get("content-type", "application/octet-stream"), response.iter_bytes()
        except httpx2.TransportError as error:
            raise (self._away(f"{self.url} broke off.") if began else self._unreachable(error)) from error

    # -- inner parts

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | None] | None = None,
        body: JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JsonObject:
        response = self._request(method, path, params=params, body=body, headers=headers)
        return {} if response.status_code == 204 else self._json(response)

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | None] | None = None,
        body: JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            response = self._http.request(
                method, path, params=given, content=_encode(body), headers=_with_json(body, headers)
            )
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise self._refused(response)
        return response

    def _stream(
        self, method: str, path: str, *, body: JsonObject | None = None, run_id: str | None = None, after: int = 0
    ) -> Iterator[StreamEvent]:
        received, failures = False, 0
        while True:
            broken: Exception | None = None
            try:
                for event in self._read(method, path, body, after):
                    received, failures = True, 0
                    run_id, after = event.run_id, event.seq or after
                    yield event
                    if event.type == "run_finished" or (event.type == "run_waiting" and method == "POST"):
                        return
            except httpx2.TransportError as error:
                if not received:
                    raise self._unreachable(error) from error
                broken = error
            except CliError as error:
                if not received or error.exit_code is not ExitCode.UNREACHABLE:
                    raise
                broken = error
            if run_id is None:
                raise self._cut_off()
            if failures == len(_RESUME_DELAYS):
                raise self._lost(run_id) from broken
            if failures == _TOLD_AFTER:
                left = sum(_RESUME_DELAYS[failures:])
                note(f"{self.url} is away; looking for it for {left:.0f} s more ...")
            time.sleep(_RESUME_DELAYS[failures])
            failures += 1
            method, path, body = "GET", _events_path(run_id), None

    def _read(self, method: str, path: str, body: JsonObject | None, after: int) -> Iterator[StreamEvent]:
        headers = {"accept": "text/event-stream"}
        if after:
            headers["last-event-id"] = str(after)
        with self._http.stream(method, path, content=_encode(body), headers=_with_json(body, headers)) as response:
            if not response.is_success:
                response.read()
                raise self._refused(response)
            for sent in httpx2.EventSource(response, max_event_size=_MAX_EVENT_BYTES):
                if sent.data:
                    yield _event(sent.data)

    def _refused(self, response: httpx2.Response) -> CliError:
        content_type = response.headers.get("content-type", "")
        if "problem+json" not in content_type:
            if response.status_code in {502, 503, 504}:
                return self._away(f"The gateway at {self.url} answered {response.status_code}.")
            return CliError(
                f"{self.url} answered {response.status_code}, but not as an Automagik server does.",
                exit_code=ExitCode.UNREACHABLE,
                hint="Check the address (--url, AUTOMAGIK_URL).",
            )
        failure = failure_of_problem(self._json(response), response.status_code)
        if response.status_code == 401:
            failure.hint = self._way_to_a_key()
        return failure

    def _way_to_a_key(self) -> str:
        if self._server.withheld_for is not None:
            return f"The profile's key is for {self._server.withheld_for} and was not sent. Set AUTOMAGIK_KEY for {self.url}."
        if self._server.key is None:
            return f"Set AUTOMAGIK_KEY, or {_MAKE_ONE}."
        if self._server.key_is_given:
            return "AUTOMAGIK_KEY holds that key: set it to a valid one, or unset it to use the profile's."
        return f"The profile holds that key: set AUTOMAGIK_KEY, or {_MAKE_ONE}."

    def _json(self, response: httpx2.Response) -> JsonObject:
        try:
            document: object = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise CliError(
                f"{self.url} did not answer as an Automagik server does.",
                exit_code=ExitCode.UNREACHABLE,
                hint="Check the address (--url, AUTOMAGIK_URL).",
            )
        return cast("JsonObject", document)

    def _unreachable(self, error: httpx2.TransportError) -> CliError:
        if isinstance(error, httpx2.ReadTimeout):
            return self._away(f"{self.url} did not answer in time.")
        return self._away(f"No server answers at {self.url} ({_cause(error)}).")

    def _cut_off(self) -> CliError:
        return CliError(
            f"{self.url} ended the stream before the run was accepted.",
            exit_code=ExitCode.UNREACHABLE,
            hint="`automagik runs list` shows whether it was.",
        )

    def _lost(self, run_id: str) -> CliError:
        return CliError(
            f"The connection to {self.url} is lost. The run goes on: {run_id}.",
            exit_code=ExitCode.UNREACHABLE,
            hint=f"Look on later with `automagik runs events {run_id}`.",
        )

    def _away(self, detail: str) -> CliError:
        hint = "Start one with `automagik serve`, or name another with --url or AUTOMAGIK_URL."
        return CliError(detail, exit_code=ExitCode.UNREACHABLE, hint=hint)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        fit = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fit = False
        parts = urlsplit("")
    if not fit or parts.query or parts.fragment:
        raise CliError(
            f"'{url}' is no address of a server.",
            exit_code=ExitCode.USAGE,
            hint=f"Write it like {_DEFAULT_URL}.",
        )
    if parts.username is not None or parts.password is not None:
        raise CliError(
            "The server's address must not carry a name or password.",
            exit_code=ExitCode.USAGE,
            hint="Set the key with AUTOMAGIK_KEY.",
        )
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _events_path(run_id: str) -> str:
    return f"/api/v1/runs/{quote(run_id, safe='')}/events"


def _encode(body: JsonObject | None) -> bytes | None:
    return None if body is None else json.dumps(body).encode()


def _with_json(body: JsonObject | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    typed = {"content-type": "application/json"} if body is not None else {}
    return {**typed, **(headers or {})}


def _event(text: str) -> StreamEvent:
    document = cast("dict[str, Any]", json.loads(text))
    return StreamEvent(
        run_id=document["run_id"],
        seq=document["seq"],
        type=document["type"],
        at=document["at"],
        data=cast("dict[str, Json]", document["data"]),
    )


def _cause(error: httpx2.TransportError) -> str:
    text = str(error)
    return text.split("] ", 1)[-1] if text else type(error).__name__
