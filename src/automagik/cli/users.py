"""`automagik users`: whom sessions, memories and runs belong to."""

from typing import Annotated
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect, given, read_object
from automagik.cli.output import print_fields, print_json, print_table, tell_done

__all__ = ["app"]

app = typer.Typer(help="See, create, change and delete users.", no_args_is_help=True)

UserId = Annotated[str, typer.Argument(metavar="USER", help="The user's UUID.", show_default=False)]

_COLUMNS = (("USER", "user_id"), ("EMAIL", "email"), ("PHONE", "phone_number"), ("CREATED", "created_at"))


@app.command("list")
def list_users(limit: Limit = 50, as_json: AsJson = False, url: Url = None) -> None:
    """List users, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/users", limit=limit)
        if as_json:
            for user in found:
                print_json(user)
        else:
            print_table(found, _COLUMNS)


@app.command()
def show(user: UserId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one user."""
    with connect(url) as client:
        document = client.get(f"/api/v1/users/{quote(user, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command()
def create(
    email: Annotated[str | None, typer.Option("--email", help="The user's email address.")] = None,
    phone: Annotated[str | None, typer.Option("--phone", help="The user's phone number.")] = None,
    user_id: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The id; else a new one.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="JSON/@FILE", help="What else is known, as a JSON object.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create a user."""
    user_data = read_object(data, "--data") if data is not None else None
    with connect(url) as client:
        user = client.post(
            "/api/v1/users", given(user_id=user_id, email=email, phone_number=phone, user_data=user_data)
        )
    (print_json if as_json else print_fields)(user)


@app.command()
def update(
    user: UserId,
    email: Annotated[str | None, typer.Option("--email", help="Another email address.")] = None,
    phone: Annotated[str | None, typer.Option("--phone", help="Another phone number.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="JSON/@FILE", help="A JSON object in place of what is known.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change a user; --data takes the place of all that was there."""
    user_data = read_object(data, "--data") if data is not None else None
    body = given(email=email, phone_number=phone, user_data=user_data)
    if not body:
        raise CliError("Nothing to change was given.", exit_code=ExitCode.USAGE, hint="Add --email, --phone or --data.")
    with connect(url) as client:
        document = client.patch(f"/api/v1/users/{quote(user, safe='')}", body)
    (print_json if as_json else print_fields)(document)


@app.command()
def delete(user: UserId, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a user with the sessions and memories; the user's keys are revoked, the runs stay as a record."""
    confirm(f"Delete the user {user} with all sessions and memories?", yes=yes)
    with connect(url) as client:
        client.delete(f"/api/v1/users/{quote(user, safe='')}")
    tell_done(f"Deleted the user {user}.", {"deleted": user}, as_json=as_json)
