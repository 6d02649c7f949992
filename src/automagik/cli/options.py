"""What many commands share: their options, the connection, and what is asked before something is lost."""

import json
import re
import sys
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.types import JsonObject

if TYPE_CHECKING:
    from pydantic import ValidationError

    from automagik.cli.client import ApiClient
    from automagik.settings import ClientSettings, Settings

__all__ = [
    "AsJson",
    "Limit",
    "Url",
    "Yes",
    "check_dollars",
    "client_settings",
    "complete",
    "confirm",
    "connect",
    "given",
    "is_uuid",
    "read_object",
    "server_settings",
    "session_id",
]

T = TypeVar("T")

_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

AsJson = Annotated[bool, typer.Option("--json", help="Print what the API answers as JSON, a line an object.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The server's address; else AUTOMAGIK_URL, else the profile's."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at the most, newest first.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask; needed where there is no terminal.")]


def connect(url: str | None) -> "ApiClient":
    """The client for the server that is meant; use it in a `with` block."""
    from automagik.cli.client import ApiClient, find_server  # httpx2 takes 0.1 s to load

    return ApiClient(find_server(url, client_settings()))


def client_settings() -> "ClientSettings":
    """What the environment says to the command line. Raises CliError for a value that can't be."""
    from pydantic import ValidationError  # 0.15 s to load

    from automagik.settings import ClientSettings

    try:
        return ClientSettings()
    except ValidationError as wrong:
        raise _bad_setting(wrong) from None


def server_settings(**changes: object) -> "Settings":
    """What the environment says to a server, with `changes` (None: none). Raises CliError for a value that can't be."""
    from pydantic import ValidationError  # 0.15 s to load

    from automagik.settings import Settings

    try:
        return Settings(**{name: value for name, value in changes.items() if value is not None})  # pyright: ignore[reportArgumentType] - checked by pydantic
    except ValidationError as wrong:
        raise _bad_setting(wrong) from None


def complete(work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to, on an event loop of its own."""
    import asyncio  # 0.05 s to load

    return asyncio.run(work)


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if a person agrees, or `--yes` did. Raises CliError where nobody can be asked, or the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CliError(f"{question} Nobody can be asked here.", exit_code=ExitCode.USAGE, hint="Add --yes to do it.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CliError("Nothing was changed.", exit_code=ExitCode.FAILED)


def check_dollars(option: str, amount: str | None) -> None:
    """Raises: CliError for what is no amount of US dollars."""
    if amount is not None and not _AMOUNT.fullmatch(amount):
        raise CliError(
            f"{option}: '{amount}' is no amount of US dollars.", exit_code=ExitCode.USAGE, hint="As 25 or 0.50."
        )


def given(**fields: object) -> JsonObject:
    """The fields that are not None, as a body."""
    return cast("JsonObject", {name: value for name, value in fields.items() if value is not None})


def session_id(client: "ApiClient", session: str | None) -> str | None:
    """The UUID of the session that a person names by its UUID or its name. Raises CliError for an unknown name."""
    if session is None or is_uuid(session):
        return session
    return cast("str", client.get(f"/api/v1/sessions/{quote(session, safe='')}")["session_id"])


def is_uuid(text: str) -> bool:
    """Whether the text spells a UUID."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def read_object(text: str, option: str) -> JsonObject:
    """The JSON object that `text` spells, or the file that `@FILE` names (`@-`: standard input)."""
    if text == "@-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"{option}: {error}", exit_code=ExitCode.USAGE) from error
    try:
        document: object = json.loads(text)
    except ValueError as error:
        raise CliError(f"{option} is no JSON: {error}", exit_code=ExitCode.USAGE, hint="Use {...} or @FILE.") from error
    if not isinstance(document, dict):
        raise CliError(f"{option} must be a JSON object.", exit_code=ExitCode.USAGE, hint="Use {...} or @FILE.")
    return cast("JsonObject", document)


def _bad_setting(wrong: "ValidationError") -> CliError:
    lines: list[str] = []
    for error in wrong.errors(include_url=False, include_context=False, include_input=False):
        name = str(error["loc"][0]) if error["loc"] else "settings"
        variable = name if name.isupper() else f"AUTOMAGIK_{name.upper()}"
        lines.append(f"{variable}: {error['msg']}.")
    return CliError("\n".join(lines), exit_code=ExitCode.USAGE, hint="docs/reference/settings.md lists all settings.")
