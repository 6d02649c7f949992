"""ArtifactStore: bytes that outlive a host, under their SHA-256; kept as long as somebody uses them."""

import asyncio
import hashlib
import io
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO

from automagik.artifacts.objects import Objects
from automagik.artifacts.recent import RecentBytes
from automagik.errors import ArtifactDamaged, NotFound, ServiceUnavailable, TooLarge
from automagik.settings import Settings
from automagik.store import Store
from automagik.store.artifacts import LONGEST_PUT, ArtifactRow
from automagik.types import Caller, Clock

__all__ = ["Artifact", "ArtifactStore", "PrunedArtifacts"]

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TYPE = re.compile(r"[A-Za-z0-9-]{1,40}/[A-Za-z0-9.+_-]{1,100}", re.ASCII)
_UNKNOWN_TYPE = "application/octet-stream"
_OBJECT = re.compile(r"[0-9a-f]{2}/(?P<digest>[0-9a-f]{64})\.(?P<stamp>\d{8}T\d{12}Z)", re.ASCII)
_STAMP = "%Y%m%dT%H%M%S%fZ"

_READS = 4
"""How many artefacts are read whole at once: each is in memory."""
_CHECK_HOLDS_SECONDS = 10.0
_CHECK_SECONDS = 5.0
_SMALL_BYTES = 64 * 1024
"""Up to here a hash is made in the event loop: a thread would cost more."""
_BATCH = 200

_DAMAGED = "Restore the artefact store from a backup, or send the bytes again."


