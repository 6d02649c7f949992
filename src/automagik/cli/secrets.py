"""`automagik secrets`: stored secrets and the key that encrypts them, on the data folder or database itself."""

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Yes, complete, confirm, server_settings
from automagik.cli.output import note, print_json, print_table, print_text
from automagik.errors import nearest
from automagik.types import JsonObject

if TYPE_CHECKING:
    from automagik.security.secrets import SecretStore

__all__ = ["app"]

app = typer.Typer(help="Store providers' keys; check and change the key that encrypts them.", no_args_is_help=True)

T = TypeVar("T")

_KNOWN = {
    "anthropic_api_key": "what the model gateway speaks to Anthropic with, where ANTHROPIC_API_KEY is not set",
    "anthropic_auth_token": "the same as a bearer token",
    "openai_api_key": "what the model gateway speaks to OpenAI with, where OPENAI_API_KEY is not set",
    "github_token": "what the workflow `pr` pushes by https and opens pull requests with",
}
"""The secrets that the platform asks for by name. Those of webhooks are made by itself."""

Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(_KNOWN)}.", show_default=False)]


@app.command("list")
def list_secrets(as_json: AsJson = False) -> None:
    """Show which secrets can be stored, and whether they are; never what they are."""
    stored = set(_with_secrets(lambda secrets: secrets.names()))
    rows: list[JsonObject] = [
        {"name": name, "stored": name in stored, "purpose": purpose} for name, purpose in _KNOWN.items()
    ]
    if as_json:
        for row in rows:
            print_json(row)
    else:
        print_table(rows, (("SECRET", "name"), ("STORED", "stored"), ("PURPOSE", "purpose")), whole=("purpose",))


@app.command("set")
def set_secret(name: Name) -> None:
    """Store a secret, encrypted. It is asked for without an echo; without a terminal it is the first line of standard input."""
    from pydantic import SecretStr  # 0.15 s to load

    _check_name(name)
    value = typer.prompt(name, hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    value = str(value).strip()
    if not value or not value.isprintable() or not value.isascii():
        raise CliError(
            "A secret is a line of visible ASCII characters.",
            exit_code=ExitCode.USAGE,
            hint=f"As: automagik secrets set {name} < FILE",
        )
    _with_secrets(lambda secrets: secrets.set(name, SecretStr(value)), make=True)
    note(f"Stored {name}. Servers that run use it within a minute.")


@app.command("delete")
def delete_secret(name: Name) -> None:
    """Forget a stored secret."""
    _check_name(name)
    _with_secrets(lambda secrets: secrets.delete(name))
    note(f"Deleted {name}.")


def _check_name(name: str) -> None:
    if name not in _KNOWN:
        close = nearest(name, _KNOWN)
        raise CliError(
            f"The platform asks for no secret '{name}'.",
            exit_code=ExitCode.USAGE,
            hint=f"Did you mean '{close}'?" if close else f"There are: {', '.join(_KNOWN)}.",
        )


@app.command()
def generate() -> None:
    """Print a fresh key for AUTOMAGIK_SECRET_KEY. It is kept nowhere."""
    from automagik.security.sealing import PlatformKey

    print_text(PlatformKey.new().text)


@app.command()
def check(as_json: AsJson = False) -> None:
    """Open every stored secret, showing none. Fails where one can't be opened."""
    checked = _with_secrets(lambda secrets: secrets.check())
    if as_json:
        print_json(
            {
                "source": checked.source,
                "fingerprint": checked.fingerprint,
                "total": checked.total,
                "behind": checked.behind,
                "unreadable": [*checked.unreadable],
            }
        )
    else:
        note(f"Secrets: {checked.total}, encrypted with the key of {checked.source}.")
        if checked.behind:
            note(f"Under an older key: {checked.behind}. `automagik secrets rotate` changes that.")
    if checked.unreadable:
        raise CliError(
            f"These can't be opened: {', '.join(checked.unreadable)}.",
            exit_code=ExitCode.FAILED,
            hint="Restore the database from a backup, or set them anew.",
        )


@app.command()
def rotate(as_json: AsJson = False) -> None:
    """Put all stored secrets under the newest key: a fresh one in the key file, or the first of AUTOMAGIK_SECRET_KEY."""
    changed = _with_secrets(lambda secrets: secrets.rotate())
    if as_json:
        print_json({"changed": changed})
    else:
        note(f"Secrets put under the newest key: {changed}. Older keys open nothing any more.")


@app.command()
def reset(yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete all stored secrets: the way out where their key is lost. Give webhooks new ones with `webhooks rotate-secret`."""
    confirm("Delete all stored secrets? Nothing brings them back.", yes=yes)
    deleted = _with_secrets(lambda secrets: secrets.reset(), opened=False)
    if as_json:
        print_json({"deleted": deleted})
    else:
        note(f"Secrets deleted: {deleted}.")


def _with_secrets(
    work: "Callable[[SecretStore], Coroutine[Any, Any, T]]", *, opened: bool = True, make: bool = False
) -> T:
    from automagik.cli.folder import open_store, quiet_logs  # the store takes 0.3 s to load
    from automagik.security.secrets import SecretStore

    settings = server_settings()
    quiet_logs(settings)

    async def on_store() -> T:
        async with open_store(settings) as store:
            secrets = SecretStore(store, settings)
            if opened:
                await secrets.open(make=make)
            return await work(secrets)

    return complete(on_store())
