"""`automagik memories`: the variables that agents remember."""

from typing import Annotated
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect, given, session_id
from automagik.cli.output import print_fields, print_json, print_table, tell_done

__all__ = ["app"]

app = typer.Typer(help="See, set and delete memory variables.", no_args_is_help=True)

MemoryId = Annotated[str, typer.Argument(metavar="MEMORY", help="The memory's UUID.", show_default=False)]
Agent = Annotated[str | None, typer.Option("--agent", help="The agent that it belongs to.")]
User = Annotated[str | None, typer.Option("--user", metavar="UUID", help="The user whom it belongs to.")]
Session = Annotated[str | None, typer.Option("--session", metavar="UUID/NAME", help="The session that it belongs to.")]

_COLUMNS = (
    ("MEMORY", "memory_id"),
    ("NAME", "name"),
    ("AGENT", "agent_name"),
    ("USER", "user_id"),
    ("SESSION", "session_id"),
    ("CONTENT", "content"),
)


@app.command("list")
def list_memories(
    limit: Limit = 50,
    name: Annotated[str | None, typer.Option("--name", help="Only those of this name.")] = None,
    agent: Agent = None,
    user: User = None,
    session: Session = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List memories, newest first."""
    with connect(url) as client:
        of = session_id(client, session)
        found = client.pages("/api/v1/memories", limit=limit, name=name, agent_name=agent, user_id=user, session_id=of)
        if as_json:
            for memory in found:
                print_json(memory)
        else:
            print_table(found, _COLUMNS)


@app.command()
def show(memory: MemoryId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one memory."""
    with connect(url) as client:
        document = client.get(f"/api/v1/memories/{quote(memory, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command("set")
def store(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name, as in the template's {{name}}.", show_default=False)
    ],
    content: Annotated[str, typer.Argument(metavar="CONTENT", help="What is remembered.", show_default=False)],
    agent: Agent = None,
    user: User = None,
    session: Session = None,
    description: Annotated[str | None, typer.Option("--description", help="What it is for.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Set the memory of this name in the scope that --agent, --user and --session give; it is made where there is none."""
    if agent is None and user is None and session is None:
        raise CliError(
            "A memory belongs to an agent, a user or a session.",
            exit_code=ExitCode.USAGE,
            hint="Add --agent, --user or --session.",
        )
    body = given(name=name, content=content, agent_name=agent, user_id=user, description=description)
    with connect(url) as client:
        body |= given(session_id=session_id(client, session))
        memory = client.post("/api/v1/memories", body)
    (print_json if as_json else print_fields)(memory)


@app.command()
def delete(memory: MemoryId, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a memory."""
    confirm(f"Delete the memory {memory}?", yes=yes)
    with connect(url) as client:
        client.delete(f"/api/v1/memories/{quote(memory, safe='')}")
    tell_done(f"Deleted the memory {memory}.", {"deleted": memory}, as_json=as_json)
