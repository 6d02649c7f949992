"""Scopes are checked against those that exist, and one caller is compared with what another would be given."""

import pytest

from automagik.errors import InvalidInput
from automagik.security import KNOWN_SCOPES, check_scopes, first_beyond
from automagik.types import Caller


@pytest.mark.parametrize(
    "scope", [*KNOWN_SCOPES, "agents:*:run", "agents:simple:run", "agents:my_agent-2.x:run", "workflows:fix:run"]
)
def test_a_scope_that_exists_is_taken(scope: str) -> None:
    assert check_scopes([scope]) == (scope,)


def test_scopes_keep_their_order_and_come_once() -> None:
    assert check_scopes(["runs:read", "admin", "runs:read"]) == ("runs:read", "admin")


@pytest.mark.parametrize(
    ("scope", "hint"),
    [
        ("runs:reed", "runs:read"),
        ("agents:run", "agents:*:run"),
        ("Admin", "admin"),
        ("agents:simple:runs", "agents"),
        ("agents::run", "name"),
        ("agents:a b:run", "name"),
        ("agents:a:b:run", "agents:*:run"),
        ("*", "Known are"),
        ("*:read", "read"),
        ("runs:*", "runs:"),
        ("", "Known are"),
        ("agents:*:*", "agents:*:run"),
    ],
)
def test_a_scope_that_does_not_exist_is_refused_with_a_hint(scope: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_scopes(["runs:read", scope])
    assert refused.value.field == ("body", "scopes", 1)
    assert hint in (refused.value.hint or "")


def test_a_key_without_scopes_is_refused() -> None:
    with pytest.raises(InvalidInput):
        check_scopes([])


@pytest.mark.parametrize(
    ("holder", "wanted", "beyond"),
    [
        (["admin"], ["admin", "agents:*:run"], None),
        (["agents:*:run"], ["agents:*:run", "agents:simple:run"], None),
        (["agents:simple:run"], ["agents:simple:run"], None),
        (["agents:simple:run"], ["agents:*:run"], "agents:*:run"),
        (["agents:simple:run"], ["agents:other:run"], "agents:other:run"),
        (["agents:*:run"], ["tools:x:run"], "tools:x:run"),
        (["runs:read"], ["runs:write"], "runs:write"),
        (["runs:write"], ["runs:read"], None),
        (["keys:write"], ["admin"], "admin"),
        (["agents:write"], ["agents:*:run"], "agents:*:run"),
        ([], ["runs:read"], "runs:read"),
    ],
)
def test_what_goes_beyond_a_caller_is_named(holder: list[str], wanted: list[str], beyond: str | None) -> None:
    assert first_beyond(Caller(key_id="key_x", scopes=frozenset(holder)), wanted) == beyond
