"""`automagik webhooks`: who is told of runs that ended."""

import time
from typing import Annotated, cast
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Limit, Url, Yes, confirm, connect, given
from automagik.cli.output import note, print_fields, print_json, print_table, print_text, tell_done
from automagik.types import JsonObject

__all__ = ["app"]

app = typer.Typer(help="Have an address told of runs that ended, and see what became of it.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id.", show_default=False)]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.", show_default=False)]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", help="run.completed, run.failed or run.cancelled; may be repeated. Else all."),
]
Agents = Annotated[
    list[str] | None, typer.Option("--agent", help="Only runs of this agent; may be repeated. Else of all.")
]
Description = Annotated[str | None, typer.Option("--description", help="What it is for.")]

_COLUMNS = (
    ("WEBHOOK", "webhook_id"),
    ("URL", "url"),
    ("ACTIVE", "active"),
    ("EVENTS", "events"),
    ("AGENTS", "names"),
    ("DESCRIPTION", "description"),
)
_DELIVERIES = (
    ("DELIVERY", "delivery_id"),
    ("EVENT", "event"),
    ("STATUS", "status"),
    ("ATTEMPTS", "attempt_count"),
    ("NEXT", "next_at"),
    ("DELIVERED", "delivered_at"),
)
_TEST_SECONDS = 30.0
_LOOK_SECONDS = 0.2


@app.command()
def create(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The URL that is told.", show_default=False)],
    event: Events = None,
    agent: Agents = None,
    description: Description = None,
    user: Annotated[str | None, typer.Option("--user", metavar="UUID", help="Only this user's runs.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create a webhook. The secret that its deliveries are signed by is shown now and never again."""
    body = given(url=address, events=event, names=agent, description=description, user_id=user)
    with connect(url) as client:
        made = client.post("/api/v1/webhooks", body)
    _show_secret(made, f"Created {made['webhook_id']}.", as_json=as_json)


@app.command("list")
def list_webhooks(limit: Limit = 50, as_json: AsJson = False, url: Url = None) -> None:
    """List webhooks, newest first."""
    with connect(url) as client:
        found = client.pages("/api/v1/webhooks", limit=limit)
        if as_json:
            for webhook in found:
                print_json(webhook)
        else:
            print_table(found, _COLUMNS, optional=("description", "names", "events"))


@app.command()
def show(webhook: WebhookId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one webhook, never its secret."""
    with connect(url) as client:
        document = client.get(_path(webhook))
    (print_json if as_json else print_fields)(document)


@app.command()
def update(
    webhook: WebhookId,
    address: Annotated[str | None, typer.Option("--address", metavar="ADDRESS", help="The URL that is told.")] = None,
    event: Events = None,
    agent: Agents = None,
    description: Description = None,
    active: Annotated[
        bool | None,
        typer.Option(
            "--active/--paused", help="Whether anything is sent; what waits is sent later.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change a webhook. Somebody else's change in between is refused, not overwritten."""
    body = given(url=address, events=event, names=agent, description=description, active=active)
    if not body:
        raise CliError(
            "Nothing to change was given.",
            exit_code=ExitCode.USAGE,
            hint="Add --address, --event, --agent, --description, --active or --paused.",
        )
    with connect(url) as client:
        _, etag = client.get_with_etag(_path(webhook))
        changed = client.patch(_path(webhook), body, headers={"if-match": etag} if etag else None)
    if as_json:
        print_json(changed)
    else:
        note(f"Changed {webhook}.")


@app.command()
def delete(webhook: WebhookId, yes: Yes = False, as_json: AsJson = False, url: Url = None) -> None:
    """Delete a webhook with its deliveries."""
    confirm(f"Delete {webhook} with its deliveries?", yes=yes)
    with connect(url) as client:
        client.delete(_path(webhook))
    tell_done(f"Deleted {webhook}.", {"deleted": webhook}, as_json=as_json)


@app.command("rotate-secret")
def rotate_secret(webhook: WebhookId, as_json: AsJson = False, url: Url = None) -> None:
    """Give a webhook a new secret. For 24 hours its deliveries are signed by the old one, too."""
    with connect(url) as client:
        changed = client.post(f"{_path(webhook)}/rotate-secret")
    _show_secret(changed, f"{webhook} has a new secret.", as_json=as_json)


@app.command("test")
def send_test(webhook: WebhookId, as_json: AsJson = False, url: Url = None) -> None:
    """Send a ping, and wait for what becomes of it."""
    with connect(url) as client:
        sent = client.post(f"{_path(webhook)}/test")
        path = f"/api/v1/deliveries/{quote(str(sent['delivery_id']), safe='')}"
        ends = time.monotonic() + _TEST_SECONDS
        delivery = client.get(path)
        while delivery["status"] == "pending" and time.monotonic() < ends:
            time.sleep(_LOOK_SECONDS)
            delivery = client.get(path)
    if as_json:
        print_json(delivery)
    else:
        note(f"{delivery['delivery_id']} is {delivery['status']}. {_outcome(delivery)}".rstrip())
    if delivery["status"] != "delivered":
        raise typer.Exit(int(ExitCode.FAILED))


@app.command()
def deliveries(
    webhook: WebhookId,
    limit: Limit = 50,
    status: Annotated[str | None, typer.Option("--status", help="pending, delivered or failed.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List what a webhook was, or is to be, told of, newest first."""
    with connect(url) as client:
        found = client.pages(f"{_path(webhook)}/deliveries", limit=limit, status=status)
        if as_json:
            for delivery in found:
                print_json(delivery)
        else:
            print_table(found, _DELIVERIES, optional=("delivered_at", "next_at"))


@app.command()
def delivery(delivery: DeliveryId, as_json: AsJson = False, url: Url = None) -> None:
    """Show one delivery with its attempts."""
    with connect(url) as client:
        document = client.get(f"/api/v1/deliveries/{quote(delivery, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command()
def redeliver(delivery: DeliveryId, as_json: AsJson = False, url: Url = None) -> None:
    """Deliver again, at once; the receiver sees the same id."""
    with connect(url) as client:
        document = client.post(f"/api/v1/deliveries/{quote(delivery, safe='')}/redeliver")
    if as_json:
        print_json(document)
    else:
        note(f"{delivery} is on its way.")


def _path(webhook: str) -> str:
    return f"/api/v1/webhooks/{quote(webhook, safe='')}"


def _show_secret(webhook: JsonObject, remark: str, *, as_json: bool) -> None:
    if as_json:
        print_json(webhook)
    else:
        note(f"{remark} The secret is shown only now:")
        print_text(str(webhook["secret"]))


def _outcome(delivery: JsonObject) -> str:
    """How the last attempt went, in words."""
    attempts = cast("list[JsonObject]", delivery["attempts"])
    if not attempts:
        return "No server that sends deliveries took it up yet."
    last = attempts[-1]
    return str(last["error"] or (f"The receiver answered {last['status_code']}." if last["status_code"] else ""))
