"""`automagik budgets`: limits of money."""

from typing import Annotated
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, check_dollars, confirm, connect, given
from automagik.cli.output import note, print_fields, print_json, print_table, tell_done
from automagik.types import JsonObject

__all__ = ["app"]

app = typer.Typer(help="Limit what models may cost, and see what is spent.", no_args_is_help=True)

BudgetId = Annotated[str, typer.Argument(metavar="BUDGET", help="The budget's id.", show_default=False)]

_COLUMNS = (
    ("BUDGET", "budget_id"),
    ("SCOPE", "scope"),
    ("WHOM", "scope_id"),
    ("PERIOD", "period"),
    ("LIMIT USD", "limit_usd"),
    ("SPENT", "spent_usd"),
    ("RESERVED", "reserved_usd"),
    ("WARNS AT", "soft_limit_usd"),
)


@app.command("set")
def set_budget(
    scope: Annotated[
        str,
        typer.Argument(
            metavar="SCOPE", help="organisation, key, user, agent (workflows too), epic or run.", show_default=False
        ),
    ],
    whom: Annotated[
        str | None,
        typer.Argument(metavar="WHOM", help="The id, or the agent's or workflow's name; none for the organisation."),
    ] = None,
    limit: Annotated[str | None, typer.Option("--limit", metavar="USD", help="US dollars, as 25 or 0.50.")] = None,
    period: Annotated[str, typer.Option("--period", metavar="day/month/total", help="How long it counts.")] = "month",
    warn_at: Annotated[
        str | None, typer.Option("--warn-at", metavar="USD", help="Tell the run that spends so much, once a period.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make a budget, or change the one of that scope and period. What runs used before in the period counts as spent."""
    if limit is None:
        raise CliError("How much is the limit?", exit_code=ExitCode.USAGE, hint="Add --limit USD, as --limit 25.")
    for option, amount in (("--limit", limit), ("--warn-at", warn_at)):
        check_dollars(option, amount)
    if scope == "workflow":
        raise CliError(
            "A workflow's budget has the scope 'agent'.",
            exit_code=ExitCode.USAGE,
            hint=f"automagik budgets set agent {whom or 'WORKFLOW'} --limit {limit}",
        )
    body = given(scope=scope, scope_id=whom, period=period, limit_usd=limit, soft_limit_usd=warn_at)
    with connect(url) as client:
        budget = client.post("/api/v1/budgets", body)
    if as_json:
        print_json(budget)
    else:
        note(f"{budget['budget_id']} limits {_whom(budget)} to ${budget['limit_usd']} ({budget['period']}).")
        note(f"Spent: ${budget['spent_usd']}.")


@app.command("list")
def list_budgets(
    limit: Limit = 50,
    scope: Annotated[
        str | None, typer.Option("--scope", help="Only this scope; those of runs are listed by --scope run.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List budgets with what is spent and reserved, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/budgets", limit=limit, scope=scope)
        if as_json:
            for budget in found:
                print_json(budget)
        else:
            print_table(found, _COLUMNS, optional=("soft_limit_usd", "reserved_usd"), whole=("scope_id",))


@app.command()
def show(budget: BudgetId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one budget as it stands."""
    with connect(url) as client:
        document = client.get(_path(budget))
    (print_json if as_json else print_fields)(document)


@app.command()
def delete(budget: BudgetId, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a budget: it limits nothing any more."""
    confirm(f"Delete {budget}?", yes=yes)
    with connect(url) as client:
        client.delete(_path(budget))
    tell_done(f"Deleted {budget}.", {"deleted": budget}, as_json=as_json)


def _path(budget: str) -> str:
    return f"/api/v1/budgets/{quote(budget, safe='')}"


def _whom(budget: JsonObject) -> str:
    return "the organisation" if budget["scope_id"] is None else f"the {budget['scope']} '{budget['scope_id']}'"
