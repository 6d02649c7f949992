"""What several hosts need of one: what a run made is had from any of them, and what is another host's is let go."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from executor_house import executor_settings, short_folder, spec
from git_house import RunHouse, chunks, make_repository, open_repositories, run_script, write_bundle

from automagik.artifacts import ArtifactStore
from automagik.claude_code import reaper
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.history import Taken
from automagik.claude_code.moving import Spent, earlier_execution
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.work import RepositorySource, Work
from automagik.claude_code.workflow import Workflow
from automagik.claude_code.workspaces import BUNDLE_TYPE, Workspaces
from automagik.errors import InvalidInput, NotFound, RunFailed, TooLarge
from automagik.settings import Settings
from automagik.store import BeginRun, NewEvent, Store
from automagik.store.queue import ClaimLimits
from automagik.store.workflows import ExecutionRow
from automagik.testing.needs import need
from automagik.types import Caller, JsonObject, RunOutcome, SystemClock, new_id, new_uuid

pytestmark = pytest.mark.anyio

OWNER = "exe_one"
EVERYBODY = Caller(key_id="key_test", scopes=frozenset({"admin"}))


class Host:
    """One host's repositories, over a store and artefacts that all share."""

    def __init__(self, settings: Settings, store: Store, artifacts: ArtifactStore, repositories: Repositories) -> None:
        self.store = store
        self.artifacts = artifacts
        self.repositories = repositories
        self.workspaces = Workspaces(settings, store, artifacts, repositories)

    async def began(self, run: RunHouse, work: Work) -> None:
        """The run is stored, and belongs to a host."""
        begin = BeginRun(
            run_id=run.run_id,
            kind="workflow",
            name="plain",
            created_at=SystemClock().now(),
            background=True,
            input_json=json.dumps({"work": work.to_json()}),
        )
        await self.store.accept_run(begin)
        await self.store.write(lambda tx: tx.queue.claim(OWNER, "one", 1, limits=ClaimLimits(), host_lease_seconds=300))
        await self.store.write(
            lambda tx: tx.executions.begin(
                run.run_id, OWNER, executor="local", host="one", cli_session_id=new_uuid(), token_hash=b"x" * 32
            )
        )
        await self.changed(run, base_commit=run.source.base_commit, branch=run.branch)

    async def took(self, run: RunHouse) -> Taken:
        """What was taken out of the run here, and kept."""
        taken = await run.take()
        assert taken.bundle is not None
        kept = await self.artifacts.put(taken.bundle.read_bytes(), media_type=BUNDLE_TYPE)
        await self.changed(run, bundle=kept.digest, head_commit=taken.head_commit)
        return taken

    async def changed(self, run: RunHouse, **changes: object) -> None:
        await self.store.write(lambda tx: tx.executions.update(run.run_id, OWNER, **changes))

    async def execution(self, run_id: str) -> ExecutionRow:
        found = await self.store.read(lambda tx: tx.executions.find(run_id))
        assert found is not None
        return found


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    clock = SystemClock()
    settings = [
        Settings(data_dir=tmp_path / name, artifacts_url=f"file://{tmp_path / 'shared'}", repository_roots=roots)
        for name, roots in (("one", [str(tmp_path / "root")]), ("two", list[str]()))
    ]
    (tmp_path / "shared").mkdir()
    store = Store.from_settings(settings[0], clock)
    await store.open()
    artifacts = ArtifactStore(settings[0], store, clock)
    await artifacts.open()
    try:
        repositories = [
            await open_repositories(each.data_dir, repository_roots=each.repository_roots) for each in settings
        ]
        one, two = (Host(each, store, artifacts, bare) for each, bare in zip(settings, repositories, strict=True))
        yield one, two
    finally:
        await artifacts.close()
        await store.close()


@pytest.fixture
async def asked(hosts: tuple[Host, Host], tmp_path: Path) -> RepositorySource:
    """A repository that somebody has uploaded."""
    bundle = write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle")
    kept = await hosts[0].workspaces.receive(chunks(bundle.read_bytes()))
    return RepositorySource(bundle=kept.digest)


