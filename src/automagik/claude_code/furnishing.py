"""Furnishing: making the place that the CLI works in: the workspace, what it is told, the repository's toolchain."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from automagik.agents import RunOptions
from automagik.claude_code.archives import pack
from automagik.claude_code.contents import Contents
from automagik.claude_code.executor import Executor, Once
from automagik.claude_code.git import GitFailed
from automagik.claude_code.house import House
from automagik.claude_code.moving import remembered
from automagik.claude_code.progress import Progress, Tell
from automagik.claude_code.sources import Source
from automagik.claude_code.work import Work
from automagik.claude_code.workflow import Workflow
from automagik.claude_code.workspace import branch_name, make_workspace
from automagik.errors import ConfigurationError, RunFailed, TooLarge
from automagik.sandbox.confinement import Limits
from automagik.sandbox.egress import EgressDoor, EgressPolicy, EgressProxy
from automagik.sandbox.relay import relay_environment, relayed
from automagik.store.rows import RunRow
from automagik.store.workflows import ExecutionRow
from automagik.types import Json, JsonObject, utc_text

__all__ = ["Furnished", "Furnishing"]

_log = structlog.stdlib.get_logger(__name__)

_MAKE_SECONDS = 600.0
_SETUP_SECONDS = 1800.0
_CHUNK_BYTES = 256 * 1024
_AUTHOR = "Automagik"
_EMAIL = "automagik@localhost"
_PROMPT, _SERVERS = "system-prompt.md", "mcp.json"
_AGAIN = """# Where this run stands

It began on another host, which is gone, and begins again here. The branch holds what had been committed and saved by then
(`git log {base}..`), and the workspace what had not been committed. Look at both first, and go on from there.
"""
_LOCK_FILES = re.compile(
    r"(^|/)(requirements[^/]*\.txt|pyproject\.toml|setup\.(py|cfg)|uv\.lock|poetry\.lock|package(-lock)?\.json|yarn\.lock|pnpm-lock\.yaml"
    r"|go\.(mod|sum)|Cargo\.(toml|lock)|Gemfile(\.lock)?|pom\.xml|[^/]*\.gradle(\.kts)?|composer\.(json|lock))$"
)
"""What setup commands read: a toolchain is made anew when one of these changes."""


@dataclass(frozen=True, slots=True)
class Furnished:
    """A place that is ready."""

    source: Source
    branch: str
    prompt_file: str
    """Its path inside."""
    mcp_file: str | None
    resumes: bool
    """Whether the CLI goes on with a conversation."""
    toolchain: str | None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the CLI's environment has besides: the way to the relay, the registries."""
    kept: JsonObject = field(default_factory=dict[str, Json])
    """What its execution remembers of the workflow and the source."""


