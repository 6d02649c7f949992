"""`automagik keys`: API keys. The first one is made on the data folder itself, the others by the server."""

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import (
    AsJson,
    Limit,
    Url,
    Yes,
    client_settings,
    complete,
    confirm,
    connect,
    given,
    server_settings,
)
from automagik.cli.output import note, print_fields, print_json, print_table, print_text, tell_done, warn
from automagik.cli.profile import Profile, load_profile, profile_path, save_profile
from automagik.types import utc_text

if TYPE_CHECKING:
    from automagik.settings import Settings

__all__ = ["app"]

app = typer.Typer(help="Create, see and revoke API keys.", no_args_is_help=True)

_COLUMNS = (
    ("KEY", "key_id"),
    ("NAME", "name"),
    ("PREFIX", "prefix"),
    ("SCOPES", "scopes"),
    ("EXPIRES", "expires_at"),
    ("LAST USED", "last_used_at"),
    ("REVOKED", "revoked_at"),
)
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command(
    help="Create a key. It is shown now and never again.\n\n"
    "With --first no server and no key are needed, but access to the data folder (or database): the admin key goes to the "
    "profile of mode 600, and is shown on a terminal only. A profile whose key works is kept."
)
def create(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What the key is for.", show_default=False)] = None,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="What it may do, as agents:simple:run; may be repeated.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="UUID", help="Bind it to this user.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="30d/TIME", help="When it ends: 90m, 12h, 30d, 8w, or RFC 3339.")
    ] = None,
    rate_limit: Annotated[str | None, typer.Option("--rate-limit", metavar="N/PERIOD", help="As 600/minute.")] = None,
    max_concurrent_runs: Annotated[
        int | None,
        typer.Option(
            "--max-concurrent-runs", metavar="N", min=1, help="How many background runs may be under way at once."
        ),
    ] = None,
    first: Annotated[
        bool,
        typer.Option(
            "--first", help="Make an admin key on the data folder itself, and keep it in this user's profile."
        ),
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Create a key."""
    if first:
        if scope or user or expires or rate_limit or max_concurrent_runs:
            raise CliError("--first makes an admin key; it takes only a name.", exit_code=ExitCode.USAGE)
        _create_first(name or "first admin key", url, as_json=as_json)
        return
    if name is None or not scope:
        raise CliError(
            "A key needs a name and at least one --scope.",
            exit_code=ExitCode.USAGE,
            hint="For example: automagik keys create my-app --scope agents:simple:run",
        )
    body = given(
        name=name,
        scopes=scope,
        user_id=user,
        rate_limit=rate_limit,
        max_concurrent_runs=max_concurrent_runs,
        expires_at=_moment(expires) if expires else None,
    )
    with connect(url) as client:
        made = client.post("/api/v1/keys", body)
    if as_json:
        print_json(made)
    else:
        note(f"Created {made['key_id']}. The key is shown only now:")
        print_text(str(made["key"]))


@app.command("list")
def list_keys(limit: Limit = 50, as_json: AsJson = False, url: Url = None) -> None:
    """List keys, newest first, revoked ones too."""
    with connect(url) as client:
        found = client.pages("/api/v1/keys", limit=limit)
        if as_json:
            for key in found:
                print_json(key)
        else:
            print_table(found, _COLUMNS, optional=("prefix", "last_used_at"))


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id.", show_default=False)],
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show one key: what it may do and when it was last used, never the key itself."""
    with connect(url) as client:
        document = client.get(f"/api/v1/keys/{quote(key, safe='')}")
    (print_json if as_json else print_fields)(document)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id.", show_default=False)],
    yes: Yes = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Revoke a key, for good."""
    confirm(f"Revoke {key} for good?", yes=yes)
    with connect(url) as client:
        client.delete(f"/api/v1/keys/{quote(key, safe='')}")
    tell_done(f"Revoked {key}.", {"revoked": key}, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _First:
    """What `keys create --first` came to: a new key, or None where the profile's works."""

    profile: Profile
    is_new: bool
    remark: str


def _create_first(name: str, url: str | None, *, as_json: bool) -> None:
    from automagik.cli.folder import local_url, quiet_logs  # the store takes 0.3 s to load

    settings, client = server_settings(), client_settings()
    quiet_logs(settings)
    profile = _old_profile(client.config_dir)
    address = url or client.url or local_url(settings) or (profile.url if profile else "http://127.0.0.1:8881")
    result = complete(_first_key(settings, profile, address, name))
    path = (
        save_profile(client.config_dir, result.profile)
        if result.profile != profile
        else profile_path(client.config_dir)
    )
    if as_json:
        print_json(
            {
                "key_id": result.profile.key_id,
                "created": result.is_new,
                "profile": str(path),
                "url": result.profile.url,
            }
        )
        return
    note(f"{result.remark} {path} (readable by you only).")
    if result.is_new and sys.stdout.isatty():
        print_text(f"The key, shown only now: {result.profile.key}")


async def _first_key(settings: "Settings", profile: Profile | None, address: str, name: str) -> _First:
    from automagik.cli.folder import open_keys
    from automagik.errors import Conflict, Unauthorized
    from automagik.types import SYSTEM

    async with open_keys(settings) as keys:
        if profile is not None:
            try:
                caller = await keys.authenticate(profile.key)
            except Unauthorized:
                caller = None
            if caller is not None:
                kept = Profile(address, profile.key, caller.key_id or profile.key_id)
                what = (
                    "the admin key" if caller.allows("admin") else f"a working key ({' '.join(sorted(caller.scopes))})"
                )
                return _First(kept, is_new=False, remark=f"There is {what} {kept.key_id} already, in")
        try:
            row, key = await keys.create_first(name)
            remark = f"Created the admin key {row.key_id} and saved it in"
        except Conflict as conflict:
            # Whoever can write to the data folder is an administrator already, so a lost profile costs one command.
            row, key = await keys.create(name, ["admin"], caller=SYSTEM)
            remark = f"{conflict.detail} Its key is not in your profile, so another was made: {row.key_id}, saved in"
        return _First(Profile(address, key.get_secret_value(), row.key_id), is_new=True, remark=remark)


def _old_profile(config_dir: Path) -> Profile | None:
    try:
        return load_profile(config_dir)
    except CliError as failure:
        if failure.exit_code is not ExitCode.USAGE:
            raise
        warn(f"{failure.detail} It is replaced.")
        return None


def _moment(text: str) -> str:
    found = _DURATION.fullmatch(text)
    if found is not None:
        return utc_text(datetime.now(UTC) + timedelta(seconds=int(found[1]) * _SECONDS[found[2]]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise CliError(
            f"'{text}' is no time.",
            exit_code=ExitCode.USAGE,
            hint="Write 90m, 12h, 30d, 8w, or a time as 2027-01-31T12:00:00Z.",
        )
    return utc_text(moment)
