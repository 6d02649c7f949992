"""`automagik agents`: the agents that a server has."""

from typing import Annotated, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Url, Yes, confirm, connect, given, read_object
from automagik.cli.output import note, print_fields, print_json, print_table, tell_done
from automagik.types import JsonObject

__all__ = ["app"]

app = typer.Typer(help="See, create, change and delete agents.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.", show_default=False)]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="JSON/@FILE", help="The agent's config as a JSON object, or @FILE that holds one."
    ),
]
Description = Annotated[str | None, typer.Option("--description", help="What the agent is for.")]
Instructions = Annotated[str | None, typer.Option("--instructions", help="The system prompt, with {{name}} places.")]
Model = Annotated[str | None, typer.Option("--model", help="`provider:model`.")]
Tools = Annotated[list[str] | None, typer.Option("--tool", help="A tool's name; may be repeated.")]

_COLUMNS = (
    ("NAME", "name"),
    ("SOURCE", "source"),
    ("ACTIVE", "active"),
    ("DESCRIPTION", "description"),
    ("ERROR", "error"),
)


@app.command("list")
def list_agents(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at the most, by name.")] = 200,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List the agents, broken ones with their cause."""
    with connect(url) as client:
        found = client.pages("/api/v1/agents", limit=limit)
        if as_json:
            for agent in found:
                print_json(agent)
        else:
            print_table(found, _COLUMNS, whole={"error"})


@app.command()
def show(name: Name, as_json: AsJson = False, url: Url = None) -> None:
    """Show one agent with its config."""
    with connect(url) as client:
        agent = client.get(f"/api/v1/agents/{quote(name, safe='')}")
    (print_json if as_json else print_fields)(agent)


@app.command()
def create(
    name: Name,
    config: Config = None,
    description: Description = None,
    instructions: Instructions = None,
    model: Model = None,
    tool: Tools = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create an agent that the server keeps. Options add to the config or replace its fields."""
    given_config = read_object(config, "--config") if config is not None else {}
    given_config |= given(description=description, instructions=instructions, model=model, tools=tool)
    with connect(url) as client:
        agent = client.post("/api/v1/agents", {"name": name, "config": given_config})
    if as_json:
        print_json(agent)
    else:
        note(f"Created the agent '{name}'. Ask it: automagik run {name} \"...\"")


@app.command()
def update(
    name: Name,
    config: Config = None,
    description: Description = None,
    instructions: Instructions = None,
    model: Model = None,
    tool: Tools = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change an agent: --config replaces its whole config, the other options single fields of it.

    Somebody else's change in between is refused, not overwritten.
    """
    fields = given(description=description, instructions=instructions, model=model, tools=tool)
    if config is None and not fields:
        raise CliError(
            "Nothing to change was given.",
            exit_code=ExitCode.USAGE,
            hint="Add --config, --description, --instructions, --model or --tool.",
        )
    with connect(url) as client:
        path = f"/api/v1/agents/{quote(name, safe='')}"
        current, etag = client.get_with_etag(path)
        changed = read_object(config, "--config") if config is not None else dict(cast("JsonObject", current["config"]))
        changed |= fields
        agent = client.patch(path, {"config": changed}, headers={"if-match": etag} if etag else None)
    if as_json:
        print_json(agent)
    else:
        note(f"Changed the agent '{name}'.")


@app.command()
def delete(name: Name, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete an agent that the server keeps, with its prompts."""
    confirm(f"Delete the agent '{name}' with its prompts?", yes=yes)
    with connect(url) as client:
        client.delete(f"/api/v1/agents/{quote(name, safe='')}")
    tell_done(f"Deleted the agent '{name}'.", {"deleted": name}, as_json=as_json)
