"""Workspaces: what goes into the workspaces of runs, and what came out of them, whichever host they ran on."""

import asyncio
import contextlib
import hashlib
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import structlog

from automagik.artifacts import ArtifactStore
from automagik.claude_code.git import GitFailed
from automagik.claude_code.history import Taken
from automagik.claude_code.places import Places
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.sources import Source
from automagik.claude_code.work import RepositorySource
from automagik.errors import ArtifactDamaged, Conflict, InvalidInput, NotFound, TooLarge
from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.store.artifacts import run_holder
from automagik.store.rows import RunRow
from automagik.store.workflows import ExecutionRow
from automagik.types import TERMINAL, Caller, JsonObject, RunStatus

__all__ = ["BUNDLE_TYPE", "Beginning", "StoredBundle", "Workspaces"]

_log = structlog.stdlib.get_logger(__name__)

BUNDLE_TYPE = "application/x-git-bundle"

_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A git bundle in the artefact store."""

    digest: str
    commit: str
    """The commit of its HEAD."""
    size: int


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run's workspace begins with."""

    source: Source
    """Its `base_commit` is what the run's own commits are counted from."""
    commit: str
    """What is checked out."""
    wip_commit: str | None = None
    """Whose files lie there uncommitted."""
    branches: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further branches of the run's."""
    again: bool = False
    """Whether the run had begun before, on a host that is gone, and something of it was taken out."""


