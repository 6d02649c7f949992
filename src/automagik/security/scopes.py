"""Scopes: what a key may do, `area:action` or `area:name:action`, `*` for any name, `admin` for all."""

import re
from collections.abc import Iterable, Mapping, Sequence

from automagik.errors import InvalidInput, nearest
from automagik.types import Caller

__all__ = ["KNOWN_SCOPES", "NAMED_SCOPES", "check_scopes", "first_beyond"]

KNOWN_SCOPES: Mapping[str, str] = {
    "admin": "everything",
    "agents:read": "see agents and their config",
    "agents:write": "create, change and delete agents; override any agent's model and prompt",
    "approvals:decide": "decide what waits for a person",
    "approvals:read": "see what waits for a person",
    "audit:read": "read the audit log",
    "budgets:read": "see budgets",
    "budgets:write": "change budgets",
    "epics:read": "see epics",
    "epics:write": "start and steer epics",
    "keys:read": "see keys",
    "keys:write": "create and revoke keys no stronger than itself",
    "mcp:read": "see MCP servers",
    "mcp:write": "change MCP servers",
    "memory:read": "read memories",
    "memory:write": "create, change and delete memories",
    "prompts:read": "see prompt templates",
    "prompts:write": "create, change, activate and delete prompt templates",
    "runs:read": "see runs and their events",
    "runs:write": "cancel and requeue runs",
    "schedules:read": "see schedules",
    "schedules:write": "change schedules",
    "sessions:read": "read sessions and their messages",
    "sessions:write": "change and delete sessions",
    "tools:read": "see tools",
    "tools:write": "change tools",
    "users:read": "see users",
    "users:write": "create, change and delete users",
    "webhooks:read": "see webhooks",
    "webhooks:write": "change webhooks",
    "workflows:read": "see workflows",
    "workflows:write": "change workflows",
}
"""Every scope without a name in it, with what it allows."""

NAMED_SCOPES: Mapping[tuple[str, str], str] = {
    ("agents", "run"): "run the agent",
    ("tools", "run"): "run the tool",
    ("workflows", "run"): "run the workflow",
}
"""Area and action of every scope that names one thing (`agents:simple:run`) or all (`agents:*:run`)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_scopes(scopes: Iterable[str], *, field: Sequence[str | int] = ("body", "scopes")) -> tuple[str, ...]:
    """The scopes in their order, each once.

    Raises: InvalidInput that names the first one that doesn't exist, with the nearest that does.
    """
    checked: dict[str, None] = {}
    for index, scope in enumerate(scopes):
        _check(scope, (*field, index))
        checked[scope] = None
    if not checked:
        raise InvalidInput(
            "A key needs at least one scope.", field=field, hint="For example 'agents:*:run', 'runs:read' or 'admin'."
        )
    return tuple(checked)


def first_beyond(caller: Caller, scopes: Iterable[str]) -> str | None:
    """The first scope that the caller does not itself have, or None.

    `agents:*:run` is more than any one agent's; `AREA:write` includes `AREA:read`, as it does for requests.
    """
    return next((scope for scope in scopes if not _has(caller, scope)), None)


def _has(caller: Caller, scope: str) -> bool:
    area, _, action = scope.rpartition(":")
    return caller.allows(scope) or (action == "read" and caller.allows(f"{area}:write"))


def _check(scope: str, field: Sequence[str | int]) -> None:
    if scope in KNOWN_SCOPES:
        return
    parts = scope.split(":")
    if len(parts) == 3 and (parts[0], parts[2]) in NAMED_SCOPES:
        if parts[1] == "*" or _NAME.fullmatch(parts[1]):
            return
        raise InvalidInput(
            f"'{scope}' names nothing that could exist.", field=field, hint="Use a name, or '*' for any."
        )
    if len(parts) == 2 and (parts[0], parts[1]) in NAMED_SCOPES:
        hint = f"Did you mean '{parts[0]}:*:{parts[1]}' (any), or '{parts[0]}:NAME:{parts[1]}' (one)?"
    else:
        close = nearest(scope, [*KNOWN_SCOPES, *(f"{area}:*:{action}" for area, action in NAMED_SCOPES)])
        hint = f"Did you mean '{close}'?" if close else f"Known are: {', '.join(KNOWN_SCOPES)}, and agents:NAME:run."
    raise InvalidInput(f"There is no scope '{scope}'.", field=field, hint=hint)
