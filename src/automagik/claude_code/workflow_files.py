"""Workflows: those of the platform, those in the team's folder, those made through the API; broken ones with the reason."""

import asyncio
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import structlog

from automagik.claude_code.image_names import may_use, refused
from automagik.claude_code.workflow import Workflow
from automagik.claude_code.workflow_parts import FILE_NAMES
from automagik.errors import Conflict, InvalidInput, NotFound
from automagik.memory import write_again
from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.store.workflows import WorkflowRow
from automagik.types import Caller, Clock

__all__ = ["BUILTIN_FOLDER", "CheckedWorkflow", "Origin", "WorkflowInfo", "Workflows"]

_log = structlog.stdlib.get_logger(__name__)

Origin = Literal["builtin", "folder", "api"]
"""Where a workflow comes from."""

BUILTIN_FOLDER: Final = Path(__file__).parent / "workflows"
"""Where the platform's own workflows are."""

_READ = (*FILE_NAMES, "Dockerfile")
_MAX_FILE_BYTES = 1_000_000
_FIELD = ("body", "files")

_Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class WorkflowInfo:
    """A workflow as shown in lists; `error` is why it can't be used."""

    name: str
    source: Origin
    location: str
    """Its folder, for administrators; empty for one made through the API."""
    overrides: Origin | None
    """Whose place it takes: a folder of the team's may have the name of one of the platform's."""
    active: bool
    revision: int
    """Grows with each change of one made through the API: what `If-Match` compares; else 0."""
    files: Mapping[str, str]
    workflow: Workflow | None
    error: str | None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CheckedWorkflow:
    """A workflow that could be used, and what is odd about it all the same."""

    workflow: Workflow
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    source: Origin
    folder: Path
    files: Mapping[str, str]
    problem: str | None = None


