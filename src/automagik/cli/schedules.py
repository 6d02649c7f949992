"""`automagik schedules`: what agents are asked again and again."""

from typing import Annotated, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect, given, is_uuid, read_object
from automagik.cli.output import note, print_fields, print_json, print_table, tell_done, to_the_second
from automagik.types import Json, JsonObject

__all__ = ["app"]

app = typer.Typer(help="Ask agents again and again, by cron expressions.", no_args_is_help=True)

Schedule = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The schedule's name or id.", show_default=False)]
Cron = Annotated[
    str | None,
    typer.Option("--cron", help="'minute hour day month weekday', six fields with seconds before them, or @daily, ..."),
]
TimeZone = Annotated[str | None, typer.Option("--time-zone", help="As Europe/Berlin; else UTC.")]
Agent = Annotated[str | None, typer.Option("--agent", help="The agent's name.")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="What the agent is asked.")]
Session = Annotated[
    str | None,
    typer.Option("--session", metavar="UUID/NAME", help="Go on in this session each time; a name may be new."),
]
Asked = Annotated[
    str | None,
    typer.Option(
        "--request", metavar="JSON/@FILE", help="The whole body of the run; --message and --session add to it."
    ),
]
Missed = Annotated[
    str | None,
    typer.Option("--missed", metavar="skip/once/all", help="What becomes of times at which no server ran; else skip."),
]

_COLUMNS = (
    ("NAME", "name"),
    ("AGENT", "agent_name"),
    ("CRON", "cron"),
    ("TIME ZONE", "time_zone"),
    ("ACTIVE", "active"),
    ("NEXT", "next_at"),
    ("LAST RUN", "last_run_id"),
    ("LAST ERROR", "last_error"),
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)],
    agent: Annotated[str, typer.Option("--agent", help="The agent's name.", show_default=False)],
    cron: Annotated[
        str,
        typer.Option(
            "--cron",
            help="'minute hour day month weekday', six fields with seconds before them, or @daily, ...",
            show_default=False,
        ),
    ],
    time_zone: TimeZone = None,
    message: Message = None,
    session: Session = None,
    request: Asked = None,
    missed: Missed = None,
    paused: Annotated[bool, typer.Option("--paused", help="Don't fire until `schedules resume`.")] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create a schedule, which fires in the name of your key."""
    asked = _request(request, {}, message, session)
    if "message_content" not in asked:
        raise CliError("What is the agent asked?", exit_code=ExitCode.USAGE, hint="Add --message or --request.")
    body = given(
        name=name,
        agent_name=agent,
        cron=cron,
        time_zone=time_zone,
        request=asked,
        missed=missed,
        active=False if paused else None,
    )
    with connect(url) as client:
        made = client.post("/api/v1/schedules", body)
    if as_json:
        print_json(made)
    else:
        note(f"Created the schedule '{name}'. {_when(made)}")


@app.command("list")
def list_schedules(
    limit: Limit = 50,
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List schedules, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/schedules", limit=limit, agent_name=agent)
        if as_json:
            for schedule in found:
                print_json(schedule)
        else:
            print_table(found, _COLUMNS, optional=("last_run_id", "time_zone"), whole={"last_error"})


@app.command()
def show(schedule: Schedule, as_json: AsJson = False, url: Url = None) -> None:
    """Show one schedule: what it asks, when it fires next, and why it did not if it did not."""
    with connect(url) as client:
        document = client.get(_path(schedule))
    (print_json if as_json else print_fields)(document)


@app.command("next")
def next_times(
    schedule: Schedule,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="How many times.")] = 5,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show when a schedule fires next, in its local time and in UTC."""
    with connect(url) as client:
        times = cast("list[JsonObject]", client.get(f"{_path(schedule)}/next", count=count)["data"])
    if as_json:
        for moment in times:
            print_json(moment)
    else:
        print_table(times, (("LOCAL TIME", "local_time"), ("UTC", "next_at")))


@app.command()
def update(
    schedule: Schedule,
    agent: Agent = None,
    cron: Cron = None,
    time_zone: TimeZone = None,
    message: Message = None,
    session: Session = None,
    request: Asked = None,
    missed: Missed = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change a schedule, which from then on fires in the name of your key. --request replaces its whole request.

    Somebody else's change in between is refused, not overwritten.
    """
    body = given(agent_name=agent, cron=cron, time_zone=time_zone, missed=missed)
    asks = message is not None or session is not None or request is not None
    if not body and not asks:
        raise CliError(
            "Nothing to change was given.",
            exit_code=ExitCode.USAGE,
            hint="Add --agent, --cron, --time-zone, --message, --session, --request or --missed.",
        )
    with connect(url) as client:
        current, etag = client.get_with_etag(_path(schedule))
        if asks:
            body["request"] = _request(request, cast("JsonObject", current["request"]), message, session)
        changed = client.patch(_path(schedule), body, headers={"if-match": etag} if etag else None)
    _tell(changed, as_json=as_json)


@app.command()
def pause(schedule: Schedule, as_json: AsJson = False, url: Url = None) -> None:
    """Fire no more until `resume`. Times that pass meanwhile are not missed."""
    with connect(url) as client:
        changed = client.patch(_path(schedule), {"active": False})
    _tell(changed, as_json=as_json)


@app.command()
def resume(schedule: Schedule, as_json: AsJson = False, url: Url = None) -> None:
    """Fire again from the next time on, in the name of your key."""
    with connect(url) as client:
        changed = client.patch(_path(schedule), {"active": True})
    _tell(changed, as_json=as_json)


@app.command()
def fire(schedule: Schedule, as_json: AsJson = False, url: Url = None) -> None:
    """Fire now, out of turn, in the name of your key. It does not wait for the run's end."""
    with connect(url) as client:
        run = client.post(f"{_path(schedule)}/fire")
    if as_json:
        print_json(run)
    else:
        note(f"{run['run_id']} is {run['status']}. Follow it: automagik runs events {run['run_id']}")


@app.command()
def delete(schedule: Schedule, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a schedule; its runs stay."""
    confirm(f"Delete the schedule '{schedule}'?", yes=yes)
    with connect(url) as client:
        client.delete(_path(schedule))
    tell_done(f"Deleted the schedule '{schedule}'.", {"deleted": schedule}, as_json=as_json)


def _path(schedule: str) -> str:
    return f"/api/v1/schedules/{quote(schedule, safe='')}"


def _request(request: str | None, before: JsonObject, message: str | None, session: str | None) -> JsonObject:
    """The body of the run: what --request gives, else what there was, with the message and the session that are given."""
    asked: dict[str, Json] = dict(read_object(request, "--request") if request is not None else before)
    if session is not None:
        asked.pop("session_id", None)
        asked.pop("session_name", None)
        asked["session_id" if is_uuid(session) else "session_name"] = session
    return asked | given(message_content=message)


def _tell(schedule: JsonObject, *, as_json: bool) -> None:
    if as_json:
        print_json(schedule)
    else:
        note(f"Changed the schedule '{schedule['name']}'. {_when(schedule)}")


def _when(schedule: JsonObject) -> str:
    next_at = schedule.get("next_at")
    if next_at is not None:
        return f"It fires next at {to_the_second(str(next_at))}."
    return f"It is paused: automagik schedules resume {schedule['name']}"
