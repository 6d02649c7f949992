"""`automagik audit`: who changed what."""

from typing import Annotated

import typer

from automagik.cli.options import AsJson, Limit, Url, connect
from automagik.cli.output import print_json, print_table

__all__ = ["app"]

app = typer.Typer(help="See who changed what.", no_args_is_help=True)

_COLUMNS = (
    ("AT", "at"),
    ("ACTION", "action"),
    ("TARGET", "target"),
    ("KEY", "key_id"),
    ("DETAILS", "details"),
    ("REQUEST", "request_id"),
)


@app.callback()
def audit() -> None:
    """See who changed what."""


@app.command("list")
def list_audit(
    limit: Limit = 50,
    action: Annotated[str | None, typer.Option("--action", help="Only these, as key.create.")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="ID", help="Only what was done to this.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List the changes made through the platform, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/audit", limit=limit, action=action, target=target)
        if as_json:
            for change in found:
                print_json(change)
        else:
            print_table(found, _COLUMNS, optional=("request_id", "details"))
