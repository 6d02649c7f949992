"""KeyRing: API keys. 256 random bits, shown once, kept as a SHA-256 with scopes, expiry, last use and revocation."""

import asyncio
import base64
import hashlib
import hmac
import os
import re
import unicodedata
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from pydantic import SecretStr

from automagik.errors import (
    AutomagikError,
    Conflict,
    Forbidden,
    InvalidInput,
    MissingScope,
    NotFound,
    Unauthorized,
)
from automagik.security.scopes import check_scopes, first_beyond
from automagik.store import Page, Store, Transaction
from automagik.store.rows import KeyRow
from automagik.types import SYSTEM, Caller, Clock, JsonObject, utc_text

__all__ = ["KeyRing", "caller_of_key", "new_key"]

_log = structlog.stdlib.get_logger(__name__)

_FORM = re.compile(r"amk_[A-Za-z0-9_-]{43}")
_KEY_CHARS = 47
_PREFIX_CHARS = 8
_CACHE_SECONDS = 5.0
"""How long a revocation in another process may stay unseen in this one, where its signal is lost."""
_MOST_MAKERS = 8
"""From how many keys one may descend where a limit binds them: each is looked at when the key is."""
_MOST_RUNS = 1_000_000
_TOUCH_SECONDS = 60.0
"""How exact `last_used_at` is."""
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
_PERIOD_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


def new_key() -> SecretStr:
    """A fresh key: `amk_` and 43 characters that are 256 random bits in base64url."""
    return SecretStr(f"amk_{base64.urlsafe_b64encode(os.urandom(32)).rstrip(b'=').decode()}")


@dataclass(slots=True)
class _Known:
    """A key that was looked up; good until `fresh_until` on the monotonic clock."""

    caller: Caller
    key_hash: bytes
    fresh_until: float
    touch_at: float


