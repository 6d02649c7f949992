"""`automagik workflows run`: give a workflow a task, and look on while it works."""

import hashlib
import os
import re
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Url, check_dollars, connect, given
from automagik.cli.output import fitted, note, note_width, print_json, print_text, printable, warn
from automagik.cli.working_copy import bundled, is_address, repository_name, uncommitted
from automagik.types import Json, JsonObject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from automagik.cli.client import ApiClient, StreamEvent

__all__ = ["follow_workflow", "run_workflow"]

_WIDTH = 160
"""Most signs of one remark where the terminal has no width of its own."""

_BUNDLE_TYPE = "application/x-git-bundle"
_LARGE_BYTES = 20_000_000
"""From what size on it is worth to ask first whether the server has a bundle."""

_MARKS = "→✗●«!… "
"""What the lines begin with that tell what was done, and not what a model says."""

_RUN_ID = re.compile(r"run_[0-9a-z]{26}")


def run_workflow(
    workflow: Annotated[
        str, typer.Argument(metavar="WORKFLOW", help="Its name: `automagik workflows list`.", show_default=False)
    ],
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="What it is to do; '-' reads standard input.", show_default=False),
    ],
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo",
            metavar="FOLDER/URL",
            help="The repository: what is committed in a folder here, or a place the server may clone.",
        ),
    ] = None,
    ref: Annotated[str | None, typer.Option("--ref", help="The branch, tag or commit to begin at; else HEAD.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with this run's conversation and commits.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Look on until it has ended.")] = True,
    demo: Annotated[
        bool, typer.Option("--demo", help="Let the labelled scripted model work: no account, no cost.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", help="A model that the workflow allows.")] = None,
    max_turns: Annotated[
        int | None, typer.Option("--max-turns", min=1, help="How many turns the model may take.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="How much it may spend.")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="How long it may take.")] = None,
    executor: Annotated[str | None, typer.Option("--executor", help="local or docker.")] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Push the branch and open a pull request afterwards (workflow pr).")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Give a workflow a task on a repository. Ctrl-C leaves it at work; `automagik runs cancel` stops it."""
    if (repo is None) == (resume is None):
        raise CliError("Name the repository with --repo, or a run to go on with by --resume.", exit_code=ExitCode.USAGE)
    check_dollars("--budget", budget)
    if executor not in {None, "local", "docker", "auto"}:
        raise CliError(f"--executor: there is no '{executor}'.", exit_code=ExitCode.USAGE, hint="local or docker.")
    if resume is not None and not _RUN_ID.fullmatch(resume):
        raise CliError(
            f"There is no run '{resume}'.", exit_code=ExitCode.NOT_FOUND, hint="`automagik runs list` lists the runs."
        )
    with connect(url) as client:
        body: dict[str, Json] = {"message_content": sys.stdin.read() if task == "-" else task}
        if repo is not None:
            body["repository"] = _repository(client, repo, ref)
        body |= given(
            resume_of=resume,
            demo=demo or None,
            model=model,
            max_turns=max_turns,
            budget_usd=budget,
            timeout_seconds=timeout,
            executor=executor,
            publish=publish or None,
        )
        document = client.post(f"/api/v1/workflows/{quote(workflow, safe='')}/run", body)
        run_id = str(document["run_id"])
        if not follow:
            if as_json:
                print_json(document)
            else:
                note(f"The run waits in the queue. Follow it: automagik runs events {run_id}")
                print_text(run_id)
            return
        if not as_json:
            note(f"{run_id}: {workflow}{' (demo: a scripted model, no language model)' if demo else ''}")
        try:
            ended = follow_workflow(client.events(run_id), as_json=as_json)
        except KeyboardInterrupt:
            note(
                f"\nThe run goes on.\nFollow it: automagik runs events {run_id}\nStop it:   automagik runs cancel {run_id}"
            )
            raise
    _end(ended, as_json=as_json)


def follow_workflow(events: "Iterator[StreamEvent]", *, as_json: bool) -> JsonObject:
    """The run as it ended; what it does is shown as it comes, or with `as_json` a line an event."""
    view = _View()
    for event in events:
        if as_json:
            print_json(event.to_json())
        else:
            view.show(event)
        if event.type == "run_finished":
            return cast("JsonObject", event.data["run"])
    raise CliError("The events ended before the run did.", exit_code=ExitCode.UNREACHABLE)


class _View:
    """A live view on standard error: what the model says, does and commits, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def show(self, event: "StreamEvent") -> None:
        line = self._line(event)
        if not line:
            return
        shown = printable(f"{time.monotonic() - self._began:7.1f}s  {line}").replace("\n", " ")
        width = note_width()  # each time: a window may change
        note(shown if width is None else fitted(shown, width))

    def _line(self, event: "StreamEvent") -> str | None:
        data = event.data
        match event.type:
            case "run_queued":
                return "waits in the queue" if data.get("reason") is None else f"waits again: {data.get('reason')}"
            case "run_started":
                return "prepares its workspace"
            case "progress":
                return f"… {_brief(data.get('detail'))}"
            case "message_completed":
                return _brief(data.get("text")).lstrip(_MARKS)  # what the model says looks like nothing that was done
            case "tool_call":
                return f"→ {data.get('tool_name')} {_brief(_what(data.get('args')))}"
            case "tool_result":
                return f"  ✗ {_brief(data.get('content'))}" if data.get("is_error") else None
            case "commit":
                return f"● commit {str(data.get('commit'))[:12]} {_brief(data.get('subject'))}"
            case "guidance":
                return f"« {_brief(data.get('text')) or 'interrupt'}"
            case "warning" | "budget_warning":
                return f"! {_brief(data.get('detail'))}"
            case _:
                return None


def _what(args: Json) -> Json:
    """The part of a tool's arguments that says most."""
    if isinstance(args, dict):
        for name in ("command", "file_path", "path", "pattern", "url", "description"):
            if isinstance(args.get(name), str):
                return args[name]
    return args


def _count(number: Json, noun: str) -> str:
    return f"{number if number is not None else '?'} {noun}{'' if number == 1 else 's'}"


def _brief(value: Json) -> str:
    text = " ".join(str(value if value is not None else "").split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _repository(client: "ApiClient", repo: str, ref: str | None) -> JsonObject:
    if is_address(repo):
        return {"place": repo, **given(ref=ref)}
    name = repository_name(repo)
    if ref is None and (left := uncommitted(repo)):
        warn(f"{_count(left, 'file')} of your work tree {'is' if left == 1 else 'are'} not committed, and not sent.")
    with bundled(repo, ref) as bundle:
        size = os.path.getsize(bundle)
        if size > _LARGE_BYTES:
            if (sent := _sent_before(client, bundle)) is not None:
                note(f"The server has these {size / 1_000_000:.0f} MB from an earlier run.")
                return {"bundle": sent, "name": name}
            note(f"Sending {size / 1_000_000:.0f} MB ...")
        stored = client.upload("/api/v1/repositories", bundle, media_type=_BUNDLE_TYPE)
    return {"bundle": stored["bundle"], "name": name}


def _sent_before(client: "ApiClient", bundle: "Path") -> str | None:
    """The digest of a bundle that a run has which this key may see; None: it is to be sent."""
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Where it can't be known, the upload says why.
    with suppress(CliError), client.download(f"/api/v1/artifacts/{digest}") as (media_type, _):
        return digest if media_type == _BUNDLE_TYPE else None
    return None


def _end(run: JsonObject, *, as_json: bool) -> None:
    """What the run made, for people. Raises: Exit with 1 for a run that did not end well."""
    if not as_json:
        _summarise(run)
    if run.get("status") != "completed":
        raise typer.Exit(int(ExitCode.FAILED))


def _summarise(run: JsonObject) -> None:
    output = run.get("output")
    if isinstance(output, dict) and output.get("message"):
        print_text(str(output["message"]))
    workspace = run.get("workspace")
    usage = cast("JsonObject", run.get("usage") or {})
    if isinstance(workspace, dict):
        commits = cast("list[JsonObject]", workspace.get("commits") or [])
        note(
            f"{_count(len(commits), 'commit')} on {workspace.get('branch')}, "
            f"{_count(workspace.get('files_changed'), 'file')} changed "
            f"(+{workspace.get('insertions')} -{workspace.get('deletions')})"
        )
    cost = usage.get("cost_usd")
    spent = f"${cost}" if cost is not None else "no call" if usage.get("requests") == 0 else "cost unknown"
    calls = f"{_count(usage['tool_calls'], 'tool call')}, " if usage.get("tool_calls") else ""
    note(f"{_count(run.get('turns') or 0, 'turn')}, {calls}{spent}, {run.get('status')} ({run.get('outcome')})")
    error = run.get("error")
    if isinstance(error, dict):
        note(f"error: {error.get('detail')}")
        if error.get("hint"):
            note(f"hint: {error.get('hint')}")
    if isinstance(workspace, dict) and (workspace.get("commits") or workspace.get("wip_commit")):
        run_id = run.get("run_id")
        note(f"See it:  automagik runs diff {run_id}")
        note(f"Take it: automagik runs apply {run_id} --repo .")
