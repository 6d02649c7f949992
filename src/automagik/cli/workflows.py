"""`automagik workflows`: what workflows there are, and your own."""

from pathlib import Path
from typing import Annotated, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect, given
from automagik.cli.output import note, print_fields, print_json, print_table, print_text, tell_done, warn
from automagik.cli.workflow_runs import run_workflow
from automagik.types import JsonObject

__all__ = ["app"]

app = typer.Typer(help="Run workflows; see, check, create, change and delete them.", no_args_is_help=True)
app.command("run")(run_workflow)

Workflow = Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's name.", show_default=False)]
Folder = Annotated[
    Path | None,
    typer.Argument(metavar="FOLDER", help="The folder with its files.", show_default=False, file_okay=False),
]

_COLUMNS = (
    ("WORKFLOW", "name"),
    ("SOURCE", "source"),
    ("ACTIVE", "active"),
    ("DESCRIPTION", "description"),
    ("ERROR", "error"),
)
_MAX_FILE_BYTES = 1_000_000


@app.command("list")
def list_workflows(limit: Limit = 100, as_json: AsJson = False, url: Url = None) -> None:
    """List workflows by name: the platform's own, those of the server's folder, those made through the API."""
    with connect(url) as client:
        found = client.pages("/api/v1/workflows", limit=limit)
        if as_json:
            for workflow in found:
                print_json(workflow)
        else:
            print_table(found, _COLUMNS, optional=("source",), whole={"error"})


@app.command()
def show(
    workflow: Workflow,
    file: Annotated[
        str | None, typer.Option("--file", metavar="NAME", help="Print this file of it only, as it is: prompt.md, ...")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show one workflow: its limits, tools and prompt, and why it is broken if it is."""
    with connect(url) as client:
        document = client.get(_path(workflow))
    if file is not None:
        print_text(_file(document, workflow, file), end="")
    elif as_json:
        print_json(document)
    else:
        print_fields(_told(document))


@app.command()
def validate(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder with its files.", show_default=False, file_okay=False)
    ],
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Check the workflow in a folder, without storing it."""
    with connect(url) as client:
        checked = client.post("/api/v1/workflows/validate", {"name": folder.resolve().name, "files": _files(folder)})
    if as_json:
        print_json(checked)
        return
    for text in cast("list[str]", checked["warnings"]):
        warn(text)
    note(f"The workflow '{checked['name']}' can be used.")


@app.command()
def create(
    workflow: Workflow,
    folder: Folder = None,
    copied: Annotated[
        str | None, typer.Option("--from", metavar="WORKFLOW", help="Begin with a copy of this one.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create a workflow from the files in a folder, or as a copy of another one."""
    if (folder is None) == (copied is None):
        raise CliError("Give a folder, or --from WORKFLOW.", exit_code=ExitCode.USAGE)
    with connect(url) as client:
        files = _files(folder) if folder is not None else _files_of(client.get(_path(copied or "")), copied or "")
        made = client.post("/api/v1/workflows", {"name": workflow, "files": files})
    if as_json:
        print_json(made)
    else:
        note(f"Created the workflow '{workflow}'.")


@app.command()
def update(
    workflow: Workflow,
    folder: Folder = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether it can be run.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change a workflow that was made through the API: the folder's files take the place of all the old ones.

    Somebody else's change in between is refused, not overwritten.
    """
    body = given(files=_files(folder) if folder is not None else None, active=active)
    if not body:
        raise CliError(
            "Nothing to change was given.", exit_code=ExitCode.USAGE, hint="Add a folder, --active or --inactive."
        )
    with connect(url) as client:
        _, etag = client.get_with_etag(_path(workflow))
        changed = client.patch(_path(workflow), body, headers={"if-match": etag} if etag else None)
    if as_json:
        print_json(changed)
    else:
        note(f"Changed the workflow '{workflow}'.")


@app.command()
def delete(workflow: Workflow, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a workflow that was made through the API; its runs stay."""
    confirm(f"Delete the workflow '{workflow}'?", yes=yes)
    with connect(url) as client:
        client.delete(_path(workflow))
    tell_done(f"Deleted the workflow '{workflow}'.", {"deleted": workflow}, as_json=as_json)


def _told(document: JsonObject) -> JsonObject:
    """What people want to know of a workflow: no empty fields, a tool a line, of the report its names."""
    files = cast("JsonObject", document.pop("files") or {})
    definition = cast("JsonObject", document.pop("definition") or {})
    schema = definition.pop("report_schema", None)
    if isinstance(schema, dict):
        definition["report"] = " ".join(cast("JsonObject", schema.get("properties") or {}))
    for name in ("allowed_tools", "disallowed_tools"):
        definition[name] = "\n".join(cast("list[str]", definition.get(name) or []))
    servers = cast("JsonObject", definition.get("servers") or {}).get("mcpServers")
    definition["servers"] = " ".join(servers) if isinstance(servers, dict) else None
    told = {**document, **definition, "prompt": files.get("prompt.md")}
    return {name: value for name, value in told.items() if value not in (None, "", [], {})}


def _path(workflow: str) -> str:
    return f"/api/v1/workflows/{quote(workflow, safe='')}"


def _files(folder: Path) -> JsonObject:
    """The files of a folder, by name. Hidden ones but `.mcp.json`, and a README, are none of the workflow's.

    Raises: CliError for what can't be read, and for a link out of the folder: it could send a key of the user's to the server.
    """
    if not folder.is_dir():
        raise CliError(f"There is no folder '{folder}'.", exit_code=ExitCode.USAGE)
    files: JsonObject = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or (path.name != ".mcp.json" and path.name.startswith((".", "README"))):
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CliError(
                f"'{path}' is a link that leads out of its folder.",
                exit_code=ExitCode.USAGE,
                hint="Copy the file there, if it is meant to be sent.",
            )
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise CliError(f"'{path}' is over {_MAX_FILE_BYTES} bytes.", exit_code=ExitCode.USAGE)
            files[path.name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"'{path}' can't be read: {error}", exit_code=ExitCode.USAGE) from error
    return files


def _files_of(document: JsonObject, workflow: str) -> JsonObject:
    files = document.get("files")
    if not isinstance(files, dict):
        raise CliError(
            f"This key may not see the files of '{workflow}'.",
            exit_code=ExitCode.NOT_ALLOWED,
            hint="Use a key with 'workflows:read'.",
        )
    return files


def _file(document: JsonObject, workflow: str, name: str) -> str:
    text = _files_of(document, workflow).get(name)
    if not isinstance(text, str):
        raise CliError(f"The workflow '{workflow}' has no file '{name}'.", exit_code=ExitCode.NOT_FOUND)
    return text
