"""Sources: repositories that are imported into ours, from bundles that were sent and places that the settings allow."""

import asyncio
import hashlib
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from automagik.claude_code.bundles import BundleHeader, BundleRefused, read_header
from automagik.claude_code.git import GIT_COMMIT, GitFailed, config_environment, is_ref_name
from automagik.claude_code.places import Place, Places
from automagik.claude_code.shelf import IMPORT_SECONDS, Shelf, is_key
from automagik.errors import InvalidInput, TooLarge, nearest
from automagik.settings import Settings

__all__ = ["Source", "Sources"]

_FIELD = ("body", "repository")
_REF_FIELD = ("body", "ref")
_MAX_REFS = 20_000


@dataclass(frozen=True, slots=True)
class Source:
    """What a run begins from: our repository, by its key, and a commit of it."""

    repository: str
    base_commit: str
    branch: str | None = None
    """The branch that the commit was found by."""
    default_branch: str | None = None
    """The branch that is the source's default, or was checked out there."""


class Sources:
    """Imports repositories onto a shelf."""

    def __init__(self, shelf: Shelf, settings: Settings) -> None:
        self._shelf = shelf
        self._git = shelf.git
        self._places = Places(settings)

    async def import_bundle(self, bundle: Path, *, ref: str | None = None) -> Source:
        """The source that an uploaded bundle is; the same bytes give the same repository on every host.

        `ref` is a branch, a tag or a commit; without, the bundle's `HEAD`.

        Raises: BundleRefused for what is broken, partial or too large; InvalidInput for a `ref` that is not in it.
        """
        size = (await asyncio.to_thread(bundle.stat)).st_size
        if size > self._shelf.max_bytes:
            raise TooLarge(
                f"The bundle is over {self._shelf.max_bytes} bytes.",
                hint="Bundle one branch only, or raise AUTOMAGIK_MAX_ARTIFACT_BYTES.",
            )
        header = await asyncio.to_thread(read_header, bundle, field=_FIELD)
        _check_source(header)
        key = "b" + (await asyncio.to_thread(_digest, bundle))[:40]
        async with self._shelf.locked(key):
            path = self._shelf.folder / f"{key}.git"
            if not path.is_dir():
                await self._make_from_bundle(path, bundle)
            await asyncio.to_thread(path.touch)
            return await self._source(key, path, ref, head=dict(header.refs).get("HEAD"))

    async def imported(self, digest: str, *, ref: str | None = None) -> Source | None:
        """The source that `import_bundle` made of the bundle whose SHA-256 this is; None where it is not on this host.

        Raises: InvalidInput for a `ref` that is not in it.
        """
        key = f"b{digest[:40]}"
        if not is_key(key):
            return None
        async with self._shelf.locked(key):
            path = self._shelf.folder / f"{key}.git"
            if not await asyncio.to_thread(path.is_dir):
                return None
            await asyncio.to_thread(path.touch)
            head = await self._git.line("rev-parse", "-q", "--verify", "refs/source/HEAD", repository=path)
            return await self._source(key, path, ref, head=head)

    async def import_place(self, place: str, *, ref: str | None = None) -> Source:
        """The source at `place`, fetched anew: a folder under a configured root, or a URL of a configured host.

        Raises: InvalidInput that names the setting by which it would be allowed, or a `ref` that is not there; GitFailed.
        """
        found = await asyncio.to_thread(self._places.check, place, field=_FIELD)
        key = "p" + hashlib.sha256(found.location.encode()).hexdigest()[:40]
        async with self._shelf.locked(key):
            path = self._shelf.folder / f"{key}.git"
            if not path.is_dir():
                await self._shelf.make(path)
            head = await self._fetch_place(path, found)
            await asyncio.to_thread(path.touch)
            return await self._source(key, path, ref, head=head)

    def check_place(self, place: str, *, field: Sequence[str | int] = _FIELD) -> Place:
        """The place, where the settings allow it. Raises InvalidInput as `import_place`. Blocks shortly."""
        return self._places.check(place, field=field)

    async def _make_from_bundle(self, path: Path, bundle: Path) -> None:
        fresh = self._shelf.incoming / f"{uuid.uuid4().hex}.git"
        try:
            await self._git.run("init", "--quiet", "--bare", "--object-format=sha1", str(fresh))
            await self._shelf.fetch_bundle(
                fresh,
                bundle,
                "+refs/heads/*:refs/source/heads/*",
                "+refs/tags/*:refs/source/tags/*",
                "+HEAD:refs/source/HEAD",
            )
            await asyncio.to_thread(fresh.replace, path)
        finally:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)

    async def _fetch_place(self, path: Path, place: Place) -> str | None:
        """Fetch all branches and tags; the branch that is checked out there, or is its default."""
        env: dict[str, str] = {}
        if not place.is_folder:
            env = config_environment(await self._git.host_credentials())
        try:
            listed = await self._git.run(
                "ls-remote",
                "--symref",
                "--",
                place.location,
                "HEAD",
                env=env,
                allow=place.protocols,
                host_home=not place.is_folder,
            )
            await self._git.run(
                *("fetch", "--quiet", "--no-tags", "--prune", "--no-write-fetch-head", "--no-auto-maintenance"),
                "--",
                place.location,
                "+refs/heads/*:refs/source/heads/*",
                "+refs/tags/*:refs/source/tags/*",
                repository=path,
                env=env,
                allow=place.protocols,
                host_home=not place.is_folder,
                seconds=IMPORT_SECONDS,
            )
        except GitFailed as failed:
            raise GitFailed(
                f"The repository can't be fetched: {failed.detail}",
                hint="Does it exist, and do this host's git credentials reach it? Try `git ls-remote` there.",
                stderr=failed.stderr,
            ) from failed
        for line in listed.decode("utf-8", "replace").splitlines():
            if line.startswith("ref: refs/heads/"):
                return line.removeprefix("ref: ").split("\t")[0]
        return None

    async def _source(self, key: str, path: Path, ref: str | None, *, head: str | None) -> Source:
        """The commit that `ref` names, or where there is none the source's HEAD; it is kept as a base."""
        heads = await self._shelf.refs(path, "refs/source/heads/")
        candidates = [head.removeprefix("refs/heads/")] if head is not None and head.startswith("refs/") else []
        candidates += [name for name in ("main", "master", *heads) if head is None or heads.get(name) == head]
        default = next((name for name in candidates if name in heads), None)
        if ref is not None:
            commit, branch = await self._named(path, ref, heads)
        else:
            commit, branch = heads[default] if default is not None else head, default
        if commit is None or not await self._shelf.has_commit(path, commit):
            raise InvalidInput(
                "The repository has no commit to begin from.", field=_FIELD, hint="Commit something, or name a `ref`."
            )
        await self._shelf.keep_base(path, commit)
        return Source(key, commit, branch, default)

    async def _named(self, path: Path, ref: str, heads: dict[str, str]) -> tuple[str, str | None]:
        name = ref.removeprefix("refs/heads/")
        if name in heads:
            return heads[name], name
        if is_ref_name(ref):
            tag = f"refs/source/tags/{ref.removeprefix('refs/tags/')}"
            commit = await self._git.line("rev-parse", "-q", "--verify", f"{tag}^{{commit}}", repository=path)
            if commit is not None:
                return commit, None
        if 7 <= len(ref) <= GIT_COMMIT and all(digit in "0123456789abcdef" for digit in ref):
            commit = await self._git.line("rev-parse", "-q", "--verify", f"{ref}^{{commit}}", repository=path)
            # Only what the source itself has: another run's commits are in the same repository.
            if commit is not None and await self._git.line(
                "for-each-ref",
                "--count=1",
                "--format=%(refname)",
                f"--contains={commit}",
                "refs/source",
                repository=path,
            ):
                return commit, None
        close = nearest(ref, heads)
        raise InvalidInput(
            f"The repository has no branch, tag or commit {ref[:80]!r}.",
            field=_REF_FIELD,
            hint=f"Did you mean '{close}'?" if close else f"It has: {', '.join(list(heads)[:10]) or 'no branches'}.",
        )


def _check_source(header: BundleHeader) -> None:
    if header.prerequisites:
        raise BundleRefused(
            "The bundle is partial: it builds on commits that are not in it.",
            field=_FIELD,
            hint="Make a whole one: git bundle create repository.bundle --all",
        )
    if not any(name == "HEAD" or name.startswith(("refs/heads/", "refs/tags/")) for name, _ in header.refs):
        raise BundleRefused("The bundle holds no branch.", field=_FIELD, hint="Name a branch, or use --all.")
    if len(header.refs) > _MAX_REFS:
        raise BundleRefused(f"The bundle has over {_MAX_REFS} refs.", field=_FIELD, hint="Bundle one branch only.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