class KeyRing:
    """Tells who presents a key, and makes, lists and revokes keys. What it looked up it remembers for 5 seconds."""

    def __init__(self, store: Store, clock: Clock, *, max_remembered: int = 4096) -> None:
        """`max_remembered`: how many keys, the longest unused going first."""
        self._store = store
        self._clock = clock
        self._monotonic = clock.monotonic
        self._max_remembered = max_remembered
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._forgotten = 0
        self._used: dict[str, datetime] = {}
        self._noting: asyncio.Task[None] | None = None
        self._leave = (store.signals.listen("changed", self._hear_change), store.signals.on_gap(self.forget))

    # -- who asks

    def cached(self, presented: str) -> Caller | None:
        """The caller if this key was looked up in the last seconds, else None: ask `authenticate`. Takes some 2 µs."""
        if len(presented) != _KEY_CHARS:
            return None
        digest = _hash(presented)
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.key_hash, digest):
            return None
        now = self._monotonic()
        if now >= known.fresh_until:
            return None
        if now >= known.touch_at:
            self._note_use(known, now)
        return known.caller

    async def authenticate(self, presented: str) -> Caller:
        """Who presents this key.

        Raises:
            Unauthorized: with the same words for a key that is malformed, unknown, expired or revoked.
        """
        caller = self.cached(presented)
        if caller is not None:
            return caller
        if _FORM.fullmatch(presented) is None:
            raise _refusal()
        digest, forgotten = _hash(presented), self._forgotten
        row, makers = await self._store.read(lambda tx: _with_makers(tx, tx.keys.find_by_hash(digest)))
        now = self._clock.now()
        if row is None or not hmac.compare_digest(row.key_hash, digest) or not _usable(row, now):
            raise _refusal()
        caller = _caller(row, makers)
        if forgotten == self._forgotten:  # else a key was revoked meanwhile, perhaps this one
            self._remember(row, caller, now)
        return caller

    async def caller_of(self, key_id: str) -> Caller:
        """In whose name work is done that the key left for later. Raises Forbidden where the key can't be used any more."""
        return await self._store.read(lambda tx: caller_of_key(tx, key_id))

    def forget(self) -> None:
        """Look every key up anew: something changed what keys may do (a user was deleted)."""
        self._forgotten += 1
        self._known.clear()

    def _hear_change(self, text: str) -> None:
        """Look up anew what another process changed: one key, or all where none is named."""
        kind, _, key_id = text.partition(" ")
        if kind != "keys":
            return
        if not key_id:
            self.forget()
            return
        self._forgotten += 1
        for key_hash in [known.key_hash for known in self._known.values() if known.caller.key_id == key_id]:
            del self._known[key_hash]

    # -- keys as things

    async def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        caller: Caller,
        user_id: uuid.UUID | None = None,
        expires_at: datetime | None = None,
        rate_limit: str | None = None,
        max_concurrent_runs: int | None = None,
        request_id: str | None = None,
    ) -> tuple[KeyRow, SecretStr]:
        """A new key and its row; the key itself is to be had only here. `rate_limit` is `N/second|minute|hour|day`,
        `max_concurrent_runs` how many background runs of the key may be under way at once.

        The key is no stronger than the caller's: it has no scope, later expiry, looser limit or other user than that, and
        where the caller's is limited, the new key's requests and runs count there too.
        A caller bound to a user makes keys for that user, also where `user_id` is not given.

        Raises:
            InvalidInput: a name, scope, expiry or limit can't be; NotFound: the user is unknown.
            MissingScope, Forbidden: the key would be stronger than the caller's.
        """
        wanted = check_scopes(scopes)
        _check_name(name)
        _parse_rate(rate_limit)
        _check_expiry(expires_at, self._clock.now())
        _check_runs(max_concurrent_runs)
        wished = _Limits(expires_at, rate_limit, max_concurrent_runs)
        beyond = first_beyond(caller, wanted)
        if beyond is not None:
            raise MissingScope(beyond)
        if caller.user_id is not None and user_id not in {None, caller.user_id}:
            raise Forbidden(
                "This key is bound to a user and can't make keys for another.",
                hint="Leave out 'user_id', or use a key that is bound to nobody.",
            )
        key = new_key()

        def work(tx: Transaction) -> KeyRow:
            limits = _limits_of(tx, caller, wished)
            return _insert(tx, name, wanted, key, user_id or caller.user_id, limits, caller, request_id)

        return await self._store.write(work), key

    async def create_first(self, name: str = "first admin key") -> tuple[KeyRow, SecretStr]:
        """The first admin key, for a person with access to the data folder or the database.

        Raises:
            Conflict: there is a usable admin key already.
        """
        key = new_key()

        def work(tx: Transaction) -> KeyRow:
            tx.keys.lock()
            existing = _usable_admin(tx)
            if existing is not None:
                raise Conflict(
                    f"There is an admin key already: '{existing.name}' ({existing.prefix}…), {existing.key_id}.",
                    hint="Use that key, or make another on this machine with `automagik keys create --first`.",
                    code="admin_key_exists",
                )
            return _insert(tx, name, ("admin",), key, None, _Limits(), SYSTEM, None)

        return await self._store.write(work), key

    async def get(self, key_id: str, caller: Caller) -> KeyRow:
        """One key. Raises NotFound, for what the caller may not see too."""
        return await self._store.read(lambda tx: _get(tx, key_id, caller))

    async def list(
        self, caller: Caller, *, user_id: uuid.UUID | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[KeyRow]:
        """Keys, newest first, revoked ones too; a caller bound to a user sees only that user's."""
        if caller.user_id is not None:
            if user_id not in {None, caller.user_id}:
                return Page([], None)
            user_id = caller.user_id
        return await self._store.read(lambda tx: tx.keys.list(user_id=user_id, limit=limit, cursor=cursor))

    async def revoke(self, key_id: str, caller: Caller, *, request_id: str | None = None) -> KeyRow:
        """The key, revoked: at once in this process, as soon as they hear of it in others (5 seconds at the most).
        One that was revoked stays as it was.

        Raises:
            NotFound: no such key, or the caller may not see it.
            MissingScope: the key is stronger than the caller's (its own key anyone may revoke).
        """

        def work(tx: Transaction) -> KeyRow:
            row = _get(tx, key_id, caller)
            beyond = first_beyond(caller, row.scopes)
            if beyond is not None and key_id != caller.key_id:
                raise MissingScope(beyond)
            if row.revoked_at is not None:
                return row
            tx.audit.append("key.revoke", key_id, caller=caller, request_id=request_id, details={"name": row.name})
            return tx.keys.revoke(key_id)

        row = await self._store.write(work)
        self.forget()
        return row

    async def close(self) -> None:
        """Write down what is known of the last uses, and hear no more of changes."""
        for leave in self._leave:
            leave()
        if self._noting is not None:
            await asyncio.wait([self._noting])

    # -- inner parts

    def _remember(self, row: KeyRow, caller: Caller, now: datetime) -> None:
        began = self._monotonic()
        fresh = (
            _CACHE_SECONDS if row.expires_at is None else min(_CACHE_SECONDS, (row.expires_at - now).total_seconds())
        )
        wait = 0.0 if row.last_used_at is None else _TOUCH_SECONDS - (now - row.last_used_at).total_seconds()
        known = _Known(caller, row.key_hash, began + fresh, began + wait)
        self._known[row.key_hash] = known
        self._known.move_to_end(row.key_hash)
        if len(self._known) > self._max_remembered:
            self._known.popitem(last=False)
        if wait <= 0:
            self._note_use(known, began)

    def _note_use(self, known: _Known, now: float) -> None:
        known.touch_at = now + _TOUCH_SECONDS
        if known.caller.key_id is None:
            return
        self._used[known.caller.key_id] = self._clock.now()
        if self._noting is None or self._noting.done():
            self._noting = asyncio.get_running_loop().create_task(self._note_uses())

    async def _note_uses(self) -> None:
        while self._used:
            used, self._used = self._used, {}
            try:
                await self._store.write(lambda tx, used=used: _touch(tx, used))
            except AutomagikError as error:  # a request must not fail for this; the next use tries again
                _log.warning("key_use_not_noted", keys=len(used), error=error.detail)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What bounds a key. `made_by` is the key that made it, where its limits or those of a key before it count."""

    expires_at: datetime | None = None
    rate_limit: str | None = None
    max_concurrent_runs: int | None = None
    made_by: str | None = None


def _limits_of(tx: Transaction, caller: Caller, wished: _Limits) -> _Limits:
    """The limits of a key that `caller` makes: its own where none are wished for, never looser ones."""
    if caller.key_id is None:
        return wished
    maker = tx.keys.find(caller.key_id)
    if maker is None or not _usable(maker, tx.now):
        raise _refusal()
    if maker.expires_at is not None and wished.expires_at is not None and wished.expires_at > maker.expires_at:
        raise Forbidden(
            "The key would outlive the one that makes it.", hint=f"Choose a time before {utc_text(maker.expires_at)}."
        )
    own_rate, rate = _parse_rate(maker.rate_limit), _parse_rate(wished.rate_limit)
    if own_rate is not None and rate is not None and rate > own_rate:
        raise Forbidden(
            "The key would have a looser rate limit than the one that makes it.",
            hint=f"Choose {maker.rate_limit} or less.",
        )
    own_runs, runs = maker.max_concurrent_runs, wished.max_concurrent_runs
    if own_runs is not None and runs is not None and runs > own_runs:
        raise Forbidden(
            "The key could have more background runs under way than the one that makes it.",
            hint=f"Choose {own_runs} or less.",
        )
    is_limited = maker.rate_limit is not None or own_runs is not None or maker.made_by is not None
    if is_limited and len(tx.keys.makers(maker)) + 1 >= _MOST_MAKERS:
        raise Forbidden(
            "The key that makes it descends from too many others whose limits count.",
            hint="Make the key with one of those.",
        )
    return _Limits(
        expires_at=wished.expires_at or maker.expires_at,
        rate_limit=wished.rate_limit or maker.rate_limit,
        max_concurrent_runs=runs if runs is not None else own_runs,
        made_by=maker.key_id if is_limited else None,
    )


def caller_of_key(tx: Transaction, key_id: str) -> Caller:
    """As `KeyRing.caller_of`, in a transaction."""
    row, makers = _with_makers(tx, tx.keys.find(key_id))
    if row is not None and _usable(row, tx.now):
        return _caller(row, makers)
    wrong = "is gone" if row is None else "was revoked" if row.revoked_at is not None else "has expired"
    raise Forbidden(
        f"The key {key_id} in whose name this is done {wrong}.", hint="Let somebody with a valid key take it over."
    )


def _hash(presented: str) -> bytes:
    return hashlib.sha256(presented.encode("utf-8", "backslashreplace")).digest()


def _refusal() -> Unauthorized:
    return Unauthorized(
        "The API key is unknown, expired or revoked.",
        hint="Send a valid key as 'x-api-key: KEY' or 'Authorization: Bearer KEY'.",
    )


def _usable(row: KeyRow, now: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or now < row.expires_at)


def _with_makers(tx: Transaction, row: KeyRow | None) -> tuple[KeyRow | None, list[KeyRow]]:
    return row, [] if row is None else tx.keys.makers(row)


def _caller(row: KeyRow, makers: Sequence[KeyRow]) -> Caller:
    return Caller(
        key_id=row.key_id,
        scopes=frozenset(row.scopes),
        user_id=row.user_id,
        rate_limit=row.rate_limit,
        shared_limits=tuple((maker.key_id, maker.rate_limit) for maker in makers if maker.rate_limit is not None),
    )


def _insert(
    tx: Transaction,
    name: str,
    scopes: tuple[str, ...],
    key: SecretStr,
    user_id: uuid.UUID | None,
    limits: _Limits,
    caller: Caller,
    request_id: str | None,
) -> KeyRow:
    secret = key.get_secret_value()
    row = tx.keys.create(
        name,
        prefix=secret[:_PREFIX_CHARS],
        key_hash=_hash(secret),
        scopes=scopes,
        user_id=user_id,
        rate_limit=limits.rate_limit,
        max_concurrent_runs=limits.max_concurrent_runs,
        made_by=limits.made_by,
        expires_at=limits.expires_at,
    )
    details: JsonObject = {"name": name, "scopes": [*scopes], "user_id": str(user_id) if user_id else None}
    tx.audit.append("key.create", row.key_id, caller=caller, request_id=request_id, details=details)
    return row


def _get(tx: Transaction, key_id: str, caller: Caller) -> KeyRow:
    row = tx.keys.find(key_id)
    if row is None or (caller.user_id is not None and row.user_id != caller.user_id):
        raise NotFound("key", key_id, hint="GET /api/v1/keys lists the keys that this key may see.")
    return row


def _usable_admin(tx: Transaction) -> KeyRow | None:
    cursor: str | None = None
    while True:
        page = tx.keys.list(limit=100, cursor=cursor)
        for row in page.data:
            if "admin" in row.scopes and row.user_id is None and _usable(row, tx.now):
                return row
        cursor = page.next_cursor
        if cursor is None:
            return None


def _touch(tx: Transaction, used: dict[str, datetime]) -> None:
    for key_id, at in used.items():
        tx.keys.touch(key_id, at)


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > 200 or any(unicodedata.category(char) in {"Cc", "Cs"} for char in name):
        raise InvalidInput(
            "A key's name is a text of 1 to 200 characters without control characters.", field=("body", "name")
        )


def _check_expiry(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is None:
        return
    if expires_at.tzinfo is None:
        raise InvalidInput("The time lacks its time zone.", field=("body", "expires_at"), hint="End it in 'Z' for UTC.")
    if expires_at <= now + timedelta(seconds=1):
        raise InvalidInput("The time has passed.", field=("body", "expires_at"))


def _check_runs(max_concurrent_runs: int | None) -> None:
    if max_concurrent_runs is not None and not 1 <= max_concurrent_runs <= _MOST_RUNS:
        raise InvalidInput(f"Choose 1 to {_MOST_RUNS} runs.", field=("body", "max_concurrent_runs"))


def _parse_rate(rate_limit: str | None) -> float | None:
    """Requests a second, or None for no limit."""
    if rate_limit is None:
        return None
    found = _RATE.fullmatch(rate_limit)
    if found is None:
        raise InvalidInput(
            f"'{rate_limit}' is no rate limit.",
            field=("body", "rate_limit"),
            hint="Write a number and a period: '10/second', '600/minute', '1000/hour' or '50000/day'.",
        )
    return int(found[1]) / _PERIOD_SECONDS[found[2]]
