"""Collecting: what is refused costs the host little, and what the run left is had and told of at the end."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from git_house import RunHouse, make_repository, run_script, write_bundle

from automagik.artifacts import ArtifactStore
from automagik.claude_code.archives import pack
from automagik.claude_code.bundles import BundleRefused
from automagik.claude_code.collecting import Collecting
from automagik.claude_code.executor import Executor, ExitStatus, Inside, Once
from automagik.claude_code.history import Taken
from automagik.claude_code.house import House
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.workspace import SandboxScript
from automagik.errors import NotFound
from automagik.settings import Settings
from automagik.store import Store
from automagik.store.rows import RunRow
from automagik.store.workflows import ExecutionRow
from automagik.types import JsonObject, SystemClock, new_uuid

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class CountingRepositories(Repositories):
    """Knows how often something was taken."""

    takes = 0

    async def take(
        self, run_id: str, repository: str, base_commit: str, bundle: AsyncIterator[bytes], *, branch: str
    ) -> Taken:
        self.takes += 1
        return await super().take(run_id, repository, base_commit, bundle, branch=branch)


@dataclass
class WithoutSandbox:
    """The scripts of an executor, run as they are."""

    workspace: Path
    asked: int = 0
    credentials: dict[str, bytes] | None = None

    def inside(self, run_id: str) -> Inside:
        return replace(Inside(), workspace=str(self.workspace))

    async def once(self, run_id: str, command: tuple[str, ...], *, env: dict[str, str], output: Path, **_: Any) -> Once:
        self.asked += 1
        ran = run_script(SandboxScript(command, env, writable=False))
        output.write_bytes(ran.stdout)
        return Once(ExitStatus(ran.code, stderr=ran.stderr))

    def get(self, run_id: str, area: str, path: str) -> AsyncIterator[bytes]:
        if self.credentials is None:
            raise NotFound("file", path)
        return pack(self.credentials)


class StoppedClock(SystemClock):
    """Whose time goes on by hand, and by a second with each look."""

    seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 1
        return self.seconds


@dataclass
class Ran:
    """A run of which something is to be taken out."""

    run: RunHouse
    repositories: CountingRepositories
    executor: WithoutSandbox
    clock: StoppedClock
    collecting: Collecting
    told: list[tuple[str, JsonObject]] = field(default_factory=list[tuple[str, JsonObject]])


@pytest.fixture
async def ran(tmp_path: Path) -> AsyncIterator[Ran]:
    settings, clock = Settings.model_validate({"data_dir": tmp_path / "data"}), StoppedClock()
    repositories = CountingRepositories(settings, clock)
    await repositories.open()
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "mine"), tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "workspace")
    store = Store.from_settings(settings, clock)
    await store.open()
    artifacts = ArtifactStore(settings, store, clock)
    await artifacts.open()
    executor = WithoutSandbox(run.workspace)
    rooms = SimpleNamespace(
        settings=settings, clock=clock, store=_Nowhere(), artifacts=artifacts, repositories=repositories
    )
    now = clock.now()
    nothing: JsonObject = {}
    known = ExecutionRow(
        *(run.run_id, "local", "here", "running", new_uuid(), b"x", source.base_commit, run.branch),
        *(None, None, None, nothing, now, now),
    )
    told: list[tuple[str, JsonObject]] = []

    async def describe(workspace: JsonObject) -> None:
        del workspace

    collecting = Collecting(
        house=cast("House", rooms),
        executor=cast("Executor", executor),
        row=cast("RunRow", SimpleNamespace(run_id=run.run_id, details=None)),
        known=known,
        repository=source.repository,
        base_branch="main",
        keeps=True,
        owner="me",
        emit=lambda kind, data: told.append((kind, data)),
        describe=describe,
    )
    try:
        yield Ran(run, repositories, executor, clock, collecting, told)
    finally:
        await artifacts.close()
        await store.close()


class _Nowhere:
    """A store that needs not know of the run."""

    async def write(self, work: object) -> None:
        del work


def too_much(run: RunHouse) -> None:
    """A commit that is refused."""
    (run.workspace / "made.txt").write_text("made\n")
    run.git("add", "-A")
    message = run.workspace.parent / "message"
    message.write_text("m" * 1_100_000)
    run.git("commit", "-q", "-F", str(message))


async def test_what_was_refused_is_let_rest_and_never_looked_at_twice(ran: Ran) -> None:
    too_much(ran.run)
    await ran.collecting.checkpoint()
    assert (ran.executor.asked, ran.repositories.takes) == (1, 1)
    await ran.collecting.checkpoint()  # too early
    assert (ran.executor.asked, ran.repositories.takes) == (1, 1)
    ran.clock.seconds += 60
    await ran.collecting.checkpoint()
    assert (ran.executor.asked, ran.repositories.takes) == (2, 1)

    with pytest.raises(BundleRefused, match="whose message is of 11") as refused:
        await ran.collecting.finish()
    assert "runs diff RUN --wip" in str(refused.value.hint)
    assert ran.repositories.takes == 2  # the files alone
    assert ran.collecting.taken is not None
    assert ran.collecting.taken.wip_commit is not None
    assert "made.txt" in ran.run.files_of(ran.collecting.taken.wip_commit)


async def test_a_run_that_mended_what_was_refused_is_taken_again(ran: Ran) -> None:
    too_much(ran.run)
    await ran.collecting.checkpoint()
    ran.run.git("commit", "-q", "--amend", "-m", "Mended")
    await ran.collecting.finish()
    assert [data["subject"] for kind, data in ran.told if kind == "commit"] == ["Mended"]
    assert "warning" not in dict(ran.told)


async def test_what_did_not_come_out_is_told_once_at_the_end(ran: Ran) -> None:
    make_repository(ran.run.workspace / "within")
    await ran.collecting.checkpoint()
    assert ran.told == []
    await ran.collecting.finish()
    ((kind, data),) = ran.told
    assert (kind, data["code"]) == ("warning", "left_out")
    assert str(data["detail"]).endswith("its own commits are not: ./within.")


@pytest.mark.parametrize(("others", "kept"), [(3, True), (12_000, False)])
async def test_the_conversation_is_looked_for_among_the_first_files_only(ran: Ran, others: int, kept: bool) -> None:
    """Each takes time and memory of the platform, and a run may leave half a million in what is read of it."""
    session, said = f"projects/x/{ran.collecting.known.cli_session_id}.jsonl", b'{"type": "user"}\n'
    ran.executor.credentials = {**{f"projects/x/{number}": b"" for number in range(others)}, session: said}
    await ran.collecting.finish()
    digest = hashlib.sha256(said).hexdigest()
    if kept:
        assert await ran.collecting.house.artifacts.get(digest) == said
    else:
        with pytest.raises(NotFound):
            await ran.collecting.house.artifacts.get(digest)
