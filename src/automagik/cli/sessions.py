"""`automagik sessions`: conversations and their messages."""

from typing import Annotated
from urllib.parse import quote

import typer

from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect
from automagik.cli.output import print_fields, print_json, print_table, print_text, tell_done

__all__ = ["app"]

app = typer.Typer(help="See and delete conversations.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's UUID or name.", show_default=False)]

_COLUMNS = (
    ("SESSION", "session_id"),
    ("NAME", "session_name"),
    ("AGENT", "agent_name"),
    ("MESSAGES", "message_count"),
    ("UPDATED", "updated_at"),
)


@app.command("list")
def list_sessions(
    limit: Limit = 50,
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="UUID", help="Only this user's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List sessions, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/sessions", limit=limit, agent_name=agent, user_id=user)
        if as_json:
            for session in found:
                print_json(session)
        else:
            print_table(found, _COLUMNS)


@app.command()
def show(session: SessionId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one session."""
    with connect(url) as client:
        document = client.get(f"/api/v1/sessions/{quote(session, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command()
def messages(session: SessionId, limit: Limit = 50, as_json: AsJson = False, url: Url = None) -> None:
    """Show a session's last messages, in their order."""
    with connect(url) as client:
        found = list(client.pages(f"/api/v1/sessions/{quote(session, safe='')}/messages", limit=limit))
    for message in reversed(found):
        if as_json:
            print_json(message)
        else:
            print_text(f"[{message['created_at']}] {message['role']}:\n{message['content']}\n")


@app.command()
def delete(session: SessionId, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a session with its messages and memories."""
    confirm(f"Delete the session {session} with its messages?", yes=yes)
    with connect(url) as client:
        client.delete(f"/api/v1/sessions/{quote(session, safe='')}")
    tell_done(f"Deleted the session {session}.", {"deleted": session}, as_json=as_json)
