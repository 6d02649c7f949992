"""Repositories: bare git repositories of ours, into which sources are imported and what runs made is taken."""

import asyncio
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Collection
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from automagik.claude_code.bundles import BundleHeader, BundleRefused, read_header
from automagik.claude_code.git import GitFailed, is_ref_name
from automagik.claude_code.history import MAX_OBJECTS, History, Taken, too_many_objects
from automagik.claude_code.shelf import IMPORT_SECONDS, TAKE_SECONDS, Shelf, checked_commit, is_key
from automagik.claude_code.sources import Source, Sources
from automagik.errors import Conflict, NotFound, TooLarge
from automagik.settings import Settings
from automagik.types import Clock

__all__ = ["MAX_FILE_BYTES", "Repositories"]

_log = structlog.stdlib.get_logger(__name__)

MAX_FILE_BYTES: Final = 100 * 1024 * 1024
"""The largest file that is taken out of a workspace, committed or not."""

_FIELD = ("body", "repository")
_GUIDES = ("CLAUDE.md", "AGENTS.md")
_GUIDE_BYTES = 64 * 1024
_MAX_TAKEN_REFS = 500
_MAX_TAGS = 1000
_MANY_PACKS = 40
_MUCH_BYTES = 32 * 1024 * 1024
_TAKEN = "taken.bundle"
"""The bytes that a run's repository was filled from last, among the bundles of it."""


