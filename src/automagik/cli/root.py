"""The command `automagik`: its nouns and verbs, and how it ends."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from automagik.cli import (
    agents,
    answers,
    artifacts,
    audit,
    budgets,
    database,
    doctor,
    image,
    keys,
    memories,
    prompts,
    runs,
    schedules,
    secrets,
    serving,
    sessions,
    usage,
    users,
    webhooks,
    workflows,
)
from automagik.cli.failure import CliError, failure_of_error
from automagik.cli.output import note
from automagik.errors import AutomagikError

__all__ = ["app", "main"]

app = typer.Typer(
    name="automagik",
    help="Run AI agents, and see what they did. It speaks to a server (AUTOMAGIK_URL, AUTOMAGIK_KEY), or to the data folder "
    "where none is needed. Exit codes: 0 done; 1 the work failed; 2 wrong usage; 3 not reachable; 4 not allowed; "
    "5 not found; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serving.serve)
app.command("worker")(serving.worker)
app.command("run")(answers.run)
app.command("chat")(answers.chat)
app.command("doctor")(doctor.doctor)
app.command("usage")(usage.usage)
app.command("version")(serving.version)
app.add_typer(agents.app, name="agents")
app.add_typer(sessions.app, name="sessions")
app.add_typer(memories.app, name="memories")
app.add_typer(prompts.app, name="prompts")
app.add_typer(users.app, name="users")
app.add_typer(runs.app, name="runs")
app.add_typer(workflows.app, name="workflows")
app.add_typer(schedules.app, name="schedules")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(secrets.app, name="secrets")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(image.app, name="image")
app.add_typer(budgets.app, name="budgets")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(database.app, name="db")


def _tell_version(wanted: bool) -> None:
    if wanted:
        serving.version()
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """What stands before the command's name."""


def main() -> None:
    """Carry out the command of this process, and end the process with the exit code that tells how it went."""
    _leave_out_what_is_not_asked_for(sys.argv[1:2])
    try:
        app(prog_name="automagik")
    except CliError as failure:
        sys.exit(_report(failure))
    except AutomagikError as error:
        sys.exit(_report(failure_of_error(error)))


def _leave_out_what_is_not_asked_for(words: Sequence[str]) -> None:
    """Keep of the nouns and verbs the one that the first word names: to build them all takes longer than most requests.

    A word that names none leaves them all, for the help and for the guess at what was meant.
    """
    groups = [group for group in app.registered_groups if group.name in words]
    commands = [command for command in app.registered_commands if command.name in words]
    if groups or commands:
        app.registered_groups, app.registered_commands = groups, commands


def _report(failure: CliError) -> int:
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in options:
        print(json.dumps(failure.to_json(), ensure_ascii=True), file=sys.stderr, flush=True)
    else:
        note(f"error: {failure.detail}")
        if failure.hint:
            note(f"hint: {failure.hint}")
    return int(failure.exit_code)