class Furnishing:
    """One run's furnishing."""

    def __init__(
        self, house: House, executor: Executor, row: RunRow, work: Work, workflow: Workflow, known: ExecutionRow
    ) -> None:
        self._house = house
        self._executor = executor
        self._row = row
        self._work = work
        self._workflow = workflow
        self._known = known
        self._run_id = row.run_id

    async def prepare(
        self, options: RunOptions, earlier: ExecutionRow | None, *, former: ExecutionRow | None = None
    ) -> Furnished:
        """The place, ready for the CLI. `earlier`: the execution of the run that this one goes on with; `former`: an execution of
        this run that is lost. What takes long is told as events `progress`.

        Raises: InvalidInput for a repository that is not to be had; RunFailed (`sandbox_error`) where a step in the sandbox fails.
        """
        with Progress(options.emit) as progress:
            return await self._prepare(options, earlier, former, progress)

    async def _prepare(
        self, options: RunOptions, earlier: ExecutionRow | None, former: ExecutionRow | None, tell: Tell
    ) -> Furnished:
        house, executor = self._house, self._executor
        begun = await house.workspaces.beginning(self._work.repository, former=former, earlier=earlier)
        source = begun.source
        branch = branch_name(self._workflow.name, self._run_id)
        workflow = self._workflow
        try:
            await executor.prepare(
                self._run_id,
                image=workflow.image,
                dockerfile=workflow.dockerfile,
                trusted=workflow.trusted,
                tell=tell,
            )
        except ConfigurationError as unfit:  # the image, or the machine: whoever started the run reads why
            raise RunFailed(unfit.detail, outcome="sandbox_error", hint=unfit.hint) from unfit
        inside = executor.inside(self._run_id)
        script = make_workspace(
            branch=branch,
            author=_AUTHOR,
            email=_EMAIL,
            base_commit=begun.commit,
            wip_commit=begun.wip_commit,
            branches=begun.branches,
            workspace=inside.workspace,
        )
        besides = {begun.commit, *begun.branches.values()} - {source.base_commit}
        bundle = await house.repositories.base_bundle(source, wip_commit=begun.wip_commit, besides=sorted(besides))
        made = await executor.once(
            self._run_id,
            script.command,
            stdin=_chunks(bundle),
            env=script.env,
            writable=script.writable,
            timeout_seconds=_MAKE_SECONDS,
        )
        _check(made, "The workspace could not be made")
        kept = remembered(workflow)
        if self._work.repository.place is not None:
            kept |= await house.workspaces.keep_base(self._run_id, source, bundle)
        instructions = await self._instructions(options, source, branch)
        if begun.again:
            instructions = f"{instructions.rstrip()}\n\n{_AGAIN.format(base=source.base_commit)}"
        instructions += await self._without(options, source)
        files: dict[str, bytes | Path] = {_PROMPT: instructions.encode()}
        if self._workflow.servers.get("mcpServers"):
            files[_SERVERS] = json.dumps(self._workflow.servers).encode()
        resumes = earlier is not None and earlier.conversation is not None
        if earlier is not None and earlier.conversation is not None:
            folder = re.sub(r"[^A-Za-z0-9]", "-", inside.workspace)
            files[f"projects/{folder}/{earlier.cli_session_id}.jsonl"] = await house.artifacts.get(earlier.conversation)
        await executor.put(self._run_id, "credentials", pack(files))
        environment = await self._environment()
        return Furnished(
            source=source,
            branch=branch,
            prompt_file=f"{inside.credentials}/{_PROMPT}",
            mcp_file=f"{inside.credentials}/{_SERVERS}" if _SERVERS in files else None,
            resumes=resumes,
            toolchain=await self._toolchain(source, environment, tell),
            environment=environment,
            kept=kept,
        )

    async def _instructions(self, options: RunOptions, source: Source, branch: str) -> str:
        """The workflow's prompt, filled: with memories, the request's variables, what is known of the run."""
        workflow, context = self._workflow, options.context
        now = self._house.clock.now()
        values = {
            "agent_name": context.agent_name,
            "session_id": str(context.session_id or ""),
            "user_id": str(context.user_id or ""),
            "run_id": self._run_id,
            "current_date": utc_text(now)[:10],
            "current_time": f"{utc_text(now)[11:16]} UTC",
            "workflow": workflow.name,
            "repository": self._work.repository.name or self._work.repository.place or source.repository,
            "branch": branch,
            "base_branch": source.default_branch or source.branch or "",
            "base_commit": source.base_commit,
        }
        remembered = await context.memory.values(workflow.prompt.names)
        guide = await self._house.repositories.guide(source)
        return workflow.instructions({**remembered, **values, **context.variables}, guide=guide)

    async def _without(self, options: RunOptions, source: Source) -> str:
        """What the agent is told of what no workspace holds; the run's owner is warned of it."""
        repositories = self._house.repositories
        try:
            path = repositories.path(source.repository)
            contents = await Contents.of(repositories.git, path, source.base_commit)
        except (GitFailed, TooLarge) as too_much:
            _log.warning("contents_not_known", run_id=self._run_id, reason=too_much.detail)
            return ""
        for said in contents.warnings():
            options.emit("warning", said)
        told = contents.instructions()
        return f"\n\n{told}" if told else ""

    async def _environment(self) -> dict[str, str]:
        if not self._workflow.egress:
            return {}
        registries = await self._house.registries.find() if "registries" in self._workflow.egress else None
        return {**relay_environment(), **(registries.env if registries is not None else {})}

    # -- the toolchain

    async def _toolchain(self, source: Source, environment: Mapping[str, str], tell: Tell) -> str | None:
        """The digest of what the workflow's setup commands make of the repository, made where it is not there yet."""
        workflow = self._workflow
        if not workflow.setup:
            return None
        read = await self._read_by_setup(source)
        # Setup commands run code of the repository, so what they leave is for runs of the same owner only.
        owner = str(self._row.user_id or self._row.key_id)
        kept = [workflow.image, list(workflow.setup), read, owner]
        digest = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
        if await self._executor.has_toolchain(self._run_id, digest):
            return digest
        _log.info("toolchain_begins", run_id=self._run_id, digest=digest)
        tell("The workflow's setup commands make the repository's toolchain")
        command: tuple[str, ...] = ("/bin/sh", "-ec", "\n".join(workflow.setup))
        async with AsyncExitStack() as stack:
            sockets: tuple[str, ...] = ()
            registries = await self._house.registries.find()
            policy = EgressPolicy.of(("registries", *workflow.egress), registries.hosts)
            door = await self._open_egress(policy)
            stack.push_async_callback(door.close)
            sockets = ("egress",)
            command = relayed(command, self._executor.inside(self._run_id).socket("egress"))
            made = await self._executor.prepare_toolchain(
                self._run_id,
                digest,
                command,
                timeout_seconds=_SETUP_SECONDS,
                env={**relay_environment(), **registries.env, **environment},
                limits=Limits.from_settings(self._house.settings),
                sockets=sockets,
            )
        _check(made, "The setup of the repository's toolchain failed")
        return digest

    async def _read_by_setup(self, source: Source) -> list[str]:
        """The lock files of the base commit, each with its content's name in git."""
        repositories = self._house.repositories
        path = repositories.path(source.repository)
        listed = await repositories.git.run("ls-tree", "-r", "-z", source.base_commit, repository=path)
        entries = listed.decode("utf-8", "replace").split("\0")
        return sorted(entry for entry in entries if _LOCK_FILES.search(entry.partition("\t")[2]))

    async def _open_egress(self, policy: EgressPolicy) -> EgressDoor:
        def tell(host: str, port: int, allowed: bool) -> None:
            _log.info("egress", run_id=self._run_id, host=host, port=port, allowed=allowed, during="setup")

        socket = self._executor.socket(self._run_id, "egress")
        door = await EgressProxy(self._house.outbound).open(socket, policy, tell=tell)
        await self._executor.share(self._run_id, "egress")
        return door


def _check(once: Once, what: str) -> None:
    if once.timed_out or once.exit.code != 0:
        why = "it took too long" if once.timed_out else once.exit.stderr.strip()[-500:] or f"exit code {once.exit.code}"
        raise RunFailed(f"{what}: {why}", outcome="sandbox_error", hint="`automagik doctor` looks at the sandbox.")


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, _CHUNK_BYTES):
            yield chunk
