"""`automagik db`: the database itself, without a server."""

import re
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Yes, complete, confirm, server_settings
from automagik.cli.output import note, print_json, warn
from automagik.errors import Conflict

if TYPE_CHECKING:
    from datetime import timedelta

    from automagik.artifacts import Pruned
    from automagik.settings import Settings
    from automagik.store.backup import Copied

__all__ = ["app"]

app = typer.Typer(help="Upgrade, back up, restore, copy and prune the database.", no_args_is_help=True)

Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The archive, an SQLite file.", show_default=False)]


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the database to this version's schema; a server does so by itself when it starts."""
    settings = _settings()
    dialect = complete(_open(settings))
    if as_json:
        print_json({"database": dialect, "upgraded": True})
    else:
        note(f"The {dialect} database is at this version's schema.")


@app.command()
def backup(file: Archive, as_json: AsJson = False) -> None:
    """Write all rows to a new file, also while a server runs. It holds conversations and keys' hashes: keep it private."""
    settings = _settings()
    from automagik.store.backup import backup as write_backup  # SQLAlchemy takes 0.3 s to load

    _tell(complete(write_backup(settings, file)), f"in {file}", as_json=as_json)


@app.command()
def restore(file: Archive, yes: Yes = False, as_json: AsJson = False) -> None:
    """Fill the database with a backup: all of it, or nothing. Rows that are there are replaced only if you agree."""
    settings = _settings()
    from automagik.store.backup import restore as read_backup  # SQLAlchemy takes 0.3 s to load

    copied = _replacing(lambda replace: read_backup(settings, file, replace=replace), yes=yes)
    _tell(copied, f"restored from {file}", as_json=as_json)


@app.command()
def copy(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="URL",
            help="The PostgreSQL database, postgresql://USER:PASSWORD@HOST/NAME; - reads it from standard input.",
            show_default=False,
        ),
    ],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Copy the data folder's SQLite database to PostgreSQL: all of it, or nothing. Stop the server before."""
    settings = _settings()
    url = sys.stdin.readline().strip() if to == "-" else to
    if not url.startswith(("postgresql://", "postgres://")):
        raise CliError(
            "--to is no address of a PostgreSQL database.",
            exit_code=ExitCode.USAGE,
            hint="Write postgresql://USER:PASSWORD@HOST/NAME, or - and give it on standard input.",
        )
    from automagik.store.backup import copy as copy_database  # SQLAlchemy takes 0.3 s to load
    from automagik.store.backup import server_of

    server = server_of(settings)
    if server is not None:
        warn(
            f"A server ({server}) uses the data folder: what it stores from now on is not in the copy. Stop it, and copy."
        )
    copied = _replacing(lambda replace: copy_database(settings, url, replace=replace), yes=yes)
    _tell(copied, "copied", as_json=as_json)
    if not as_json:
        note("Start the server with AUTOMAGIK_DATABASE_URL set to that address.")


@app.command()
def prune(
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="AGE", help="As 30d, 12w or 48h; at least a day.", show_default=False),
    ],
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Conversations in which nothing was said for so long, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete finished runs with their events, webhook deliveries and unused artefacts, also while a server runs.

    Open runs stay, and messages without --sessions; what expires anyway goes whatever its age.
    """
    age = _age(older_than)
    settings = _settings()
    if sessions and not dry_run:
        confirm(f"Delete all conversations in which nothing was said for {older_than}?", yes=yes)
    pruned = complete(_prune(settings, age, sessions=sessions, dry_run=dry_run))
    if as_json:
        print_json({"dry_run": dry_run, **pruned.counts})
        return
    rows = ", ".join(f"{count} {name}" for name, count in pruned.counts.items() if count)
    note(f"{'Would delete' if dry_run else 'Deleted'}: {rows or 'nothing'}.")


async def _prune(settings: "Settings", age: "timedelta", *, sessions: bool, dry_run: bool) -> "Pruned":
    from datetime import timedelta

    from automagik.artifacts import ArtifactStore, Pruned, prune_platform
    from automagik.cli.folder import open_store
    from automagik.types import SYSTEM, SystemClock

    async with open_store(settings) as store:
        artifacts = ArtifactStore(settings, store, SystemClock())
        await artifacts.open()
        try:
            pruned = await prune_platform(
                store,
                artifacts,
                SystemClock(),
                older_than=age,
                unused_for=timedelta(days=settings.artifact_retention_days),
                sessions=sessions,
                dry_run=dry_run,
                caller=SYSTEM,
            )
        finally:
            await artifacts.close()
    return pruned or Pruned()


def _age(text: str) -> "timedelta":
    from datetime import timedelta

    found = re.fullmatch(r"(\d{1,6})([hdw])", text, re.ASCII)
    if found is not None:
        number, unit = int(found.group(1)), found.group(2)
        age = timedelta(hours=number * {"h": 1, "d": 24, "w": 168}[unit])
        if timedelta(days=1) <= age <= timedelta(days=36_500):
            return age
    raise CliError(
        f"--older-than '{text}' is no age of a day or more.",
        exit_code=ExitCode.USAGE,
        hint="Write 30d, 12w or 48h; idempotency keys are good for a day, and their runs must be there.",
    )


def _settings() -> "Settings":
    from automagik.cli.folder import quiet_logs

    settings = server_settings()
    quiet_logs(settings)
    return settings


async def _open(settings: "Settings") -> str:
    from automagik.cli.folder import open_store

    async with open_store(settings) as store:
        return store.dialect


def _replacing(work: "Callable[[bool], Coroutine[Any, Any, Copied]]", *, yes: bool) -> "Copied":
    """Do the work; where it would replace rows, only if a person agrees."""
    try:
        return complete(work(False))
    except Conflict as conflict:
        confirm(f"{conflict.detail} Delete them, and put the copy in their place?", yes=yes)
    return complete(work(True))


def _tell(copied: "Copied", where: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"rows": dict(copied.rows), "total": copied.total})
    else:
        rows = ", ".join(f"{count} {table}" for table, count in copied.rows.items() if count)
        note(f"{copied.total} rows {where}: {rows or 'none'}.")