@dataclass(frozen=True, slots=True)
class Artifact:
    """Bytes in the store: their SHA-256 in hexadecimal, how many they are, and what they were said to be."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class PrunedArtifacts:
    """What was deleted: unused artefacts with the sum of their sizes, bytes without a row, uses whose session or run is gone."""

    artifacts: int = 0
    size: int = 0
    orphans: int = 0
    lost_uses: int = 0


class ArtifactStore:
    """Artefacts in the data folder or an object store, their rows and uses in the database.

    Bytes are written before their row, under a name that no later row of the same digest has, for it has the moment in it: a row
    never lacks its bytes, whoever is killed, and whoever removes the bytes of a deleted row can't meet those of another.
    """

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._objects = Objects(settings)
        self._recent = RecentBytes(settings.artifact_cache_bytes)
        self._reads = asyncio.Semaphore(_READS)
        self._max_bytes = settings.max_artifact_bytes
        self._spool = settings.data_dir
        self._checking: asyncio.Task[ArtifactDamaged | ServiceUnavailable | None] | None = None
        self._checked_at = 0.0

    @property
    def place(self) -> str:
        """Where the bytes are, for people."""
        return self._objects.place

    async def open(self) -> None:
        """Make ready. Raises: ConfigurationError when the settings name no store that can be used."""
        await self._objects.open()

    async def close(self) -> None:
        """End what is being read."""
        if self._checking is not None and not self._checking.done():
            self._checking.cancel()
            await asyncio.wait([self._checking])
        await self._recent.close()

    async def check(self) -> None:
        """Return when the store can be written and read, and has what the database says it has.

        Raises:
            ServiceUnavailable: it can't be written or read.
            ArtifactDamaged: the bytes of the artefact that was wanted last are not there.
        """
        await self._objects.check()
        row = await self._store.read(lambda tx: tx.artifacts.newest())
        if row is not None and await self._objects.size(_name(row)) != row.size:
            raise ArtifactDamaged(
                f"The artefact {row.digest} is not there.",
                hint="All hosts must use one artefact store: set AUTOMAGIK_ARTIFACTS_URL.",
            )

    async def check_lately(self) -> None:
        """As `check`, for those who ask every few seconds: what was found holds for 10 seconds, and they wait 5 at the most."""
        loop = asyncio.get_running_loop()
        checking = self._checking
        if checking is None or (checking.done() and self._clock.monotonic() - self._checked_at >= _CHECK_HOLDS_SECONDS):
            self._checked_at = self._clock.monotonic()
            checking = self._checking = loop.create_task(self._fault(), name="artefact store check")
        done, _ = await asyncio.wait([checking], timeout=_CHECK_SECONDS)
        if not done or checking.cancelled():
            raise ServiceUnavailable("The artefact store does not answer in time.", hint="Check it.")
        fault = checking.result()
        if fault is not None:
            raise type(fault)(fault.detail, hint=fault.hint)

    async def put(self, data: bytes | AsyncIterator[bytes], *, media_type: str, used_by: str | None = None) -> Artifact:
        """The artefact of these bytes, stored; equal bytes are stored once, under the media type that came first.

        What is no media type (a tool said it) is kept as `application/octet-stream`.

        It is kept as long as `used_by` (`session:UUID`, `run:RUN_ID`) is not released; without, as long as retention says.

        Raises:
            TooLarge: more bytes than an artefact may have.
            ServiceUnavailable: the artefact store or the database is away.
        """
        if _TYPE.fullmatch(media_type) is None:
            media_type = _UNKNOWN_TYPE
        if isinstance(data, bytes):
            self._check_size(len(data))
            digest = await _digest_of(data)
            artifact = await self._keep(digest, len(data), data, media_type, used_by)
            self._recent.add(digest, data)
            return artifact
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(
            dir=self._spool
        ) as file:  # it has no name: nothing is left of it, whoever is killed
            digest, size = await self._take(data, file)
            return await self._keep(digest, size, file, media_type, used_by)

    async def find(self, digest: str) -> Artifact:
        """The artefact. Raises NotFound."""
        return _artifact(await self._row(digest))

    async def exists(self, digest: str) -> bool:
        """Whether there is such an artefact."""
        try:
            await self._row(digest)
        except NotFound:
            return False
        return True

    async def get(self, digest: str) -> bytes:
        """The artefact's bytes, which are checked.

        Raises:
            NotFound: there is none.
            ArtifactDamaged: the bytes are gone, or are others than were stored.
            ServiceUnavailable: the artefact store or the database is away.
        """
        return await self._recent.get(_checked(digest), self._read_whole)

    async def stream(self, digest: str) -> AsyncGenerator[bytes]:
        """The artefact's bytes in pieces; the last is given only when all are found to be what was stored.

        Raises: as `get`; where bytes are missing, before the first piece.
        """
        held = self._recent.find(digest)
        if held is not None:
            yield held
            return
        row = await self._row(digest)
        hasher = hashlib.sha256()
        last = b""
        async for chunk in self._objects.read(_name(row), expected=row.size):
            hasher.update(chunk)
            if last:
                yield last
            last = chunk
        _check_hash(hasher.hexdigest(), row.digest)
        yield last

    async def stream_range(self, digest: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """The bytes from `start` to before `end`, in pieces. A part can't be checked; the whole can, against the digest.

        Raises: as `stream`.
        """
        row = await self._row(digest)
        async for chunk in self._objects.read(_name(row), expected=row.size, start=start, end=end):
            yield chunk

    async def use(self, digest: str, used_by: str) -> None:
        """Keep the artefact as long as `used_by` is not released. Raises NotFound."""
        digest = _checked(digest)
        await self._store.write(lambda tx: tx.artifacts.get_wanted(digest, used_by=used_by))

    async def release(self, used_by: str) -> int:
        """How many artefacts `used_by` held, and holds no more. They stay as long as retention says."""
        return await self._store.write(lambda tx: tx.artifacts.release([used_by]))

    async def discard(self, run_id: str, *, since: datetime) -> int:
        """How many artefacts were deleted that had been stored since `since` for this run, which was refused, and for nobody else."""
        rows = await self._store.write(lambda tx: tx.artifacts.discard(run_id, since))
        if rows:
            await self._objects.delete([_name(row) for row in rows])
        return len(rows)

    async def is_visible(self, digest: str, caller: Caller) -> bool:
        """Whether the caller may look into a session or run that uses the artefact; `admin` may see all."""
        if _DIGEST.fullmatch(digest) is None:
            return False
        if caller.allows("admin") and caller.user_id is None:
            return await self.exists(digest)
        in_sessions = caller.allows("sessions:read") or caller.allows("sessions:write")
        in_runs = caller.allows("runs:read") or caller.allows("runs:write")
        return await self._store.read(
            lambda tx: tx.artifacts.is_visible(digest, user_id=caller.user_id, in_sessions=in_sessions, in_runs=in_runs)
        )

    async def prune(self, older_than: timedelta, *, dry_run: bool = False) -> PrunedArtifacts:
        """Delete artefacts that nobody has used or stored for `older_than`, and what crashes have left; what it was.

        A dry run only counts the unused ones.
        """
        before = self._clock.now() - older_than
        if dry_run:
            count, size = await self._store.read(lambda tx: tx.artifacts.count_unused(before))
            return PrunedArtifacts(count, size)
        lost = await self._release_lost()
        count = size = 0
        while rows := await self._store.write(lambda tx: tx.artifacts.delete_unused(before, limit=_BATCH)):
            await self._objects.delete([_name(row) for row in rows])
            count += len(rows)
            size += sum(row.size for row in rows)
        orphans = await self._sweep_orphans() + await self._objects.sweep_unfinished()
        return PrunedArtifacts(count, size, orphans, lost)

    async def _fault(self) -> ArtifactDamaged | ServiceUnavailable | None:
        """What `check` finds wrong."""
        try:
            await self.check()
        except (ArtifactDamaged, ServiceUnavailable) as wrong:
            return wrong
        return None

    # -- storing

    async def _keep(
        self, digest: str, size: int, data: bytes | IO[bytes], media_type: str, used_by: str | None
    ) -> Artifact:
        row = await self._store.read(lambda tx: tx.artifacts.find(digest))
        if row is not None:
            row = await self._store.write(lambda tx: tx.artifacts.want(digest, used_by=used_by))
        if row is not None:
            if await self._objects.size(_name(row)) != size:  # somebody lost them: here they are again
                await self._objects.put(_name(row), data)
            return _artifact(row)
        while True:
            made_at = self._clock.now()
            name = _object_name(digest, made_at)
            if not isinstance(data, bytes):
                data.seek(0)
            await self._objects.put(name, data)
            row = await self._store.write(
                lambda tx, made_at=made_at: tx.artifacts.add(
                    digest, size=size, media_type=media_type, made_at=made_at, used_by=used_by
                )
            )
            if row is not None:
                break
        if _name(row) != name:  # another was first: theirs are kept
            await self._objects.delete([name])
        return _artifact(row)

    async def _take(self, chunks: AsyncIterator[bytes], file: IO[bytes]) -> tuple[str, int]:
        """Write the chunks to the file; their digest and size."""
        hasher = hashlib.sha256()
        size = 0

        def write(chunk: bytes) -> None:
            hasher.update(chunk)
            file.write(chunk)

        async for chunk in chunks:
            size += len(chunk)
            self._check_size(size)
            await asyncio.to_thread(write, chunk)
        await asyncio.to_thread(file.flush)
        file.seek(0)
        return hasher.hexdigest(), size

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLarge(
                f"An artefact may have {self._max_bytes} bytes at the most.",
                hint="Send less, or raise AUTOMAGIK_MAX_ARTIFACT_BYTES.",
            )

    # -- reading

    async def _row(self, digest: str) -> ArtifactRow:
        digest = _checked(digest)
        row = await self._store.read(lambda tx: tx.artifacts.find(digest))
        if row is None:
            raise _unknown(digest)
        return row

    async def _read_whole(self, digest: str) -> bytes:
        async with self._reads:
            row = await self._row(digest)
            hasher = hashlib.sha256()
            whole = io.BytesIO()  # which gives its buffer away without a copy
            async for chunk in self._objects.read(_name(row), expected=row.size):
                hasher.update(chunk)
                whole.write(chunk)
            _check_hash(hasher.hexdigest(), row.digest)
            return whole.getvalue()

    # -- pruning

    async def _release_lost(self) -> int:
        """End the uses of sessions and runs that are gone: a crash between the use and the row that it was for leaves them."""
        before = self._clock.now() - 2 * LONGEST_PUT
        after: str | None = ""
        ended = 0
        while after is not None:
            lost, after = await self._store.read(
                lambda tx, after=after: tx.artifacts.lost_holders(before, after=after, limit=_BATCH)
            )
            if lost:
                ended += await self._store.write(lambda tx, lost=lost: tx.artifacts.release(lost, before=before))
        return ended

    async def _sweep_orphans(self) -> int:
        """Remove bytes whose row is not there, once no row can come for them any more; how many objects."""
        before = self._clock.now() - 2 * LONGEST_PUT
        swept = 0
        async for objects in self._objects.walk():
            old: dict[str, tuple[str, datetime]] = {}
            for found in objects:
                match = _OBJECT.fullmatch(found.name)
                if match is not None and (made_at := _moment(match["stamp"])) is not None and made_at < before:
                    old[found.name] = (match["digest"], made_at)
            digests: Sequence[str] = sorted({digest for digest, _ in old.values()})
            if not digests:
                continue
            made = await self._store.read(lambda tx, digests=digests: tx.artifacts.made_at(digests))
            orphans = [name for name, (digest, made_at) in old.items() if made.get(digest) != made_at]
            await self._objects.delete(orphans)
            swept += len(orphans)
        return swept


async def _digest_of(data: bytes) -> str:
    if len(data) <= _SMALL_BYTES:
        return hashlib.sha256(data).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()


def _checked(digest: str) -> str:
    if _DIGEST.fullmatch(digest) is None:
        raise _unknown(digest[:100])
    return digest


def _unknown(digest: str) -> NotFound:
    return NotFound(
        "artifact", digest, hint="An artefact is named by the SHA-256 of its bytes, in 64 hexadecimal digits."
    )


def _check_hash(found: str, digest: str) -> None:
    if found != digest:
        raise ArtifactDamaged(f"The bytes of the artefact {digest} are not those that were stored.", hint=_DAMAGED)


def _artifact(row: ArtifactRow) -> Artifact:
    return Artifact(row.digest, row.size, row.media_type)


def _name(row: ArtifactRow) -> str:
    return _object_name(row.digest, row.created_at)


def _object_name(digest: str, made_at: datetime) -> str:
    return f"{digest[:2]}/{digest}.{made_at.astimezone(UTC).strftime(_STAMP)}"


def _moment(stamp: str) -> datetime | None:
    try:
        return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