class Workspaces:
    """Bundles in the artefact store, and this host's own repositories, filled from them when they are asked for."""

    def __init__(self, settings: Settings, store: Store, artifacts: ArtifactStore, repositories: Repositories) -> None:
        self._settings = settings
        self._store = store
        self._artifacts = artifacts
        self._repositories = repositories
        self._places = Places(settings)

    async def receive(self, chunks: AsyncIterator[bytes]) -> StoredBundle:
        """A bundle that a caller uploads, checked and then stored: nothing is kept of one that is refused. It stays as long as a run
        uses it, else as retention says.

        Raises: InvalidInput for what is no bundle with a HEAD of its own; TooLarge.
        """
        with tempfile.TemporaryDirectory(dir=self._settings.data_dir) as folder:
            path = Path(folder) / "upload.bundle"
            await self._spool(chunks, path)
            source = await self._repositories.import_bundle(path)
            artifact = await self._artifacts.put(_bytes_of(path), media_type=BUNDLE_TYPE)
        return StoredBundle(artifact.digest, source.base_commit, artifact.size)

    async def source(self, asked: RepositorySource) -> Source:
        """The repository of a run on this host, at the commit that the work begins at.

        Raises: InvalidInput for a place that the settings don't allow, or a ref that is not there; NotFound for an unknown bundle.
        """
        if asked.bundle is not None:
            return await self._imported(asked.bundle, asked.ref)
        return await self._repositories.import_place(cast("str", asked.place), ref=asked.ref)

    async def beginning(
        self, asked: RepositorySource, *, former: ExecutionRow | None, earlier: ExecutionRow | None
    ) -> Beginning:
        """What a run begins with: what was taken out of its own `former` execution, which is lost; else what the run made that it
        goes on with, whose execution is `earlier`; else the source.

        Raises: as `source` and `restored`.
        """
        source = await self._source_of(asked, former or earlier)
        if former is not None and former.bundle is not None and former.base_commit is not None:
            taken = await self.restored(former, source)
            source = replace(source, base_commit=former.base_commit)
            return Beginning(source, taken.head_commit, taken.wip_commit, taken.branches, again=True)
        if earlier is not None and earlier.base_commit is not None:
            taken = await self.restored(earlier, source)
            source = replace(source, base_commit=taken.head_commit)
            return Beginning(source, taken.head_commit, taken.wip_commit)
        return Beginning(source, source.base_commit)

    async def check(self, asked: RepositorySource) -> None:
        """Return where a run may be accepted for it. Raises as `source`, for what can be known without fetching anything.

        Who names a bundle has it, or was told its digest by somebody who has: nothing else is asked.
        """
        if asked.bundle is None:
            await asyncio.to_thread(self._places.check, cast("str", asked.place), field=("body", "repository", "place"))
            return
        try:
            found = await self._artifacts.find(asked.bundle)
        except NotFound:
            found = None
        if found is None or found.media_type != BUNDLE_TYPE:
            raise InvalidInput(
                "There is no such bundle.",
                field=("body", "repository", "bundle"),
                hint="Upload one: POST /api/v1/repositories.",
            )

    async def diff(self, run_id: str, caller: Caller, *, wip: bool = False) -> bytes:
        """What a run changed, as a unified diff; with `wip` up to the tree that was not committed.

        Raises: NotFound; Conflict for a run of which nothing was taken out (yet).
        """
        execution, repository = await self._taken(run_id, caller)
        return await self._repositories.diff(run_id, repository, execution.base_commit or "", wip=wip)

    async def bundle(self, run_id: str, caller: Caller) -> AsyncGenerator[bytes]:
        """The run's commits as a git bundle that needs its base commit. Raises as `diff`."""
        execution, _ = await self._taken(run_id, caller, restore=False)
        return self._artifacts.stream(cast("str", execution.bundle))

    async def _taken(self, run_id: str, caller: Caller, *, restore: bool = True) -> tuple[ExecutionRow, str]:
        row, execution = await self._store.read(lambda tx: (tx.runs.find(run_id), tx.executions.find(run_id)))
        if row is None or caller.user_id not in {None, row.user_id}:
            raise NotFound("run", run_id, hint="GET /api/v1/runs lists the runs that this key may see.")
        if row.kind != "workflow":
            raise Conflict(f"The run '{run_id}' is an agent's answer: it has no workspace.", code="no_workspace")
        if execution is None or execution.bundle is None or execution.base_commit is None:
            ended = RunStatus(row.status) in TERMINAL
            raise Conflict(
                f"Nothing was taken out of the run '{run_id}'{'' if ended else ' yet'}.",
                code="nothing_taken_out",
                hint="It ended before it made anything." if ended else "Ask again in a minute.",
            )
        repository = _repository(row)
        if restore and not await self._repositories.has(run_id, repository, execution.bundle):
            source = await self._source_of(_asked(row), execution)
            repository = source.repository
            await self.restored(execution, source)
        return execution, repository

    async def keep_base(self, run_id: str, source: Source, bundle: Path) -> JsonObject:
        """What a run's execution is to remember (in its `place`) of the source, whose `base_bundle` this file is: it is kept among
        the artefacts, so that hosts which can't fetch the place have what the run begins from. For the next run from the same
        commit nothing of it is read or sent.

        It is empty where that can't be: without a store of artefacts that other hosts read, and of a repository that is too large.
        """
        if self._settings.artifacts_url is None:
            return {}
        digest = await asyncio.to_thread(_digest_beside, bundle)
        if not await self._held(digest, run_holder(run_id)):
            try:
                kept = await self._artifacts.put(_bytes_of(bundle), media_type=BUNDLE_TYPE, used_by=run_holder(run_id))
            except TooLarge as too_large:
                _log.warning("base_not_kept", run_id=run_id, reason=too_large.detail)
                return {}
            digest = kept.digest
        return {"base": {"bundle": digest, "source": asdict(source)}}

    async def _held(self, digest: str, holder: str) -> bool:
        """Whether the artefact is there, with its bytes; it is held then."""
        try:
            await self._artifacts.use(digest, holder)
            async for _ in self._artifacts.stream_range(digest, 0, 1):
                pass
        except (NotFound, ArtifactDamaged):
            return False
        return True

    async def _source_of(self, asked: RepositorySource, execution: ExecutionRow | None) -> Source:
        """As `source`; where the place can't be fetched on this host, what the execution began from is the source."""
        try:
            return await self.source(asked)
        except (InvalidInput, GitFailed) as refused:
            base = None if execution is None else _kept_base(execution)
            if base is None:
                raise
            _log.info("place_not_fetched", place=asked.place, reason=refused.detail)
            return Source(**cast("dict[str, Any]", base["source"]))

    async def restored(self, execution: ExecutionRow, source: Source) -> Taken:
        """What was taken out of a run, in this host's repository of `source`, whichever host it ran on.

        Raises: NotFound where the commit that it began from can't be had any more.
        """
        base = execution.base_commit or ""
        if not await self._repositories.has_base(source.repository, base):
            await self._restore_base(execution, base, source)
        nothing: AsyncGenerator[bytes] = _nothing()
        bundle = nothing if execution.bundle is None else self._artifacts.stream(execution.bundle)
        return await self._repositories.take(
            execution.run_id, source.repository, base, bundle, branch=execution.branch or ""
        )

    async def _restore_base(self, execution: ExecutionRow, base: str, source: Source) -> None:
        """Have the commit here that a run began from: as it was kept, or as an earlier run made it, which the run went on with."""
        run_id, kept = execution.run_id, _kept_base(execution)
        if kept is not None:
            bundle = self._artifacts.stream(str(kept["bundle"]))
            await self._repositories.import_base(replace(source, base_commit=base), bundle)
            return

        def find(tx: Transaction) -> tuple[RunRow | None, ExecutionRow | None]:
            row = tx.runs.find(run_id)
            resumed = None if row is None else _work(row).get("resume_of")
            return row, None if resumed is None else tx.executions.find(str(resumed))

        _, earlier = await self._store.read(find)
        if earlier is not None and earlier.base_commit is not None:
            await self.restored(earlier, source)
            await self._repositories.keep(source.repository, base)
            return
        raise NotFound(
            "commit",
            base,
            hint="The run began from it, but its source has it no more, and no earlier run that is kept has made it.",
        )

    async def _spool(self, chunks: AsyncIterator[bytes], path: Path) -> None:
        size, most = 0, self._settings.max_artifact_bytes
        with await asyncio.to_thread(path.open, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > most:
                    raise TooLarge(
                        f"A bundle may have {most} bytes at the most.",
                        hint="Bundle one branch only, or raise AUTOMAGIK_MAX_ARTIFACT_BYTES.",
                    )
                await asyncio.to_thread(file.write, chunk)

    async def _imported(self, digest: str, ref: str | None) -> Source:
        await self._artifacts.find(digest)
        known = await self._repositories.sources.imported(digest, ref=ref)
        if known is not None:
            return known
        with tempfile.TemporaryDirectory(dir=self._settings.data_dir) as folder:
            path = Path(folder) / "upload.bundle"
            with path.open("wb") as file:
                async for chunk in self._artifacts.stream(digest):
                    file.write(chunk)
            return await self._repositories.import_bundle(path, ref=ref)


async def _bytes_of(path: Path) -> AsyncGenerator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


def _digest_beside(bundle: Path) -> str:
    """The SHA-256 of a bundle that never changes, found once and written beside it."""
    beside = bundle.with_name(f"{bundle.name}.sha256")
    with contextlib.suppress(FileNotFoundError):
        found = beside.read_text(encoding="ascii")
        is_of_it = beside.stat().st_mtime_ns >= bundle.stat().st_mtime_ns
        if is_of_it and len(found) == hashlib.sha256().digest_size * 2:
            return found
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    fresh = beside.with_name(f"{beside.name}.{uuid.uuid4().hex}")
    fresh.write_text(digest, encoding="ascii")
    fresh.replace(beside)
    return digest


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield b""


def _asked(row: RunRow) -> RepositorySource:
    return RepositorySource(**cast("dict[str, str | None]", _work(row)["repository"]))


def _work(row: RunRow) -> JsonObject:
    return cast("JsonObject", (row.input or {}).get("work") or {})


def _kept_base(execution: ExecutionRow) -> JsonObject | None:
    """What `Workspaces.keep_base` gave."""
    return cast("JsonObject | None", execution.place.get("base"))


def _repository(row: RunRow) -> str:
    workspace = cast("JsonObject", (row.details or {}).get("workspace") or {})
    return str(workspace.get("repository") or "")
