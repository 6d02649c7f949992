"""Collecting: taking out of a run's workspace what it made, while it works and when it has ended."""

import asyncio
import hashlib
import itertools
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import structlog

from automagik.claude_code.archives import collected
from automagik.claude_code.bundles import BundleRefused
from automagik.claude_code.commits import extract_commits, left_out
from automagik.claude_code.executor import Executor
from automagik.claude_code.history import Taken
from automagik.claude_code.house import House
from automagik.claude_code.workspaces import BUNDLE_TYPE
from automagik.errors import AutomagikError, NotFound, RunFailed
from automagik.store.artifacts import run_holder
from automagik.store.rows import RunRow
from automagik.store.workflows import ExecutionRow
from automagik.types import JsonObject

__all__ = ["CONVERSATION_TYPE", "Collecting"]

_log = structlog.stdlib.get_logger(__name__)

CONVERSATION_TYPE = "application/x-ndjson"

_EXTRACT_SECONDS = 120.0
_MAX_CONVERSATION_BYTES = 256 * 1024**2
_MAX_CONVERSATION_FILES = 10_000
_CHUNK_BYTES = 256 * 1024
_REST = 4
"""How much longer than an attempt that failed took no further one is made: at most a fifth of the time goes into them."""


@dataclass(slots=True)
class Collecting:
    """One run's harvest: commits and the uncommitted tree by git, the CLI's conversation as it keeps it."""

    house: House
    executor: Executor
    row: RunRow
    known: ExecutionRow
    repository: str
    base_branch: str | None
    keeps: bool
    """Whether what is in the workspace is kept: not where the workflow says that it changes nothing."""
    owner: str
    emit: Callable[[str, JsonObject], None]
    describe: Callable[[JsonObject], Awaitable[None]]
    """Keeps the `workspace` with the run, so that it is known whatever becomes of this host."""
    taken: Taken | None = None
    told: set[str] = field(default_factory=set[str])
    """Commits that an event tells of already."""
    _last: str | None = None
    _refused: tuple[str, BundleRefused] | None = None
    """The SHA-256 of what was refused last, and why: it is not looked at again."""
    _not_before: float = 0.0
    """When to try again (`Clock.monotonic`): what takes long only to be refused must not keep the host busy."""
    _left_out: list[str] = field(default_factory=list[str])
    _taking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def checkpoint(self) -> None:
        """Take out what there is now. What can't be done now is done at the next time, or at the end."""
        clock = self.house.clock
        began = clock.monotonic()
        if began < self._not_before:
            return
        try:
            await self._take()
        except AutomagikError as later:
            self._not_before = clock.monotonic() + _REST * (clock.monotonic() - began)
            _log.warning("run_not_taken_out_yet", run_id=self.row.run_id, reason=later.detail)

    async def finish(self) -> None:
        """Take out what there is at the end, and keep the conversation.

        Raises: AutomagikError where what the run made can't be had. Where its commits are refused, what stands in its folder is
        had all the same, as what was not committed.
        """
        try:
            await self._take()
        except (BundleRefused, RunFailed) as refused:
            try:
                await self._take(tree_on=self._sound)
            except AutomagikError as neither:
                raise refused from neither
            if self.taken is None or self.taken.wip_commit is None:
                raise
            raise BundleRefused(
                refused.detail,
                field=("bundle",),
                hint="What stood in its folder is kept: `automagik runs diff RUN --wip`.",
            ) from refused
        finally:
            if self._left_out:
                detail = f"Not everything came out of the workspace as it was: {'; '.join(self._left_out)}."
                self.emit("warning", {"code": "left_out", "detail": detail})
            await self._keep_conversation()

    @property
    def _sound(self) -> str:
        """The last commit of the run that was taken, else the one that it began from."""
        taken = self.taken.head_commit if self.taken is not None else self.known.head_commit
        return taken or self.known.base_commit or ""

    @property
    def workspace(self) -> JsonObject:
        """The run's `workspace`, as it is known by now: where nothing was taken out yet, as a process before this one left it."""
        nothing: JsonObject = {
            "base_commit": self.known.base_commit,
            "head_commit": None,
            "commits": [],
            "files_changed": 0,
            "insertions": 0,
            "deletions": 0,
            "descends_from_base": True,
            "wip_commit": None,
            "branches": {},
        }
        before = cast("JsonObject", (self.row.details or {}).get("workspace") or {})
        if before.get("base_commit") == self.known.base_commit:
            nothing |= before
        made = self.taken.to_json() if self.taken is not None else nothing
        return {
            **made,
            "repository": self.repository,
            "branch": self.known.branch,
            "base_branch": self.base_branch,
        }

    async def _take(self, *, tree_on: str | None = None) -> None:
        if not self.keeps:
            return
        async with self._taking:
            run_id = self.row.run_id
            with tempfile.TemporaryDirectory(dir=self.house.settings.data_dir) as folder:
                file = Path(folder) / "run.bundle"
                await self._extract(file, tree_on)
                digest = await asyncio.to_thread(_sha256, file)
                if self._refused is not None and self._refused[0] == digest:
                    raise self._refused[1]
                try:
                    taken = await self.house.repositories.take(
                        run_id,
                        self.repository,
                        self.known.base_commit or "",
                        _chunks(file),
                        branch=self.known.branch or "",
                    )
                except BundleRefused as refused:
                    self._refused = (digest, refused)
                    raise
            self.taken = taken
            if taken.bundle is not None:
                artifact = await self.house.artifacts.put(
                    _chunks(taken.bundle), media_type=BUNDLE_TYPE, used_by=run_holder(run_id)
                )
                if artifact.digest != self._last:
                    await self._update(bundle=artifact.digest, head_commit=taken.head_commit)
                    await self.describe(self.workspace)
                    self._last = artifact.digest
            for commit in taken.commits:
                document = commit.to_json()
                name = str(document["commit"])
                if name not in self.told:
                    self.told.add(name)
                    self.emit("commit", document)

    async def _extract(self, file: Path, tree_on: str | None) -> None:
        script = extract_commits(
            base_commit=self.known.base_commit or "",
            workspace=self.executor.inside(self.row.run_id).workspace,
            tree_on=tree_on,
        )
        done = await self.executor.once(
            self.row.run_id,
            script.command,
            env=script.env,
            writable=script.writable,
            timeout_seconds=_EXTRACT_SECONDS,
            output=file,
            output_bytes=self.house.settings.max_artifact_bytes,
        )
        self._left_out = left_out(done.exit.stderr)
        if done.timed_out or done.exit.code != 0:
            raise RunFailed(
                f"Its workspace could not be read: {done.exit.stderr.strip()[-300:] or 'it took too long'}",
                outcome="sandbox_error",
                hint="What was taken out of it before is kept: `automagik runs diff`.",
            )

    async def _keep_conversation(self) -> None:
        """Keep the files in which the CLI writes down its conversation, and nothing else of its folder: a run could have left
        settings there for the next one."""
        with tempfile.SpooledTemporaryFile(max_size=4 * 1024**2) as spool:
            try:
                await collected(
                    self.executor.get(self.row.run_id, "credentials", "projects"),
                    spool,
                    max_bytes=_MAX_CONVERSATION_BYTES,
                )
            except (NotFound, AutomagikError) as none:
                _log.info("conversation_not_kept", run_id=self.row.run_id, reason=none.detail)
                return
            kept = await asyncio.to_thread(_conversation_only, spool, str(self.known.cli_session_id))
        if kept is not None:
            artifact = await self.house.artifacts.put(
                kept, media_type=CONVERSATION_TYPE, used_by=run_holder(self.row.run_id)
            )
            await self._update(conversation=artifact.digest)

    async def _update(self, **changes: object) -> None:
        run_id, owner = self.row.run_id, self.owner
        await self.house.store.write(lambda tx: tx.executions.update(run_id, owner, **changes))


def _conversation_only(spool: "tempfile.SpooledTemporaryFile[bytes]", session_id: str) -> bytes | None:
    """The one file of the session; None where there is none among the first files, for a run may have made any number."""
    with tarfile.open(fileobj=spool, mode="r|") as archive:
        for member in itertools.islice(archive, _MAX_CONVERSATION_FILES):
            if member.isreg() and Path(member.name).name == f"{session_id}.jsonl":
                file = archive.extractfile(member)
                return None if file is None else file.read()
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, _CHUNK_BYTES):
            yield chunk
