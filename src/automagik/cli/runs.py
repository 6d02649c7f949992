"""`automagik runs`: what agents did and are doing."""

import json
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, connect, session_id
from automagik.cli.output import note, print_fields, print_json, print_table, print_text, tell_done
from automagik.cli.working_copy import fetch_bundle
from automagik.types import JsonObject

__all__ = ["app"]

app = typer.Typer(help="See, steer, cancel and requeue runs, and take what workflows made.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)]

_COLUMNS = (
    ("RUN", "run_id"),
    ("NAME", "name"),
    ("STATUS", "status"),
    ("OUTCOME", "outcome"),
    ("SESSION", "session_id"),
    ("CREATED", "created_at"),
)


@app.command("list")
def list_runs(
    limit: Limit = 50,
    status: Annotated[str | None, typer.Option("--status", help="queued, running, completed, ...")] = None,
    outcome: Annotated[str | None, typer.Option("--outcome", help="completed, model_error, ...")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only those of this agent.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="UUID/NAME", help="Only those in this session.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="UUID", help="Only this user's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List runs, newest first."""
    with connect(url) as client:
        of = session_id(client, session)
        found = client.pages(
            "/api/v1/runs", limit=limit, status=status, outcome=outcome, name=name, session_id=of, user_id=user
        )
        if as_json:
            for run in found:
                print_json(run)
        else:
            print_table(found, _COLUMNS, optional=("session_id", "outcome"))


@app.command()
def show(run: RunId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one run, with what went in and what came out."""
    with connect(url) as client:
        document = client.get(f"/api/v1/runs/{quote(run, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command()
def events(
    run: RunId,
    after: Annotated[int, typer.Option("--after", min=0, help="Go on after this number.")] = 0,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show a run's events, those that come too, until it has ended."""
    with connect(url) as client:
        for event in client.events(run, after=after):
            if as_json:
                print_json(event.to_json())
            else:
                print_text(
                    f"{event.seq if event.seq is not None else '-':>4}  {event.at}  {event.type}  {_brief(event.data)}"
                )


@app.command()
def cancel(run: RunId, as_json: AsJson = False, url: Url = None) -> None:
    """Stop a run. One that has ended stays as it ended."""
    with connect(url) as client:
        document = client.post(f"/api/v1/runs/{quote(run, safe='')}/cancel")
    if as_json:
        print_json(document)
    else:
        note(f"{document['run_id']} is {document['status']}.")


@app.command()
def requeue(run: RunId, as_json: AsJson = False, url: Url = None) -> None:
    """Do a run that has ended again, as a new background run: a dead letter (`runs list --outcome retries_exhausted`) above all."""
    with connect(url) as client:
        document = client.post(f"/api/v1/runs/{quote(run, safe='')}/requeue")
    if as_json:
        print_json(document)
    else:
        run_id = document["run_id"]
        note(f"{run_id} is {document['status']}. Follow it: automagik runs events {run_id}")


@app.command()
def message(
    run: RunId, text: Annotated[str, typer.Argument(metavar="TEXT")], as_json: AsJson = False, url: Url = None
) -> None:
    """Say something to a running workflow; it reads it with the next result of a tool, or as its next turn."""
    with connect(url) as client:
        document = client.post(f"/api/v1/runs/{quote(run, safe='')}/messages", {"message_content": text})
    if as_json:
        print_json(document)
    else:
        note(f"{document['run_id']} is told.")


@app.command()
def interrupt(run: RunId, as_json: AsJson = False, url: Url = None) -> None:
    """Stop the turn under way of a running workflow. If no message follows, the run ends."""
    with connect(url) as client:
        document = client.post(f"/api/v1/runs/{quote(run, safe='')}/interrupt")
    if as_json:
        print_json(document)
    else:
        note(f"{document['run_id']} is interrupted.")


@app.command()
def diff(
    run: RunId,
    wip: Annotated[bool, typer.Option("--wip", help="With what it had not committed.")] = False,
    url: Url = None,
) -> None:
    """Show what a workflow's run changed."""
    path = f"/api/v1/runs/{quote(run, safe='')}/diff" + ("?wip=true" if wip else "")
    with connect(url) as client, client.download(path) as (_, chunks):
        print_text(b"".join(chunks).decode(errors="replace"), end="")


@app.command()
def apply(
    run: RunId,
    repo: Annotated[str, typer.Option("--repo", metavar="FOLDER", help="Your repository.")] = ".",
    branch: Annotated[str | None, typer.Option("--branch", help="The branch that is made; else the run's own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where the branch is there already.")] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Fetch a run's commits into your repository, as a branch: nothing else in it changes."""
    path = f"/api/v1/runs/{quote(run, safe='')}"
    with connect(url) as client, tempfile.TemporaryDirectory() as folder:
        document = client.get(path)
        workspace = document.get("workspace")
        if not isinstance(workspace, dict):
            raise CliError(
                "The run has no workspace.", exit_code=ExitCode.FAILED, hint="Only runs of workflows have one."
            )
        own = str(workspace["branch"])
        name = branch or own
        ended = document.get("status") not in {"queued", "running"}
        head = str(workspace["head_commit"]) if ended and workspace.get("head_commit") else None
        bundle = Path(folder) / "run.bundle"
        with client.download(f"{path}/bundle") as (_, chunks), bundle.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        commit = fetch_bundle(repo, bundle, name, made_on=own, head=head, force=force)
    tell_done(
        f"The branch '{name}' is at {commit[:12]}. Look at it: git log {name}",
        {"branch": name, "commit": commit},
        as_json=as_json,
    )


def _brief(data: JsonObject) -> str:
    run = data.get("run")
    if isinstance(run, dict):
        return f"{run.get('status')} ({run.get('outcome')})"
    told = {name: value for name, value in data.items() if value not in (None, {}, [])}
    text = "  ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in told.items()
    )
    text = text.replace("\n", " ")
    return text if len(text) <= 200 else f"{text[:199]}…"