class Workflows:
    """All workflows of this process, as they are now: an edit in the folder or in another process is seen without a restart.

    A folder of the team's takes the place of a workflow of the platform that has its name, for whoever can write there has the
    server. One made through the API never does: a key that may run `implement` must get what it was given for.
    """

    def __init__(self, *, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._folder = settings.workflows_folder
        self._store = store
        self._clock = clock
        self._files: dict[str, WorkflowInfo] = {}
        self._hidden: list[WorkflowInfo] = []
        self._rows: dict[str, WorkflowInfo] = {}
        self._signature: _Signature | None = None
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._leave = (store.signals.listen("changed", self._hear), store.signals.on_gap(self._expire))

    async def open(self) -> None:
        """Read all workflows; a broken one stops nothing."""
        await self.refresh(max_age_seconds=0)

    async def close(self) -> None:
        """Hear of no more changes."""
        for leave in self._leave:
            leave()

    async def refresh(self, *, max_age_seconds: float = 2.0) -> None:
        """Take over what changed, where somebody said so or the last look is older than `max_age_seconds`."""
        if self._clock.monotonic() - self._looked_at < max_age_seconds:
            return
        async with self._looking:
            if self._clock.monotonic() - self._looked_at < max_age_seconds:
                return
            self._looked_at = self._clock.monotonic()
            signature = await asyncio.to_thread(_signature, self._folder)
            if signature != self._signature:
                found = await asyncio.to_thread(
                    lambda: [*_read(BUILTIN_FOLDER, "builtin"), *_read(self._folder, "folder")]
                )
                self._adopt_files(found)
                self._signature = signature
            self._adopt_rows(await self._store.read(lambda tx: tx.workflows.all()))

    # -- asking

    def infos(self) -> list[WorkflowInfo]:
        """All of them by name, broken ones with the reason. Those whose place another one takes are not among them."""
        infos = [*self._files.values(), *self._rows.values(), *self._hidden]
        return sorted(infos, key=lambda info: (info.name, info.error is not None))

    def info(self, name: str) -> WorkflowInfo:
        """One of them, broken or not. Raises NotFound with the nearest name."""
        found = self._files.get(name) or self._rows.get(name) or next((i for i in self._hidden if i.name == name), None)
        if found is None:
            raise NotFound("workflow", name, known=self.names())
        return found

    def names(self) -> "list[str]":
        """The names of all that can be run, sorted."""
        infos = [*self._files.values(), *self._rows.values()]
        return sorted(info.name for info in infos if info.workflow is not None and info.active)

    def get(self, name: str) -> Workflow:
        """The workflow of that name. Raises NotFound with the nearest name, also for one that is broken or switched off."""
        info = self._files.get(name) or self._rows.get(name)
        if info is None or info.workflow is None or not info.active:
            hint = None
            if info is not None:
                hint = (
                    f"It is broken: `automagik workflows show {name}` says why."
                    if info.workflow is None
                    else "It is switched off: `automagik workflows update NAME --active` switches it on."
                )
            raise NotFound("workflow", name, known=self.names(), hint=hint)
        return info.workflow

    async def find(self, name: str) -> Workflow:
        """The same as it is now: one that was written to the folder a moment ago is looked for once more."""
        await self.refresh()
        if name not in self._files and name not in self._rows:
            await self.refresh(max_age_seconds=0)
        return self.get(name)

    async def validate(
        self, name: str, files: Mapping[str, str], *, caller: Caller, field: Sequence[str | int] = _FIELD
    ) -> CheckedWorkflow:
        """The workflow that these files would be, with warnings; nothing is stored. Raises InvalidInput, as `Workflow.parse`."""
        workflow = self._parse(name, files, field)
        known = await self._memories(caller)
        warnings = [
            f"The prompt uses '{variable}', which is neither a variable of the workflow nor a memory: in a folder of the server "
            "it stays empty; create refuses it until it is in [variables] of workflow.toml."
            for variable in workflow.unknown_variables
            if variable not in known
        ]
        if not workflow.allowed_tools:
            warnings.append("No tool is allowed: the agent can only read. Add allowed_tools.json.")
        if workflow.report_schema is None:
            warnings.append("There is no report.schema.json: its report is a text.")
        if workflow.budget_usd is None:
            warnings.append("It has no [budget]: what a run costs is limited by the caller's budgets only.")
        return CheckedWorkflow(workflow, tuple(warnings))

    # -- changing

    async def create(
        self,
        name: str,
        files: Mapping[str, str],
        *,
        caller: Caller,
        request_id: str | None = None,
        field: Sequence[str | int] = _FIELD,
    ) -> WorkflowInfo:
        """The new workflow, ready to run.

        Raises: InvalidInput that names file and key; Conflict where the name is taken, also by one of the platform's own.
        """
        await self._check(name, files, caller, field)
        await self.refresh(max_age_seconds=0)
        if name in self._files:
            raise Conflict(
                f"There is already a workflow '{name}'.",
                code="workflow_exists",
                hint="Choose another name; only a folder among the server's workflows can take the place of this one.",
            )

        def write(tx: Transaction) -> WorkflowRow:
            row = tx.workflows.create(name, dict(files), key_id=caller.key_id)
            tx.audit.append("workflow.create", name, caller=caller, request_id=request_id)
            return row

        return self._adopt_row(await write_again(self._store, write))

    async def update(
        self,
        name: str,
        *,
        caller: Caller,
        files: Mapping[str, str] | None = None,
        active: bool | None = None,
        if_revision: int | None = None,
        request_id: str | None = None,
        field: Sequence[str | int] = _FIELD,
    ) -> WorkflowInfo:
        """The changed workflow: `files` take the place of all its files, `active` switches it.

        Raises: NotFound; Conflict for one that was not made through the API; PreconditionFailed where it is not at
        `if_revision` any more; InvalidInput, as `create`.
        """
        await self._check_editable(name)
        if files is not None:
            await self._check(name, files, caller, field)

        def write(tx: Transaction) -> WorkflowRow:
            kept = None if files is None else dict(files)
            row = tx.workflows.update(name, files=kept, active=active, if_revision=if_revision)
            changed = [*([] if files is None else ["files"]), *([] if active is None else ["active"])]
            tx.audit.append(
                "workflow.update", name, caller=caller, request_id=request_id, details={"changed": [*changed]}
            )
            return row

        return self._adopt_row(await self._store.write(write))

    async def delete(
        self, name: str, *, caller: Caller, if_revision: int | None = None, request_id: str | None = None
    ) -> None:
        """Delete a workflow that was made through the API; its runs stay. Raises as `update`."""
        await self._check_editable(name)

        def write(tx: Transaction) -> None:
            tx.workflows.delete(name, if_revision=if_revision)
            tx.audit.append("workflow.delete", name, caller=caller, request_id=request_id)

        await self._store.write(write)
        self._rows.pop(name, None)

    # -- inside

    def _hear(self, text: str) -> None:
        if text == "workflows":
            self._expire()

    def _expire(self) -> None:
        self._looked_at = float("-inf")

    async def _check_editable(self, name: str) -> None:
        await self.refresh(max_age_seconds=0)
        info = self.info(name)
        if info.source != "api":
            raise Conflict(
                f"The workflow '{name}' was not made through the API.",
                code="workflow_not_editable",
                hint=f"Copy it: automagik workflows create NAME --from {name}",
            )

    async def _check(self, name: str, files: Mapping[str, str], caller: Caller, field: Sequence[str | int]) -> None:
        workflow = self._parse(name, files, field)
        unknown = workflow.unknown_variables
        if unknown:
            known = {*workflow.prompt.names} - {*unknown} | await self._memories(caller)
            workflow.prompt.check_names(known | {*workflow.variables}, field=(*field, "prompt.md"))

    def _parse(self, name: str, files: Mapping[str, str], field: Sequence[str | int]) -> Workflow:
        workflow = Workflow.parse(name, files, trusted=False, place=field)
        if workflow.image is not None and not may_use(self._settings, workflow.image):
            detail, hint = refused(workflow.image)
            raise InvalidInput(
                f"workflow.toml: image: {detail}", field=(*field, "workflow.toml"), hint=hint, code="invalid_workflow"
            )
        return workflow

    async def _memories(self, caller: Caller) -> set[str]:
        return set(await self._store.read(lambda tx: tx.memories.known_names(visible_to=caller.user_id)))

    def _adopt_files(self, found: Sequence[_Found]) -> None:
        self._files = {}
        for one in found:
            before = self._files.get(one.name)
            if before is not None and before.source == one.source:
                continue
            info = _info(one, overrides=before.source if before is not None else None)
            self._files[one.name] = info
            if info.error is not None:
                _log.warning("workflow_broken", workflow=one.name, source=info.location, cause=info.error)

    def _adopt_rows(self, rows: Sequence[WorkflowRow]) -> None:
        self._hidden = []
        known = self._rows
        self._rows = {}
        for row in rows:
            before = known.get(row.name)
            if row.name in self._files:
                self._hidden.append(
                    _row_info(row, error="The name is taken by one of the platform or of the server's folder.")
                )
            elif before is not None and (before.revision, before.created_at) == (row.revision, row.created_at):
                self._rows[row.name] = before
            else:
                self._adopt_row(row)

    def _adopt_row(self, row: WorkflowRow) -> WorkflowInfo:
        info = self._rows[row.name] = _row_info(row)
        return info


@lru_cache(maxsize=64)
def _parsed(name: str, files: tuple[tuple[str, str], ...]) -> Workflow:
    """A workflow takes 3 ms, and a change of the folder changes few of them."""
    return Workflow.parse(name, dict(files))


def _info(found: _Found, *, overrides: Origin | None) -> WorkflowInfo:
    workflow, error = None, found.problem
    if error is None:
        try:
            workflow = _parsed(found.name, tuple(found.files.items()))
        except InvalidInput as wrong:
            error = _reason(wrong)
    return WorkflowInfo(
        name=found.name,
        source=found.source,
        location=str(found.folder),
        overrides=overrides,
        active=True,
        revision=0,
        files=found.files,
        workflow=workflow,
        error=error,
    )


def _row_info(row: WorkflowRow, *, error: str | None = None) -> WorkflowInfo:
    workflow = None
    try:
        workflow = Workflow.parse(row.name, row.files, trusted=False)
    except InvalidInput as wrong:  # it was checked when it was stored; a later version may know better
        error = error or _reason(wrong)
    return WorkflowInfo(
        name=row.name,
        source="api",
        location="",
        overrides=None,
        active=row.active,
        revision=row.revision,
        files=row.files,
        workflow=None if error else workflow,
        error=error,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _reason(wrong: InvalidInput) -> str:
    return f"{wrong.detail} {wrong.hint or ''}".strip()


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def _signature(folder: Path) -> _Signature:
    """What changes when something in the team's folder does."""
    found: list[tuple[str, int, int, int]] = []
    for path in _folders(folder):
        for file in (path, *sorted(path.iterdir())):
            try:
                status = file.stat()
            except OSError:  # a link that leads nowhere, or it was removed meanwhile
                continue
            found.append((str(file), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def _read(folder: Path, source: Origin) -> Iterator[_Found]:
    """The workflows in a folder, each with its files; `problem` says why they can't be read."""
    for path in _folders(folder):
        files: dict[str, str] = {}
        problem = None
        for file in sorted(path.iterdir()):
            if file.name not in _READ and (file.name.startswith((".", "_", "README")) or file.is_dir()):
                continue
            try:
                status = file.stat()
                if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
                    problem = f"{file.name}: It is no file, or over {_MAX_FILE_BYTES} bytes."
                    continue
                files[file.name] = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problem = f"{file.name}: It can't be read: {error}"
        yield _Found(path.name, source, path, files, problem)
