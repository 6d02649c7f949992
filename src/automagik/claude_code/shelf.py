"""Shelf: the folder of our bare repositories: where each is, who may change it now, and how bytes of strangers come into it."""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from automagik.claude_code.bundles import BundleHeader, BundleRefused, read_header
from automagik.claude_code.git import GIT_COMMIT, STRICT, Git, GitFailed
from automagik.errors import NotFound, TooLarge
from automagik.settings import Settings
from automagik.store.locks import FileLock

__all__ = ["IMPORT_SECONDS", "TAKE_SECONDS", "Shelf", "checked_commit", "is_key"]

IMPORT_SECONDS: Final = 900.0
"""How long git may take over a whole repository."""
TAKE_SECONDS: Final = 300.0
"""How long it may take over what a run made."""

_FIELD = ("body", "repository")
_LOCK_POLL_SECONDS = 0.05
_BESIDES_BYTES = 1024**3


class Shelf:
    """The folder `data_dir/repositories`: `KEY.git` and `KEY.runs/RUN_ID.git`, each with a folder of bundles made of
    it, locks, and `incoming`."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.data_dir / "repositories"
        self.incoming = self.folder / "incoming"
        self.max_bytes = settings.max_artifact_bytes
        self.git = Git(self.folder)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """Make ready. Raises: ConfigurationError where git is missing."""
        await self.git.open()
        await asyncio.to_thread(self.incoming.mkdir, mode=0o700, exist_ok=True)

    def path(self, repository: str) -> Path:
        """The bare repository of this key. Raises NotFound."""
        path = self.folder / f"{repository}.git"
        if not is_key(repository) or not path.is_dir():
            raise NotFound("repository", repository[:80], hint="It is on another host, or its runs were deleted.")
        return path

    @asynccontextmanager
    async def locked(self, key: str) -> AsyncGenerator[None]:
        """Hold the repository against other tasks and other processes of this host."""
        mine = self._locks.get(key)
        if mine is None:
            mine = self._locks[key] = asyncio.Lock()
        async with mine:
            lock = FileLock(self.folder / f"{key}.lock")
            # Never in a thread that waits: cancelled here, it would take the lock afterwards and keep it.
            while not lock.acquire(wait=False):  # noqa: ASYNC110 - it is another process that frees it
                await asyncio.sleep(_LOCK_POLL_SECONDS)
            try:
                yield
            finally:
                lock.release()

    async def make(self, path: Path, *, borrow: Path | None = None) -> None:
        """A new, empty repository at `path`, whole at once; it has the objects of `borrow`, too."""
        fresh = self.incoming / f"{uuid.uuid4().hex}.git"
        await self.git.run("init", "--quiet", "--bare", "--object-format=sha1", str(fresh))
        if borrow is not None:
            # Relative, for the data folder may be moved: `path` is KEY.runs/RUN_ID.git.
            objects = f"../../../{borrow.name}/objects"
            await asyncio.to_thread((fresh / "objects" / "info").mkdir, exist_ok=True)
            await asyncio.to_thread((fresh / "objects" / "info" / "alternates").write_text, f"{objects}\n")
        await asyncio.to_thread(fresh.replace, path)

    async def fetch_bundle(self, path: Path, bundle: Path, *refspecs: str) -> None:
        """Have the bundle's objects, each of which is checked, and its refs as the refspecs say; a single one that it lacks is left
        out.

        Raises: BundleRefused; refs are then as they were.
        """
        header = await self.add_objects(path, bundle)
        names = {name for name, _ in header.refs}
        wanted = [spec for spec in refspecs if "*" in spec or spec[1:].split(":")[0] in names]
        try:
            # What it names is here now; whether all that hangs on it is, too, git looks at once more.
            await self.git.run(
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--", str(bundle)),
                *wanted,
                repository=path,
                allow=("file",),
                seconds=IMPORT_SECONDS,
            )
        except GitFailed as failed:
            raise _unusable(failed) from failed

    async def add_objects(self, path: Path, bundle: Path, *, seconds: float = IMPORT_SECONDS) -> BundleHeader:
        """The bundle's header; its objects, each of which is checked, are in the repository, and no ref is changed.

        Raises: BundleRefused; what git had written by then is gone.
        """
        header = await asyncio.to_thread(read_header, bundle, field=_FIELD)
        before = await self.packs(path)
        try:
            await self.git.run(
                *("index-pack", "--stdin", "--fix-thin", STRICT, f"--max-input-size={self.max_bytes}"),
                repository=path,
                stdin=(bundle, header.size),
                seconds=seconds,
                # Objects of ours that it builds on are written behind it.
                file_bytes=2 * self.max_bytes + _BESIDES_BYTES,
            )
        except GitFailed as failed:
            await self.drop_packs(path, besides=before)
            raise _unusable(failed) from failed
        return header

    async def packs(self, path: Path) -> set[str]:
        """The names of the files in which the repository has its packs, those that are being written among them."""
        folder = path / "objects" / "pack"
        return set(await asyncio.to_thread(os.listdir, folder)) if await asyncio.to_thread(folder.is_dir) else set()

    async def drop_packs(self, path: Path, *, besides: set[str]) -> None:
        """Delete the packs of a repository that nobody else writes to, but for these files: what was refused takes no room."""
        for name in await self.packs(path) - besides:
            await asyncio.to_thread((path / "objects" / "pack" / name).unlink, missing_ok=True)

    async def refs(self, path: Path, prefix: str) -> dict[str, str]:
        """The refs under `prefix`, without it, each with its object."""
        listed = await self.git.run("for-each-ref", "--format=%(objectname) %(refname)", prefix, repository=path)
        lines = [line.split(" ", 1) for line in listed.decode("utf-8", "replace").splitlines()]
        return {name.removeprefix(prefix): commit for commit, name in lines}

    async def has_commit(self, path: Path, commit: str) -> bool:
        """Whether there is such a commit."""
        return await self.git.line("rev-parse", "-q", "--verify", f"{commit}^{{commit}}", repository=path) is not None

    async def keep_base(self, path: Path, commit: str) -> None:
        """Keep the commit for those who begin from it. Raises NotFound."""
        if not await self.has_commit(path, commit):
            raise NotFound("commit", commit, hint="The repository was fetched anew and has it no more.")
        await self.git.run("update-ref", f"refs/base/{commit}", commit, repository=path)

    async def spool(self, chunks: AsyncIterator[bytes], file: Path) -> int:
        """Write the chunks to `file`; how many bytes they are. Raises TooLarge."""
        size = 0
        with await asyncio.to_thread(file.open, "wb") as spooled:
            async for chunk in chunks:
                size += len(chunk)
                if size > self.max_bytes:
                    raise _too_large(self.max_bytes)
                await asyncio.to_thread(spooled.write, chunk)
        return size


def checked_commit(commit: str) -> str:
    """The text, where it names a commit in full. Raises NotFound."""
    if len(commit) != GIT_COMMIT or not all(digit in "0123456789abcdef" for digit in commit):
        raise NotFound("commit", commit[:80])
    return commit


def is_key(repository: str) -> bool:
    """Whether the text can be the key of a repository of ours."""
    return len(repository) == 41 and repository.isascii() and repository.isalnum()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The bundle is over {limit} bytes.", hint="Bundle one branch only, or raise AUTOMAGIK_MAX_ARTIFACT_BYTES."
    )


def _unusable(failed: GitFailed) -> BundleRefused:
    return BundleRefused(
        f"The bundle can't be used: {failed.detail}",
        field=_FIELD,
        hint="Is it whole, and does `git fsck` find no fault in its repository? Make it again.",
    )
