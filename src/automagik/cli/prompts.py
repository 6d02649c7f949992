"""`automagik prompts`: the versions of agents' prompt templates."""

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect, given
from automagik.cli.output import note, print_fields, print_json, print_table, tell_done

__all__ = ["app"]

app = typer.Typer(help="See, create, change, activate and delete prompt templates.", no_args_is_help=True)

PromptId = Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt's UUID.", show_default=False)]

_COLUMNS = (
    ("PROMPT", "prompt_id"),
    ("AGENT", "agent_name"),
    ("STATUS KEY", "status_key"),
    ("VERSION", "version"),
    ("ACTIVE", "is_active"),
    ("NAME", "name"),
)


@app.command("list")
def list_prompts(
    limit: Limit = 50,
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    status_key: Annotated[str | None, typer.Option("--status-key", help="Only those of this key.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List prompt templates, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/prompts", limit=limit, agent_name=agent, status_key=status_key)
        if as_json:
            for prompt in found:
                print_json(prompt)
        else:
            print_table(found, _COLUMNS)


@app.command()
def show(prompt: PromptId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one prompt template."""
    with connect(url) as client:
        document = client.get(f"/api/v1/prompts/{quote(prompt, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command()
def create(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.", show_default=False)],
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT/@FILE", help="The template, @FILE, or @- for standard input.", show_default=False),
    ],
    status_key: Annotated[str | None, typer.Option("--status-key", help="For which status; else 'default'.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="A name for people.")] = None,
    activate_it: Annotated[bool, typer.Option("--activate", help="Use it from now on.")] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create the next version of an agent's prompt template."""
    body = given(
        agent_name=agent,
        prompt_text=_text(text),
        status_key=status_key,
        name=name,
        is_active=True if activate_it else None,
    )
    with connect(url) as client:
        prompt = client.post("/api/v1/prompts", body)
    (print_json if as_json else print_fields)(prompt)
    if not as_json and not activate_it:
        note(f"It is not used yet: automagik prompts activate {prompt['prompt_id']}")


@app.command()
def activate(prompt: PromptId, as_json: AsJson = False, url: Url = None) -> None:
    """Use this version from now on."""
    with connect(url) as client:
        document = client.post(f"/api/v1/prompts/{quote(prompt, safe='')}/activate")
    if as_json:
        print_json(document)
    else:
        note(f"Version {document['version']} of '{document['agent_name']}' ({document['status_key']}) is active.")


@app.command()
def deactivate(prompt: PromptId, as_json: AsJson = False, url: Url = None) -> None:
    """Use this version no more: the agent uses the prompt from its code until another one is activated."""
    with connect(url) as client:
        document = client.post(f"/api/v1/prompts/{quote(prompt, safe='')}/deactivate")
    if as_json:
        print_json(document)
    else:
        note(f"Version {document['version']} of '{document['agent_name']}' ({document['status_key']}) is not active.")


@app.command()
def update(
    prompt: PromptId,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT/@FILE", help="The new template, @FILE, or @- for standard input.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="A name for people.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change the text or the name of a version that was not defined in code.

    Somebody else's change in between is refused, not overwritten.
    """
    body = given(prompt_text=_text(text) if text is not None else None, name=name)
    if not body:
        raise CliError("Nothing to change was given.", exit_code=ExitCode.USAGE, hint="Add a template or --name.")
    with connect(url) as client:
        path = f"/api/v1/prompts/{quote(prompt, safe='')}"
        _, etag = client.get_with_etag(path)
        document = client.patch(path, body, headers={"if-match": etag} if etag else None)
    (print_json if as_json else print_fields)(document)


@app.command()
def delete(prompt: PromptId, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a version that is not active."""
    confirm(f"Delete the prompt {prompt}?", yes=yes)
    with connect(url) as client:
        client.delete(f"/api/v1/prompts/{quote(prompt, safe='')}")
    tell_done(f"Deleted the prompt {prompt}.", {"deleted": prompt}, as_json=as_json)


def _text(text: str) -> str:
    if text == "@-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"The template can't be read: {error}", exit_code=ExitCode.USAGE) from error
