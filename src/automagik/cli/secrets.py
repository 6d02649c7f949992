"""`automagik secrets`: the key that stored secrets are encrypted with, on the data folder or database itself."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Yes, complete, confirm, server_settings
from automagik.cli.output import note, print_json, print_text

if TYPE_CHECKING:
    from automagik.security.secrets import SecretStore

__all__ = ["app"]

app = typer.Typer(help="Check and change the key that stored secrets are encrypted with.", no_args_is_help=True)

T = TypeVar("T")


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


def _with_secrets(work: "Callable[[SecretStore], Coroutine[Any, Any, T]]", *, opened: bool = True) -> T:
    from automagik.cli.folder import open_store, quiet_logs  # the store takes 0.3 s to load
    from automagik.security.secrets import SecretStore

    settings = server_settings()
    quiet_logs(settings)

    async def on_store() -> T:
        async with open_store(settings) as store:
            secrets = SecretStore(store, settings)
            if opened:
                await secrets.open(make=False)
            return await work(secrets)

    return complete(on_store())