async def test_nothing_is_kept_of_an_upload_that_is_refused(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    one, _ = hosts
    whole = write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle").read_bytes()
    few = Workspaces(
        Settings(data_dir=tmp_path / "one", max_artifact_bytes=5000), one.store, one.artifacts, one.repositories
    )
    for workspaces, data, error in (
        (one.workspaces, b"no bundle", InvalidInput),
        (one.workspaces, whole[:-40], InvalidInput),
        (few, whole * 50, TooLarge),
    ):
        with pytest.raises(error):
            await workspaces.receive(chunks(data))
        assert await one.store.read(lambda tx: tx.artifacts.newest()) is None
    kept = await one.workspaces.receive(chunks(whole))
    assert await one.artifacts.get(kept.digest) == whole


async def test_a_run_begins_again_elsewhere_with_all_that_was_taken_out_of_it(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, two = hosts
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    run.git("checkout", "-q", "-b", "aside")
    run.commit("aside.txt", "x", "Aside")
    run.git("checkout", "-q", run.branch)
    run.commit("new.txt", "x", "Of the first host")
    (run.workspace / "loose.txt").write_text("not committed")
    taken = await one.took(run)

    begun = await two.workspaces.beginning(asked, former=await one.execution(run.run_id), earlier=None)
    assert begun.again
    assert (begun.source.base_commit, begun.commit) == (run.source.base_commit, taken.head_commit)
    there = replace(run, repositories=two.repositories, source=begun.source, workspace=tmp_path / "ws2")
    there.workspace.mkdir()
    base = await two.repositories.base_bundle(
        begun.source, wip_commit=begun.wip_commit, besides=[begun.commit, *begun.branches.values()]
    )
    making = replace(there, source=replace(begun.source, base_commit=begun.commit)).making(
        wip_commit=begun.wip_commit, branches=begun.branches
    )
    made = run_script(making, stdin=base.read_bytes())
    assert made.code == 0, made.stderr
    assert there.git("status", "--porcelain") == "?? loose.txt"
    there.commit("more.txt", "x", "Of the second host")

    again = await there.take()
    assert [commit.subject for commit in again.commits] == ["Of the first host", "Of the second host"]
    assert again.base_commit == run.source.base_commit
    assert set(again.branches) == {run.branch, "aside"}
    assert again.wip_commit is None


async def test_a_run_whose_history_was_rewritten_begins_again_elsewhere_too(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, two = hosts
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    run.git("checkout", "-q", "--orphan", "fresh")
    run.git("commit", "-q", "-m", "Another history")
    run.git("branch", "-q", "-M", run.branch)
    await one.took(run)

    begun = await two.workspaces.beginning(asked, former=await one.execution(run.run_id), earlier=None)
    there = replace(run, repositories=two.repositories, source=begun.source, workspace=tmp_path / "ws2")
    there.workspace.mkdir()
    base = await two.repositories.base_bundle(begun.source, besides=[begun.commit])
    making = replace(there, source=replace(begun.source, base_commit=begun.commit)).making()
    assert run_script(making, stdin=base.read_bytes()).code == 0
    there.commit("more.txt", "x", "Go on")
    again = await there.take()
    assert [commit.subject for commit in again.commits] == ["Another history", "Go on"]
    assert not again.descends


async def test_what_a_chain_of_resumed_runs_made_is_had_on_a_host_that_saw_none_of_them(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, two = hosts
    source = await one.workspaces.source(asked)
    earlier: RunHouse | None = None
    for number in range(3):
        former = None if earlier is None else await one.execution(earlier.run_id)
        begun = await one.workspaces.beginning(asked, former=None, earlier=former)
        run = await RunHouse.begin(one.repositories, begun.source, tmp_path / f"ws{number}")
        await one.began(run, Work("plain", asked, resume_of=None if earlier is None else earlier.run_id))
        run.commit(f"{number}.txt", f"number {number}\n", f"Number {number}")
        await one.took(run)
        earlier = run
    assert earlier is not None
    assert earlier.source.base_commit != source.base_commit

    diff = await two.workspaces.diff(earlier.run_id, EVERYBODY)
    assert b"+number 2" in diff
    assert b"number 1" not in diff


async def test_what_a_run_makes_later_is_seen_on_another_host_too(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, two = hosts
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    run.commit("new.txt", "first\n", "Add")
    await one.took(run)
    details: JsonObject = {"workspace": {"repository": run.source.repository}}
    await one.store.write(lambda tx: tx.executions.describe(run.run_id, OWNER, details))
    assert b"+first" in await two.workspaces.diff(run.run_id, EVERYBODY)

    run.commit("new.txt", "second\n", "Change")
    (run.workspace / "loose.txt").write_text("not committed\n")
    await one.took(run)
    for host in hosts:
        assert b"+second" in await host.workspaces.diff(run.run_id, EVERYBODY)
        assert b"+not committed" in await host.workspaces.diff(run.run_id, EVERYBODY, wip=True)


async def test_what_a_run_made_of_a_folder_that_only_its_host_has_is_had_elsewhere(
    hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    one, two = hosts
    asked = RepositorySource(place=str(make_repository(tmp_path / "root" / "mine")))
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    run.commit("new.txt", "made of a folder\n", "Add")
    taken = await one.took(run)
    with pytest.raises(InvalidInput):  # the second host has no such folder
        await two.workspaces.diff(run.run_id, EVERYBODY)

    base = await one.repositories.base_bundle(run.source)
    kept = await one.workspaces.keep_base(run.run_id, run.source, base)
    await one.changed(run, place={"told": 0, **kept})
    assert b"+made of a folder" in await two.workspaces.diff(run.run_id, EVERYBODY)
    begun = await two.workspaces.beginning(asked, former=await one.execution(run.run_id), earlier=None)
    assert (begun.source, begun.commit) == (run.source, taken.head_commit)
    further = await two.workspaces.beginning(asked, former=None, earlier=await one.execution(run.run_id))
    assert further.source.base_commit == taken.head_commit
    assert (await two.repositories.base_bundle(further.source)).is_file()


async def test_the_next_run_from_the_same_commit_reads_and_sends_nothing_anew(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, _ = hosts
    source = await one.workspaces.source(asked)
    base = await one.repositories.base_bundle(source)
    first = await one.workspaces.keep_base("run_1", source, base)
    objects = {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    assert len(objects) == 2  # what was uploaded, and the base

    for path in objects:
        path.write_bytes(b"x" * path.stat().st_size)
    moment = base.stat().st_mtime_ns
    base.write_bytes(b"y" * base.stat().st_size)
    os.utime(base, ns=(moment, moment))
    assert await one.workspaces.source(asked) == source
    assert await one.workspaces.source(RepositorySource(bundle=asked.bundle, ref="main")) == source
    assert await one.workspaces.keep_base("run_2", source, base) == first
    assert all(path.read_bytes()[:1] == b"x" for path in objects)

    base.write_bytes(next(data for data in objects.values() if f"refs/base/{source.base_commit}".encode() in data))
    for path in objects:  # somebody lost them: here they are again
        path.unlink()
    assert await one.workspaces.keep_base("run_3", source, base) == first
    kept = cast("dict[str, str]", first["base"])
    assert await one.artifacts.get(kept["bundle"]) == base.read_bytes()


async def test_a_commit_that_nobody_has_any_more_is_named(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, two = hosts
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    run.commit("new.txt", "x", "Add")
    await one.took(run)
    lost = "0123456789" * 4
    await one.changed(run, base_commit=lost)

    with pytest.raises(NotFound, match=lost) as gone:
        await two.workspaces.diff(run.run_id, EVERYBODY)
    assert gone.value.hint


async def test_an_execution_in_the_place_of_a_lost_one_keeps_what_was_taken_out_and_hears_what_was_said(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, _ = hosts
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    run.commit("new.txt", "x", "Add")
    taken = await one.took(run)
    await one.changed(run, place={"told": 3, "base": {"bundle": "x"}, "pid": 7})
    former = await one.execution(run.run_id)
    await one.store.write(lambda tx: tx.words.say(run.run_id, "message", "Mind the gap.", key_id=None))
    (word,) = await one.store.read(lambda tx: tx.words.waiting(run.run_id))
    assert await one.store.write(lambda tx: tx.words.take(word.id))
    assert await one.store.read(lambda tx: tx.words.waiting(run.run_id)) == []
    await one.store.write(
        lambda tx: tx.executions.begin(
            run.run_id,
            OWNER,
            executor="local",
            host="two",
            cli_session_id=new_uuid(),
            token_hash=b"y" * 32,
            former=former,
            told=7,
        )
    )

    now = await one.execution(run.run_id)
    assert (now.host, now.stage, now.place) == (
        "two",
        "preparing",
        {"told": 7, "base": {"bundle": "x"}},
    )
    assert await one.store.read(lambda tx: tx.words.waiting(run.run_id)) == [word]
    assert (now.base_commit, now.head_commit, now.bundle) == (former.base_commit, taken.head_commit, former.bundle)


async def test_what_a_run_used_on_hosts_that_are_gone_counts_for_its_limits(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, _ = hosts
    store = one.store
    await store.write(lambda tx: tx.executors.register(OWNER, host="one", role="worker", version="1"))
    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    await store.write(lambda tx: tx.executors.beat(OWNER))
    for number, turn in ((2, 1), (3, 4)):
        event = NewEvent(number, "message_completed", SystemClock().now(), json.dumps({"text": "x", "turn": turn}))
        assert await store.append_events(run.run_id, OWNER, [event])
    later = SystemClock().now() + timedelta(hours=1)

    first = await one.execution(run.run_id)
    assert Spent.of(first) == Spent()
    moved = await Spent.with_lost(store, first, moved=True, now=later)
    assert (moved.restarts, moved.turns) == (1, 4)
    assert moved.seconds < 600, "what it waited for another host does not count"
    prepared = await Spent.with_lost(store, first, moved=False, now=later)
    assert (prepared.restarts, prepared.turns) == (0, 4)
    assert prepared.seconds > 3000

    spent = Spent(restarts=2, seconds=100.0, turns=7)
    await store.write(
        lambda tx: tx.executions.begin(
            run.run_id,
            OWNER,
            executor="local",
            host="one",
            cli_session_id=new_uuid(),
            token_hash=b"y" * 32,
            former=first,
            told=3,
            spent=spent.to_json(),
        )
    )
    second = await one.execution(run.run_id)
    assert Spent.of(second) == spent
    further = await Spent.with_lost(store, second, moved=True, now=later)
    assert (further.restarts, further.turns) == (3, 7), "only what came since it began again is added"
    assert further.seconds >= 100


@pytest.mark.parametrize(
    ("spent", "host_gone", "outcome", "words"),
    [
        (Spent(restarts=2, seconds=99.0, turns=9), "restart", None, ""),
        (Spent(restarts=3), "restart", RunOutcome.SANDBOX_LOST, "begun again 2 times already"),
        (Spent(restarts=1, seconds=100.0), "restart", RunOutcome.TIMED_OUT, "used up its time"),
        (Spent(restarts=1, turns=10), "restart", RunOutcome.MAX_TURNS, "limit of turns"),
        (Spent(restarts=1), "fail", RunOutcome.SANDBOX_LOST, "sandbox of the run is gone"),
        (Spent(seconds=100.0), "fail", RunOutcome.TIMED_OUT, "used up its time"),
    ],
)
def test_a_run_begins_again_only_within_its_limits(
    spent: Spent, host_gone: str, outcome: RunOutcome | None, words: str
) -> None:
    toml = f'host_gone = "{host_gone}"\n[limits]\nmax_restarts = 2\n'
    workflow = Workflow.parse("plain", {"prompt.md": "Work.", "workflow.toml": toml})
    verdict = spent.ends(workflow, max_turns=10, timeout_seconds=100)
    assert (verdict and verdict.outcome) == outcome
    assert words in (verdict.detail if verdict else "")


async def test_a_run_that_goes_on_with_another_says_what_of_it_is_not_kept(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path
) -> None:
    one, two = hosts
    told: list[tuple[str, JsonObject]] = []

    async def earlier(resume_of: str | None) -> ExecutionRow | None:
        work = Work("plain", asked, resume_of=resume_of)
        return await earlier_execution(two.store, work, emit=lambda kind, data: told.append((kind, data)))

    assert await earlier(None) is None
    with pytest.raises(RunFailed, match="Nothing is kept of the run 'run_gone'") as refused:
        await earlier("run_gone")
    assert (refused.value.outcome, told) == ("sandbox_error", [])

    run = await RunHouse.begin(one.repositories, await one.workspaces.source(asked), tmp_path / "ws")
    await one.began(run, Work("plain", asked))
    assert await earlier(run.run_id) == await one.execution(run.run_id)
    assert [(kind, data["code"]) for kind, data in told] == [("warning", "conversation_lost")]
    await one.changed(run, conversation="a" * 64)
    assert await earlier(run.run_id) == await one.execution(run.run_id)
    assert len(told) == 1


async def test_a_host_that_only_shows_what_others_made_forgets_it_when_it_is_deleted(
    hosts: tuple[Host, Host], asked: RepositorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = hosts
    source = await two.workspaces.source(asked)
    runs = [await RunHouse.begin(two.repositories, source, tmp_path / name) for name in ("kept", "deleted")]
    await one.began(runs[0], Work("plain", asked))
    for run in runs:
        run.commit("new.txt", "x", "Add")
        await run.take()
    monkeypatch.setattr(reaper, "_EVERY_SECONDS", 0.01)
    forgetting = asyncio.create_task(reaper.forget_forever(two.store, two.repositories))
    try:
        async with asyncio.timeout(20):
            while len((await two.repositories.runs())[source.repository]) > 1:
                await asyncio.sleep(0.01)
    finally:
        forgetting.cancel()
        await asyncio.wait([forgetting])
    assert await two.repositories.runs() == {source.repository: [runs[0].run_id]}


async def test_a_host_lets_go_of_a_run_that_has_begun_again_elsewhere() -> None:
    need("bubblewrap")
    with short_folder() as folder:
        settings = Settings(data_dir=folder, executor="local")
        clock = SystemClock()
        store = Store.from_settings(settings, clock)
        await store.open()
        executors = ExecutorFactory(settings)
        try:
            local = executors.named("local")
            run_id = new_id("run")
            begin = BeginRun(run_id=run_id, kind="workflow", name="plain", created_at=clock.now(), background=True)
            await store.accept_run(begin)
            await store.write(lambda tx: tx.queue.claim(OWNER, "two", 1, limits=ClaimLimits(), host_lease_seconds=300))
            await store.write(
                lambda tx: tx.executions.begin(
                    run_id, OWNER, executor="local", host="two", cli_session_id=new_uuid(), token_hash=b"x" * 32
                )
            )
            await local.prepare(run_id)

            assert await reaper.reap(store, executors, host="two") == []
            assert await reaper.reap(store, executors, host="one") == [run_id]
            assert await local.places() == []
        finally:
            await executors.close()
            await store.close()


async def test_hosts_on_one_engine_see_and_end_their_own_containers_only() -> None:
    with short_folder() as folder:
        settings: dict[str, Settings] = {}
        for name in ("one", "two"):
            settings[name] = await executor_settings("docker", folder / name, folder / f"{name}.run")
        clock = SystemClock()
        store = Store.from_settings(settings["one"], clock)
        await store.open()
        hosts = {name: ExecutorFactory(used) for name, used in settings.items()}
        one, two = (hosts[name].named("docker") for name in hosts)
        run_id = new_id("run")
        try:
            begin = BeginRun(run_id=run_id, kind="workflow", name="plain", created_at=clock.now(), background=True)
            await store.accept_run(begin)
            await one.prepare(run_id)
            first = await one.start(spec("sh", "-c", "echo one; sleep 60", run_id=run_id))
            assert await two.places() == []
            assert await two.find(run_id) is None
            await two.remove(run_id)
            assert await reaper.reap(store, hosts["two"], host="two") == []
            assert (await first.usage()).pids > 0

            # It begins again on the other one, which has a container of its own for it.
            await store.write(lambda tx: tx.queue.claim(OWNER, "two", 1, limits=ClaimLimits(), host_lease_seconds=300))
            await store.write(
                lambda tx: tx.executions.begin(
                    run_id, OWNER, executor="docker", host="two", cli_session_id=new_uuid(), token_hash=b"x" * 32
                )
            )
            await two.prepare(run_id)
            second = await two.start(spec("sh", "-c", "echo two; sleep 60", run_id=run_id))
            assert second.place != first.place
            assert await reaper.reap(store, hosts["two"], host="two") == []
            assert (await first.usage()).pids > 0

            # A next worker of the first host finds its own, and lets it go, for it is the other one's now.
            await hosts["one"].close()
            again = hosts["one"].named("docker")
            found = await again.find(run_id)
            assert found is not None
            assert found.place == first.place
            assert await reaper.reap(store, hosts["one"], host="one") == [run_id]
            assert await again.places() == []
            assert await two.places() == [run_id]
            assert (await second.usage()).pids > 0
        finally:
            for factory in hosts.values():
                await factory.named("docker").remove(run_id)
                await factory.close()
            await store.close()
