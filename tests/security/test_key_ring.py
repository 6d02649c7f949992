"""Keys: shown once, kept as a hash, no stronger than their maker, and of no use once they are expired or revoked."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast

import pytest

from automagik.errors import (
    AutomagikError,
    Conflict,
    Forbidden,
    InvalidInput,
    MissingScope,
    NotFound,
    Unauthorized,
)
from automagik.security import KeyRing, new_key
from automagik.store import Store
from automagik.store.rows import AuditRow, KeyRow
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import open_store
from automagik.types import SYSTEM, Caller

pytestmark = pytest.mark.anyio


class _TurnedClock:
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 24, 12, tzinfo=UTC)
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def turn(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


@pytest.fixture
def clock() -> _TurnedClock:
    return _TurnedClock()


@pytest.fixture
async def store(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, clock: _TurnedClock, request: pytest.FixtureRequest
) -> AsyncIterator[Store]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with open_store(dialect, tmp_path, clock, server=server) as opened:
        yield opened


@pytest.fixture
async def keys(store: Store, clock: _TurnedClock) -> AsyncIterator[KeyRing]:
    ring = KeyRing(store, clock)
    yield ring
    await ring.close()


async def _admin(keys: KeyRing) -> tuple[Caller, str]:
    _, key = await keys.create_first()
    return await keys.authenticate(key.get_secret_value()), key.get_secret_value()


async def _user(store: Store) -> uuid.UUID:
    return (await store.write(lambda tx: tx.users.create())).user_id


async def _audit(store: Store) -> list[AuditRow]:
    return (await store.read(lambda tx: tx.audit.list())).data


async def _refusal_of(keys: KeyRing, presented: str) -> tuple[str, str | None]:
    with pytest.raises(Unauthorized) as refused:
        await keys.authenticate(presented)
    return refused.value.detail, refused.value.hint


async def test_a_key_is_256_random_bits_of_which_only_the_hash_and_a_prefix_are_kept(
    keys: KeyRing, store: Store
) -> None:
    row, key = await keys.create("app", ["runs:read"], caller=SYSTEM)
    secret = key.get_secret_value()
    assert len(secret) == 47
    assert secret.startswith("amk_")
    assert row.prefix == secret[:8]
    assert row.key_hash == hashlib.sha256(secret.encode()).digest()
    assert secret not in repr(row) + repr(key) + repr(await _audit(store))
    assert len({new_key().get_secret_value() for _ in range(100)}) == 100


async def test_a_key_tells_its_caller(keys: KeyRing, store: Store) -> None:
    user = await _user(store)
    row, key = await keys.create("app", ["agents:simple:run"], user_id=user, rate_limit="10/minute", caller=SYSTEM)
    caller = await keys.authenticate(key.get_secret_value())
    assert caller == Caller(row.key_id, frozenset({"agents:simple:run"}), user, "10/minute")
    assert keys.cached(key.get_secret_value()) is caller


async def test_unknown_malformed_expired_and_revoked_keys_are_refused_in_the_same_words(
    keys: KeyRing, clock: _TurnedClock
) -> None:
    expiring, expired = await keys.create("a", ["admin"], expires_at=clock.now() + timedelta(seconds=30), caller=SYSTEM)
    revoked_row, revoked = await keys.create("b", ["admin"], caller=SYSTEM)
    for key in (expired, revoked):
        await keys.authenticate(key.get_secret_value())
    await keys.revoke(revoked_row.key_id, SYSTEM)
    clock.turn(30)
    assert expiring.expires_at == clock.now()
    presented = [
        expired.get_secret_value(),
        revoked.get_secret_value(),
        new_key().get_secret_value(),
        "",
        "amk_",
        "x" * 100_000,
        "amk_" + "é" * 43,
        revoked.get_secret_value() + "\n",
    ]
    assert len({await _refusal_of(keys, key) for key in presented}) == 1


async def test_revocation_and_expiry_hold_at_once_though_the_key_was_looked_up(
    keys: KeyRing, clock: _TurnedClock
) -> None:
    row, key = await keys.create("a", ["admin"], expires_at=clock.now() + timedelta(seconds=2), caller=SYSTEM)
    secret = key.get_secret_value()
    await keys.authenticate(secret)
    clock.turn(1.9)
    assert keys.cached(secret) is not None
    clock.turn(0.2)
    assert keys.cached(secret) is None
    row, key = await keys.create("b", ["admin"], caller=SYSTEM)
    await keys.authenticate(key.get_secret_value())
    await keys.revoke(row.key_id, SYSTEM)
    assert keys.cached(key.get_secret_value()) is None


async def test_a_revocation_elsewhere_is_seen_within_five_seconds(
    keys: KeyRing, store: Store, clock: _TurnedClock
) -> None:
    row, key = await keys.create("a", ["admin"], caller=SYSTEM)
    await keys.authenticate(key.get_secret_value())
    await KeyRing(store, clock).revoke(row.key_id, SYSTEM)
    clock.turn(5)
    await _refusal_of(keys, key.get_secret_value())


async def test_a_key_revoked_while_it_is_looked_up_is_not_remembered(keys: KeyRing) -> None:
    for _ in range(20):
        row, key = await keys.create("a", ["admin"], caller=SYSTEM)
        asking = [asyncio.create_task(keys.authenticate(key.get_secret_value())) for _ in range(3)]
        await asyncio.sleep(0)
        await keys.revoke(row.key_id, SYSTEM)
        await asyncio.gather(*asking, return_exceptions=True)
        assert keys.cached(key.get_secret_value()) is None


async def test_the_memory_of_keys_is_bounded(store: Store, clock: _TurnedClock) -> None:
    keys = KeyRing(store, clock, max_remembered=3)
    made = [(await keys.create(str(index), ["admin"], caller=SYSTEM))[1].get_secret_value() for index in range(5)]
    for key in made:
        await keys.authenticate(key)
    assert [keys.cached(key) is not None for key in made] == [False, False, True, True, True]
    await keys.close()


async def test_the_last_use_is_noted_off_the_request_once_a_minute(
    keys: KeyRing, store: Store, clock: _TurnedClock
) -> None:
    row, key = await keys.create("a", ["admin"], caller=SYSTEM)
    secret = key.get_secret_value()

    async def noted() -> datetime | None:
        await keys.close()
        return (await keys.get(row.key_id, SYSTEM)).last_used_at

    assert await noted() is None
    await keys.authenticate(secret)
    first = clock.now()
    assert await noted() == first
    for _ in range(11):
        clock.turn(5)
        await keys.authenticate(secret)
    assert await noted() == first
    clock.turn(5)
    await keys.authenticate(secret)
    assert await noted() == first + timedelta(seconds=60)
    other = KeyRing(store, clock)
    clock.turn(30)
    await other.authenticate(secret)
    await other.close()
    assert await noted() == first + timedelta(seconds=60)


async def test_every_key_made_or_revoked_is_audited_and_a_failure_leaves_neither(keys: KeyRing, store: Store) -> None:
    admin, _ = await _admin(keys)
    row, _ = await keys.create("app", ["runs:read"], caller=admin, request_id="req_1")
    await keys.revoke(row.key_id, admin, request_id="req_2")
    await keys.revoke(row.key_id, admin)
    with pytest.raises(NotFound):
        await keys.create("app", ["runs:read"], user_id=uuid.uuid4(), caller=admin)
    rows = await _audit(store)
    assert [(entry.action, entry.target, entry.key_id, entry.request_id) for entry in rows[:2]] == [
        ("key.revoke", row.key_id, admin.key_id, "req_2"),
        ("key.create", row.key_id, admin.key_id, "req_1"),
    ]
    assert rows[1].details == {"name": "app", "scopes": ["runs:read"], "user_id": None}
    assert len(rows) == 3
    assert len((await keys.list(SYSTEM)).data) == 2


async def test_the_first_key_is_made_only_while_there_is_no_usable_admin_key(
    keys: KeyRing, clock: _TurnedClock, store: Store
) -> None:
    await keys.create("bound", ["admin"], user_id=await _user(store), caller=SYSTEM)
    await keys.create("weak", ["runs:read"], caller=SYSTEM)
    await keys.create("short", ["admin"], expires_at=clock.now() + timedelta(seconds=5), caller=SYSTEM)
    clock.turn(6)
    first, key = await keys.create_first()
    assert (await keys.authenticate(key.get_secret_value())).scopes == {"admin"}
    with pytest.raises(Conflict) as refused:
        await keys.create_first()
    assert first.key_id in refused.value.detail
    assert "--first" in (refused.value.hint or "")
    await keys.revoke(first.key_id, SYSTEM)
    await keys.create_first()


async def test_ten_first_keys_asked_for_at_once_make_one(keys: KeyRing) -> None:
    made = await asyncio.gather(*(keys.create_first() for _ in range(10)), return_exceptions=True)
    assert sum(not isinstance(one, Conflict) for one in made) == 1


async def _caller_with(keys: KeyRing, *scopes: str, **limits: object) -> Caller:
    _, key = await keys.create("maker", scopes, caller=SYSTEM, **limits)  # pyright: ignore[reportArgumentType] - a table of cases
    return await keys.authenticate(key.get_secret_value())


async def test_a_key_makes_only_keys_no_stronger_than_itself(keys: KeyRing, clock: _TurnedClock, store: Store) -> None:
    user, other = await _user(store), await _user(store)
    soon, later = clock.now() + timedelta(hours=1), clock.now() + timedelta(hours=2)
    maker = await _caller_with(keys, "keys:write", "agents:a:run", expires_at=soon, rate_limit="60/minute")
    bound = await _caller_with(keys, "admin", user_id=user)

    with pytest.raises(MissingScope) as refused:
        await keys.create("x", ["agents:a:run", "agents:*:run"], caller=maker)
    assert refused.value.scope == "agents:*:run"
    with pytest.raises(Forbidden):
        await keys.create("x", ["agents:a:run"], caller=maker, expires_at=later)
    with pytest.raises(Forbidden):
        await keys.create("x", ["agents:a:run"], caller=maker, rate_limit="2/second")
    with pytest.raises(Forbidden):
        await keys.create("x", ["agents:a:run"], caller=bound, user_id=other)

    inherited, _ = await keys.create("x", ["agents:a:run"], caller=maker)
    assert (inherited.expires_at, inherited.rate_limit) == (soon, "60/minute")
    stricter, _ = await keys.create("x", ["agents:a:run"], caller=maker, rate_limit="100/hour", expires_at=soon)
    assert stricter.rate_limit == "100/hour"
    own, _ = await keys.create("x", ["admin"], caller=bound)
    assert own.user_id == user


async def test_a_key_revoked_a_moment_ago_makes_no_more_keys(keys: KeyRing) -> None:
    admin, _ = await _admin(keys)
    await keys.revoke(admin.key_id or "", SYSTEM)
    with pytest.raises(Unauthorized):
        await keys.create("x", ["admin"], caller=admin)


async def test_a_key_revokes_itself_and_weaker_ones_but_no_stronger(keys: KeyRing) -> None:
    admin, _ = await _admin(keys)
    maker = await _caller_with(keys, "keys:write", "runs:read")
    weaker, _ = await keys.create("x", ["runs:read"], caller=maker)
    with pytest.raises(MissingScope):
        await keys.revoke(admin.key_id or "", maker)
    assert (await keys.revoke(weaker.key_id, maker)).revoked_at is not None
    narrow = await _caller_with(keys, "runs:read")
    assert (await keys.revoke(narrow.key_id or "", narrow)).revoked_at is not None


async def test_a_key_bound_to_a_user_sees_only_that_users_keys(keys: KeyRing, store: Store) -> None:
    admin, _ = await _admin(keys)
    user, other = await _user(store), await _user(store)
    bound = await _caller_with(keys, "admin", user_id=user)
    theirs = await _caller_with(keys, "admin", user_id=other)
    assert [row.key_id for row in (await keys.list(bound)).data] == [bound.key_id]
    assert (await keys.list(bound, user_id=other)).data == []
    assert len((await keys.list(admin)).data) == 3
    for hidden in (admin, theirs):
        with pytest.raises(NotFound):
            await keys.get(hidden.key_id or "", bound)
        with pytest.raises(NotFound):
            await keys.revoke(hidden.key_id or "", bound)
    with pytest.raises(NotFound):
        await keys.get("key_none", admin)


async def test_a_deleted_users_keys_are_of_no_use(keys: KeyRing, store: Store) -> None:
    user = await _user(store)
    _, key = await keys.create("x", ["admin"], user_id=user, caller=SYSTEM)
    await keys.authenticate(key.get_secret_value())
    await store.write(lambda tx: tx.users.delete(user))
    keys.forget()
    await _refusal_of(keys, key.get_secret_value())


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "nul\x00", "\ud800"])
async def test_a_name_that_can_not_be_is_refused(keys: KeyRing, name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await keys.create(name, ["admin"], caller=SYSTEM)
    assert refused.value.field == ("body", "name")


@pytest.mark.parametrize(
    "rate", ["", "0/second", "5", "5/week", "-1/day", "5 per minute", "1.5/hour", "5/minute; 1/day"]
)
async def test_a_rate_limit_that_can_not_be_is_refused(keys: KeyRing, rate: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await keys.create("x", ["admin"], rate_limit=rate, caller=SYSTEM)
    assert refused.value.field == ("body", "rate_limit")


@pytest.mark.parametrize("expires_at", [datetime(2026, 11, 24, 12, tzinfo=UTC), datetime(2030, 1, 1)])  # noqa: DTZ001
async def test_an_expiry_that_has_passed_or_lacks_its_zone_is_refused(keys: KeyRing, expires_at: datetime) -> None:
    with pytest.raises(InvalidInput):
        await keys.create("x", ["admin"], expires_at=expires_at, caller=SYSTEM)


async def test_a_store_that_is_away_fails_the_look_up_and_not_what_is_remembered(
    keys: KeyRing, store: Store, clock: _TurnedClock
) -> None:
    _, key = await keys.create("x", ["admin"], caller=SYSTEM)
    await keys.authenticate(key.get_secret_value())
    await keys.close()
    await store.close()
    clock.turn(1)
    assert await keys.authenticate(key.get_secret_value())
    clock.turn(5)
    with pytest.raises(AutomagikError):
        await keys.authenticate(key.get_secret_value())


async def test_rows_are_listed_page_by_page(keys: KeyRing) -> None:
    for index in range(5):
        await keys.create(str(index), ["admin"], caller=SYSTEM)
    seen: list[KeyRow] = []
    cursor: str | None = None
    while True:
        page = await keys.list(SYSTEM, limit=2, cursor=cursor)
        seen += page.data
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [row.name for row in seen] == ["4", "3", "2", "1", "0"]