class Repositories:
    """The bare repositories under `data_dir/repositories`, each shared by any number of runs.

    `KEY.git` holds what was imported (`refs/source/…`) and what runs begin from (`refs/base/COMMIT`). What a run made is in a
    repository of the run's own, `KEY.runs/RUN_ID.git`, under `refs/runs/RUN_ID/…`; it borrows the objects of the first. So a run
    that names objects of another one, whose digests it got to know, finds that they are not there. Every process of a host may use
    all of them at once: a lock guards each.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        take_seconds: float = TAKE_SECONDS,
    ) -> None:
        self._shelf = Shelf(settings)
        self._clock = clock
        self._max_file_bytes = max_file_bytes
        self._take_seconds = take_seconds
        self.git = self._shelf.git
        self.sources = Sources(self._shelf, settings)
        self.history = History(self.git)

    async def open(self) -> None:
        """Make ready. Raises: ConfigurationError where git is missing."""
        await self._shelf.open()

    def path(self, repository: str) -> Path:
        """The bare repository of this key. Raises NotFound."""
        return self._shelf.path(repository)

    async def import_bundle(self, bundle: Path, *, ref: str | None = None) -> Source:
        """As `Sources.import_bundle`."""
        return await self.sources.import_bundle(bundle, ref=ref)

    async def import_place(self, place: str, *, ref: str | None = None) -> Source:
        """As `Sources.import_place`."""
        return await self.sources.import_place(place, ref=ref)

    # -- what goes into a sandbox

    async def base_bundle(
        self, source: Source, *, wip_commit: str | None = None, besides: Collection[str] = ()
    ) -> Path:
        """A file with the whole history of the source's commit and of its default branch, and the tags in it; `make_workspace`
        reads it.

        It is made once for each commit, which may be one that an earlier run made. With `wip_commit` the workspace can begin with
        what that had not committed. `besides` are further commits that are to be in it.

        Raises: NotFound for a commit that is not on this host.
        """
        path = self.path(source.repository)
        commit = checked_commit(source.base_commit)
        async with self._shelf.locked(source.repository):
            await asyncio.to_thread(path.touch)
            await self._keep_base(path, commit)
            wanted = {f"refs/base/{commit}": commit}
            for further in (*([wip_commit] if wip_commit is not None else []), *besides):
                await self._keep_base(path, checked_commit(further))
                wanted[f"refs/base/{further}"] = further
            heads = await self._shelf.refs(path, "refs/source/heads/")
            default = source.default_branch or ""
            if is_ref_name(default) and default in heads:
                wanted[f"refs/source/heads/{default}"] = heads[default]
                await self._keep_base(path, heads[default])  # the run may merge it
            wanted |= await self._tags(path, commit)
            digest = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:40]
            return await self._bundle(path, f"base-{digest}.bundle", list(wanted))

    async def guide(self, source: Source) -> str | None:
        """The text of the base commit's `CLAUDE.md`, else of its `AGENTS.md`, up to 64 KB; None where it has neither.

        Only a plain file counts: a link could lead anywhere.
        """
        path = self.path(source.repository)
        listed = await self.git.run(
            "ls-tree", "-z", checked_commit(source.base_commit), "--", *_GUIDES, repository=path
        )
        blobs: dict[str, str] = {}
        for entry in listed.decode("utf-8", "replace").split("\0"):
            meta, _, name = entry.partition("\t")
            if meta.startswith("100"):
                blobs[name] = meta.split(" ")[2]
        for name in _GUIDES:
            if name in blobs:
                try:
                    content = await self.git.run(
                        "cat-file", "blob", blobs[name], repository=path, max_bytes=_GUIDE_BYTES
                    )
                except TooLarge:
                    return f"(`{name}` is over {_GUIDE_BYTES // 1024} KB; read the parts that you need.)"
                return content.decode("utf-8", "replace").replace("\x00", "")
        return None

    # -- what comes out of a sandbox

    async def take(
        self, run_id: str, repository: str, base_commit: str, bundle: AsyncIterator[bytes], *, branch: str
    ) -> Taken:
        """What a run made so far, by the bundle that `extract_commits` printed in its sandbox (no bytes: nothing was made).

        The bundle is a stranger's: only branches and our own two refs are taken from it, objects are checked, and what was taken
        before stays where it is refused. `Taken.bundle` is a file with the same bytes, for the artefact store: `take` on another
        host gives the same from them.

        Raises: BundleRefused; NotFound where the repository, or the base commit in it, is not on this host.
        """
        shared = self.path(repository)
        if not await self._shelf.has_commit(shared, checked_commit(base_commit)):
            raise NotFound("commit", base_commit, hint="Bring its base here first: `import_base`.")
        path = self._run_path(repository, run_id)
        file = self._shelf.incoming / f"{run_id}.{uuid.uuid4().hex}.bundle"
        try:
            size = await self._shelf.spool(bundle, file)
            async with self._shelf.locked(f"{repository}.{run_id}"):
                await asyncio.to_thread(shared.touch)
                if not await asyncio.to_thread(path.is_dir):
                    await asyncio.to_thread(path.parent.mkdir, mode=0o700, exist_ok=True)
                    await self._shelf.make(path, borrow=shared)
                if size == 0:
                    await self._settle(path, run_id, {"head": base_commit})
                    return await self.history.taken(
                        path, base_commit, head=base_commit, wip=None, branches={}, bundle=None, others=[]
                    )
                return await self._take(path, run_id, base_commit, file, branch)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def import_base(self, source: Source, bundle: AsyncIterator[bytes]) -> None:
        """Have the source's repository on this host, by the bytes of the `base_bundle` that another host made of it.

        Raises: BundleRefused.
        """
        if not is_key(source.repository):
            raise NotFound("repository", source.repository[:80])
        commit = checked_commit(source.base_commit)
        file = self._shelf.incoming / f"{uuid.uuid4().hex}.bundle"
        try:
            await self._shelf.spool(bundle, file)
            await asyncio.to_thread(read_header, file, field=_FIELD)
            async with self._shelf.locked(source.repository):
                path = self._shelf.folder / f"{source.repository}.git"
                if not path.is_dir():
                    await self._shelf.make(path)
                await self._shelf.fetch_bundle(
                    path,
                    file,
                    *(f"+refs/{kind}/*:refs/{kind}/*" for kind in ("base", "source/heads", "source/tags")),
                )
                if not await self._shelf.has_commit(path, commit):
                    raise BundleRefused("The bundle does not hold the commit that the run begins from.", field=_FIELD)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def keep(self, repository: str, commit: str) -> None:
        """Have the commit, of the source or of a run here, among those that runs may begin from. Raises NotFound."""
        path = self.path(repository)
        async with self._shelf.locked(repository):
            await self._keep_base(path, checked_commit(commit))

    async def has_base(self, repository: str, commit: str) -> bool:
        """Whether the repository is on this host, and the commit in it."""
        try:
            return await self._shelf.has_commit(self.path(repository), checked_commit(commit))
        except NotFound:
            return False

    async def has(self, run_id: str, repository: str, bundle: str) -> bool:
        """Whether what the run made is on this host, as the bundle holds it whose SHA-256 this is."""
        if not is_key(repository):
            return False
        path = self._run_path(repository, run_id)
        return await asyncio.to_thread(_sha256, _bundles(path) / _TAKEN) == bundle

    def run_path(self, repository: str, run_id: str) -> Path:
        """The bare repository of what the run made. Raises NotFound where it is not on this host."""
        path = self._run_path(repository, run_id)
        if not path.is_dir():
            raise NotFound("repository", run_id, hint="The run made nothing yet, or it is on another host.")
        return path

    async def diff(self, run_id: str, repository: str, base_commit: str, *, wip: bool = False) -> bytes:
        """What the run changed, as a patch; with `wip` also what it had not committed.

        Raises: NotFound where it is not on this host; TooLarge.
        """
        path = self.run_path(repository, run_id)
        head = await self._ref(path, run_id, "wip") if wip else None
        head = head or await self._ref(path, run_id, "head")
        if head is None:
            raise NotFound("diff", run_id, hint="The run made nothing yet, or it is on another host.")
        return await self.history.diff(path, checked_commit(base_commit), head)

    async def bundle(self, run_id: str, repository: str, base_commit: str, *, wip: bool = False) -> Path:
        """A bundle of the run's commits since the base, as `refs/runs/RUN_ID/head` (and `/wip`), for `runs apply`.

        Raises: NotFound where it is not on this host; Conflict where there is nothing in it.
        """
        path = self.run_path(repository, run_id)
        head, uncommitted = await self._ref(path, run_id, "head"), await self._ref(path, run_id, "wip")
        if head is None:
            raise NotFound("bundle", run_id, hint="The run made nothing yet, or it is on another host.")
        tips = {"head": head} | ({"wip": uncommitted} if wip and uncommitted is not None else {})
        tips = {name: tip for name, tip in tips.items() if tip != base_commit}
        if not tips:
            raise Conflict("The run made no commit.", code="nothing_made", hint="There is nothing to apply.")
        lines = [*(f"refs/runs/{run_id}/{name}" for name in tips), f"^{checked_commit(base_commit)}"]
        async with self._shelf.locked(f"{repository}.{run_id}"):
            return await self._bundle(path, f"{'-'.join(tips)}-{'-'.join(tips.values())}.bundle", lines)

    # -- letting go

    async def runs(self) -> dict[str, list[str]]:
        """The runs of which this host keeps something, by repository."""
        return await asyncio.to_thread(_runs_in, self._shelf.folder)

    async def forget(self, run_ids: Collection[str]) -> int:
        """How many of these runs (they were deleted) had something here; nothing of them is left."""
        gone = 0
        for repository, kept in (await self.runs()).items():
            for run_id in set(kept) & set(run_ids):
                async with self._shelf.locked(f"{repository}.{run_id}"):
                    path = self._run_path(repository, run_id)
                    await asyncio.to_thread(_remove_tree, path)
                    await asyncio.to_thread(_remove_tree, _bundles(path))
                gone += 1
        return gone

    async def prune(self, unused_for: timedelta) -> int:
        """How many repositories were deleted: those that hold nothing of any run and were not used for so long.

        What is left over of imports that were killed goes, and many small packs become one.
        """
        before = self._clock.now().timestamp() - unused_for.total_seconds()
        await asyncio.to_thread(_remove_old, self._shelf.incoming, before)
        deleted = 0
        for repository, kept in (await self.runs()).items():
            async with self._shelf.locked(repository):
                path = self._shelf.folder / f"{repository}.git"
                modified = (await asyncio.to_thread(path.stat)).st_mtime
                if not kept and modified < before:
                    for gone in (path, _bundles(path), self._shelf.folder / f"{repository}.runs"):
                        await asyncio.to_thread(_remove_tree, gone)
                    deleted += 1
                    continue
                if await asyncio.to_thread(_count_packs, path) > _MANY_PACKS:
                    # Without pruning: repositories of runs may borrow what nothing here names any more.
                    await self.git.run("repack", "-Adlq", repository=path, seconds=IMPORT_SECONDS)
                    await asyncio.to_thread(os.utime, path, (modified, modified))
                await asyncio.to_thread(_remove_old, _bundles(path), before)
        return deleted

    # -- inside

    def _run_path(self, repository: str, run_id: str) -> Path:
        _check_run_id(run_id)
        if not is_key(repository):
            raise NotFound("repository", repository[:80])
        return self._shelf.folder / f"{repository}.runs" / f"{run_id}.git"

    async def _keep_base(self, path: Path, commit: str) -> None:
        """Keep the commit in the shared repository, where it is brought to if it is one of a run's. Raises NotFound."""
        if not await self._shelf.has_commit(path, commit):
            for run in await asyncio.to_thread(lambda: sorted(path.with_suffix(".runs").glob("*.git"), reverse=True)):
                if await self._shelf.has_commit(run, commit):
                    await self.git.run(
                        *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"),
                        "--",
                        str(run),
                        f"+refs/runs/{run.stem}/*:refs/continued/{run.stem}/*",
                        repository=path,
                        allow=("file",),
                        seconds=IMPORT_SECONDS,
                    )
                    break
        await self._shelf.keep_base(path, commit)

    async def _bundle(self, path: Path, name: str, wanted: list[str]) -> Path:
        """The bundle of these refs under this name, made where it is not there yet."""
        folder = _bundles(path)
        made = folder / name
        if await asyncio.to_thread(made.is_file):
            return made
        await asyncio.to_thread(folder.mkdir, mode=0o700, exist_ok=True)
        fresh = folder / f"{name}.{uuid.uuid4().hex}"
        try:
            await self.git.run(
                *("bundle", "create", "--quiet", "--version=2", str(fresh), "--stdin"),
                repository=path,
                stdin="\n".join(wanted).encode(),
                seconds=IMPORT_SECONDS,
            )
            await asyncio.to_thread(fresh.replace, made)
        finally:
            await asyncio.to_thread(fresh.unlink, missing_ok=True)
        return made

    async def _tags(self, path: Path, commit: str) -> dict[str, str]:
        """Tags in the commit's history: tools make version numbers of them."""
        listed = await self.git.run(
            *("for-each-ref", f"--count={_MAX_TAGS}", "--sort=-creatordate", "--format=%(objectname) %(refname)"),
            f"--merged={commit}",
            "refs/source/tags",
            repository=path,
        )
        lines = [line.split(" ", 1) for line in listed.decode("utf-8", "replace").splitlines()]
        return {name: tag for tag, name in lines if is_ref_name(name.removeprefix("refs/source/tags/"))}

    async def _ref(self, path: Path, run_id: str, name: str) -> str | None:
        return await self.git.line("rev-parse", "-q", "--verify", f"refs/runs/{run_id}/{name}", repository=path)

    async def _take(self, path: Path, run_id: str, base: str, file: Path, branch: str) -> Taken:
        _check_taken(await asyncio.to_thread(read_header, file, field=("bundle",)))
        before = await self._shelf.packs(path)
        found = dict((await self._shelf.add_objects(path, file, seconds=self._take_seconds)).refs)
        heads = "refs/heads/"
        branches = {name.removeprefix(heads): tip for name, tip in found.items() if name.startswith(heads)}
        head = branches.get(branch) or found.get("refs/automagik/HEAD") or base
        wip = found.get("refs/automagik/wip")
        shared = path.parent.with_suffix(".git")
        others = [*(await self._shelf.refs(shared, "refs/source/heads/")).values()]
        kept = _bundles(path) / _TAKEN
        try:
            await self.history.check_objects(path, base, list(found.values()), max_file_bytes=self._max_file_bytes)
            taken = await self.history.taken(
                path, base, head=head, wip=wip, branches=branches, bundle=kept, others=others
            )
        except BundleRefused:
            await self._shelf.drop_packs(path, besides=before)
            raise
        settled = {"head": head} | ({"wip": wip} if wip is not None else {})
        settled |= {f"branches/{_flat(name)}": tip for name, tip in branches.items() if name != branch}
        await self._settle(path, run_id, settled)
        await asyncio.to_thread(kept.parent.mkdir, mode=0o700, exist_ok=True)
        await asyncio.to_thread(file.replace, kept)
        if await asyncio.to_thread(_is_untidy, path, kept):
            try:
                await self.git.run("gc", "--quiet", "--prune=now", repository=path)
            except GitFailed as failed:  # it is had all the same, in more files
                _log.warning("run_not_tidied", run_id=run_id, reason=failed.detail)
        return taken

    async def _settle(self, path: Path, run_id: str, refs: dict[str, str]) -> None:
        """Have exactly these refs under `refs/runs/RUN_ID/`, in one transaction."""
        prefix = f"refs/runs/{run_id}/"
        gone = [name for name in await self._shelf.refs(path, prefix) if name not in refs]
        lines = [f"delete {prefix}{name}" for name in gone]
        lines += [f"update {prefix}{name} {commit}" for name, commit in refs.items()]
        if lines:
            await self.git.run("update-ref", "--stdin", repository=path, stdin="\n".join([*lines, ""]).encode())


