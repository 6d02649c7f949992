"""SecretStore: secrets that the platform itself must read again (webhooks' signing keys), encrypted at rest."""

import asyncio
from dataclasses import dataclass

from pydantic import SecretStr

from automagik.errors import ConfigurationError, NotFound
from automagik.security.key_file import KeyFile
from automagik.security.sealing import PlatformKey, key_id_of, key_id_of_fingerprint, parse_keys, reseal, seal, unseal
from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.store.locks import FileLock

__all__ = ["SecretCheck", "SecretStore"]

_SETTING = "AUTOMAGIK_SECRET_KEY"
_LOST = "If the key is lost, so are they: `automagik secrets reset` deletes them, and what used them is given new ones."


@dataclass(frozen=True, slots=True)
class SecretCheck:
    """How the stored secrets are: where the key comes from, how many there are, which can't be opened.

    `behind` counts those that a `rotate` would put under the first key.
    """

    source: str
    fingerprint: str | None
    total: int
    behind: int
    unreadable: list[str]


class SecretStore:
    """Secrets by name. Each is encrypted under a data key of its own, which is encrypted under the platform's key.

    The key is the setting `AUTOMAGIK_SECRET_KEY` or the file `secret.key` in the data folder, made at the first start.
    The database names the key in use, so that a process with another one refuses to start. Where several keys are given,
    every one opens; new secrets are sealed by the one in use, until `rotate` makes that the first.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._setting = settings.secret_key
        self._file = KeyFile(settings.data_dir / "secret.key")
        self._keys: tuple[PlatformKey, ...] = ()

    async def open(self, *, make: bool = True) -> None:
        """Read the key, or make it where there is none yet; `make=False`: then go without, until there is one.

        Raises: ConfigurationError where the key is missing, can't be used, or is not that of the database.
        """
        recorded, total = await self._store.read(lambda tx: (tx.secrets.key(), tx.secrets.count()))
        # One server owns an SQLite database, so what no secret depends on may be settled anew there.
        unbound = recorded is None or (total == 0 and self._store.dialect == "sqlite")
        keys = await asyncio.to_thread(self._load)
        made = None
        if keys is None and not unbound:
            raise self._missing()
        if keys is None and make:
            made = await asyncio.to_thread(self._file.make)
            keys = (made,) if made is not None else await asyncio.to_thread(self._load)
        self._keys = keys or ()
        if unbound and not make:
            return
        if unbound and recorded not in self._fingerprints():
            recorded = await self._store.write(self._settle)
        if recorded not in self._fingerprints():
            if made is not None:  # another host made its key at the same moment, and was faster
                self._file.remove()
                raise self._missing()
            raise self._other()

    async def set(self, name: str, value: SecretStr) -> None:
        """Keep a secret under this name, in the place of the one that was there."""
        await self._store.write(lambda tx: self.put(tx, name, value))

    async def get(self, name: str) -> SecretStr:
        """The secret of this name. Raises NotFound."""
        return await self._store.read(lambda tx: self.take(tx, name))

    async def delete(self, name: str) -> None:
        """Forget a secret. Raises NotFound."""
        if not await self._store.write(lambda tx: tx.secrets.delete(name)):
            raise NotFound("secret", name)

    async def names(self) -> list[str]:
        """The names of all secrets, sorted."""
        return await self._store.read(lambda tx: tx.secrets.names())

    def put(self, tx: Transaction, name: str, value: SecretStr) -> None:
        """As `set`, in a transaction that writes."""
        fingerprint = tx.secrets.key(held="share") or tx.secrets.claim_key(self._first().fingerprint)
        key = self._find(key_id_of_fingerprint(fingerprint))
        tx.secrets.put(name, seal(key, name, value.get_secret_value().encode()))

    def take(self, tx: Transaction, name: str) -> SecretStr:
        """As `get`, in a transaction."""
        stored = tx.secrets.find(name)
        if stored is None:
            raise NotFound("secret", name)
        return SecretStr(self._open(name, stored.token))

    async def rotate(self) -> int:
        """How many secrets are under a new key now. Doing it again after a crash completes it.

        With the setting that key is the first of `NEW,OLD`, which every process must have by now. The key file gets a
        fresh key, and loses the old one when nothing needs it any more; a server that runs reads it anew.

        Raises: ConfigurationError where the key is in a file, but several hosts may use the database.
        """
        if self._setting is not None:
            return await self._store.write(self._reseal_all)
        if self._store.dialect == "postgresql":
            raise ConfigurationError(
                "With PostgreSQL a key is changed on every host: that in a file of this one would be unknown to others.",
                hint=f"Set {_SETTING} to NEW,OLD on every host and start them again (OLD is what secret.key holds, NEW "
                "comes from `automagik secrets generate`); then rotate, then set NEW alone.",
            )
        lock = FileLock(self._file.path.with_name("secret.lock"))
        await asyncio.to_thread(lock.acquire)
        try:
            return await self._rotate_file()
        finally:
            lock.release()

    async def check(self) -> SecretCheck:
        """Open every secret, and tell how that went."""

        def work(tx: Transaction) -> SecretCheck:
            total, behind, unreadable = 0, 0, list[str]()
            for stored in tx.secrets.all():
                total += 1
                behind += not self._keys or key_id_of(stored.token) != self._keys[0].key_id
                try:
                    self._open(stored.name, stored.token)
                except ConfigurationError:
                    unreadable.append(stored.name)
            return SecretCheck(self._source(), tx.secrets.key(), total, behind, unreadable)

        return await self._store.read(work)

    async def reset(self) -> int:
        """How many secrets were deleted, all of them, with the note of their key: the way out where it is lost."""
        return await self._store.write(lambda tx: tx.secrets.clear())

    # -- keys

    def _load(self) -> tuple[PlatformKey, ...] | None:
        if self._setting is not None:
            return parse_keys(self._setting.get_secret_value().split(","), _SETTING)
        return self._file.read()

    def _fingerprints(self) -> list[str]:
        return [key.fingerprint for key in self._keys]

    def _first(self) -> PlatformKey:
        if not self._keys:
            raise self._missing()
        return self._keys[0]

    def _find(self, key_id: bytes) -> PlatformKey:
        """The key of this id; where it is unknown, the file is read anew: another process may have changed the key."""
        for attempt in range(2):
            for key in self._keys:
                if key.key_id == key_id:
                    return key
            if attempt == 0 and self._setting is None:
                self._keys = self._load() or self._keys
        raise self._other()

    def _open(self, name: str, token: bytes) -> str:
        return unseal(self._find(key_id_of(token)), name, token).decode()

    def _settle(self, tx: Transaction) -> str:
        fingerprint = self._first().fingerprint
        settled = tx.secrets.claim_key(fingerprint)
        if settled != fingerprint and tx.secrets.count() == 0 and self._store.dialect == "sqlite":
            tx.secrets.move_key(fingerprint)
            return fingerprint
        return settled

    def _reseal_all(self, tx: Transaction) -> int:
        first = self._first()
        tx.secrets.claim_key(first.fingerprint)
        tx.secrets.key(held="update")  # whoever seals meanwhile waits, and then finds the new key
        changed = 0
        for stored in tx.secrets.all():
            key_id = key_id_of(stored.token)
            if key_id != first.key_id:
                tx.secrets.rewrap(stored.name, reseal(self._find(key_id), first, stored.name, stored.token))
                changed += 1
        tx.secrets.move_key(first.fingerprint)
        return changed

    async def _rotate_file(self) -> int:
        keys = await asyncio.to_thread(self._file.read)
        if keys is None:
            raise self._missing()
        if len(keys) == 1:  # else an earlier rotation was cut off: it is completed
            keys = (PlatformKey.new(), *keys)
            await asyncio.to_thread(self._file.replace, keys)
        self._keys = keys
        changed = await self._store.write(self._reseal_all)
        self._keys = keys[:1]
        await asyncio.to_thread(self._file.replace, self._keys)
        return changed

    # -- errors

    def _source(self) -> str:
        return _SETTING if self._setting is not None else str(self._file.path)

    def _missing(self) -> ConfigurationError:
        return ConfigurationError(
            f"The secrets in the database are encrypted with a key that is not here: there is no {self._file.path}.",
            hint=f"Put the file back, or set {_SETTING} to that key, the same on every host; the host that made it has it in "
            f"`secret.key` in its data folder. {_LOST}",
        )

    def _other(self) -> ConfigurationError:
        return ConfigurationError(
            f"The secrets in the database are encrypted with another key than that of {self._source()}.",
            hint=f"Set {_SETTING} to the key of the other hosts. To change it, set NEW,OLD on every host, start them again, "
            f"then `automagik secrets rotate`. {_LOST}",
        )
