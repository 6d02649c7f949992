"""`automagik usage`: tokens and money over time."""

import re
import uuid
from collections.abc import Callable
from datetime import date
from typing import Annotated, cast

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Url, connect
from automagik.cli.output import note, print_json, print_table
from automagik.types import Json, JsonObject

__all__ = ["usage"]

_FIELDS = {"key": "key_id", "user": "user_id"}
_TITLES = {"day": "DAY", "key": "KEY", "user": "USER", "agent": "AGENT", "workflow": "WORKFLOW"}
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_COUNTS = (
    ("RUNS", "runs"),
    ("INPUT TOKENS", "input_tokens"),
    ("OUTPUT TOKENS", "output_tokens"),
    ("COST USD", "cost_usd"),
    ("UNPRICED RUNS", "unpriced_runs"),
    ("TOOL CALLS", "tool_calls"),
)


def usage(
    by: Annotated[
        str, typer.Option("--by", help="day, key, user, agent or workflow; several, separated by commas.")
    ] = "day",
    since: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="As 2026-11-01; else the first of this month.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="DAY", help="The last day, included; else today.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only this workflow.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Only this key, by its id.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="UUID", help="Only this user.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what was used, in tokens and money."""
    for option, day in (("--from", since), ("--to", to)):
        if day is not None and not (_DAY.fullmatch(day) and _is(date.fromisoformat, day)):
            raise CliError(
                f"{option}: '{day}' is no day of the calendar.",
                exit_code=ExitCode.USAGE,
                hint="Days are written as YYYY-MM-DD, in UTC: 2026-11-01.",
            )
    if user is not None and not _is(uuid.UUID, user):
        raise CliError(
            f"--user: '{user}' is no UUID.", exit_code=ExitCode.USAGE, hint="`automagik users list` shows them."
        )
    asked = {
        "group_by": by,
        "from": since,
        "to": to,
        "agent": agent,
        "workflow": workflow,
        "key_id": key,
        "user_id": user,
    }
    with connect(url) as client:
        first = client.get("/api/v1/usage", limit=100, **asked)
        groups = cast("list[JsonObject]", first["data"])
        page = first
        while page["next_cursor"] is not None:
            page = client.get("/api/v1/usage", limit=100, cursor=cast("str", page["next_cursor"]), **asked)
            groups += cast("list[JsonObject]", page["data"])
    if as_json:
        print_json({**first, "data": cast("Json", groups), "next_cursor": None})
        return
    names = cast("list[str]", first["group_by"])
    if "day" not in names:  # who spends most comes first
        groups.sort(key=lambda group: float(cast("str", group["cost_usd"])), reverse=True)
    columns = [*((_TITLES[name], _FIELDS.get(name, name)) for name in names), *_COUNTS]
    print_table(groups, columns, optional=("unpriced_runs", "tool_calls", "output_tokens", "input_tokens"))
    total = cast("JsonObject", first["total"])
    note(f"{first['from']} to {first['to']}: {total['runs']} runs, ${total['cost_usd']}{_unknown(total)}")


def _is(form: Callable[[str], object], text: str) -> bool:
    try:
        form(text)
    except ValueError:
        return False
    return True


def _unknown(total: JsonObject) -> str:
    count = total["unpriced_runs"]
    return f"; of {count} more the cost is not known." if count else "."