def _check_taken(header: BundleHeader) -> None:
    if header.objects > MAX_OBJECTS:
        raise too_many_objects()
    if len(header.refs) > _MAX_TAKEN_REFS:
        raise BundleRefused(f"The run made over {_MAX_TAKEN_REFS} branches.", field=("bundle",))
    for name, _ in header.refs:
        if name not in {"refs/automagik/wip", "refs/automagik/HEAD"} and not (
            name.startswith("refs/heads/") and is_ref_name(name.removeprefix("refs/heads/"))
        ):
            raise BundleRefused(f"The bundle holds {name[:80]!r}, which a run does not make.", field=("bundle",))


def _check_run_id(run_id: str) -> None:
    if not run_id.startswith("run_") or not run_id.isascii() or not run_id.replace("_", "").isalnum():
        raise NotFound("run", run_id[:80])


def _flat(branch: str) -> str:
    """The branch's name as one part of a ref's name, so that `a` and `a/b` (after a rename) don't meet."""
    return branch.replace("%", "%25").replace("/", "%2F")


def _count_packs(path: Path) -> int:
    return len(list((path / "objects" / "pack").glob("*.pack")))


def _is_untidy(path: Path, latest: Path) -> bool:
    """Whether the packs of a run's repository are many, or hold far more than was taken last: what it has no more."""
    sizes = [pack.stat().st_size for pack in (path / "objects" / "pack").glob("*.pack")]
    return len(sizes) > _MANY_PACKS or sum(sizes) > 4 * latest.stat().st_size + _MUCH_BYTES


def _sha256(file: Path) -> str | None:
    """The digest of a file; None where there is none."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _bundles(path: Path) -> Path:
    """The folder of bundles that were made of the repository."""
    return path.with_suffix(".bundles")


def _runs_in(folder: Path) -> dict[str, list[str]]:
    return {
        path.stem: sorted(run.stem for run in path.with_suffix(".runs").glob("*.git"))
        for path in sorted(folder.glob("*.git"))
    }


def _remove_old(folder: Path, before: float) -> None:
    """Remove what nobody wrote to since `before` (Unix time) and for an hour."""
    before = min(before, time.time() - 3600)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.stat().st_mtime < before:
            _remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
