"""Packs that become huge when they are unpacked: the host's git ends in time, says why, and what can be kept is kept."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from git_house import RunHouse, git, make_repository, open_repositories, write_bundle
from pack_house import HandMadePack, commit_of, delta, tree_of

from automagik.claude_code.bundles import BundleRefused
from automagik.claude_code.git import Git, GitFailed
from automagik.claude_code.repositories import Repositories
from automagik.settings import Settings
from automagik.types import SystemClock

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

MB = 1024**2


async def begin(repositories: Repositories, folder: Path) -> RunHouse:
    mine = make_repository(folder / "mine")
    source = await repositories.import_bundle(write_bundle(mine, folder / "upload.bundle"))
    return await RunHouse.begin(repositories, source, folder / "workspace")


@pytest.fixture
async def run(tmp_path: Path) -> RunHouse:
    return await begin(await open_repositories(tmp_path / "data"), tmp_path)


def on_branch(run: RunHouse, pack: HandMadePack, tree: str, *, message: str = "Hostile\n", **options: int) -> bytes:
    tip = pack.add("commit", commit_of(tree, run.source.base_commit, message=message))
    return pack.bundle({f"refs/heads/{run.branch}": tip}, **options)


def with_file(pack: HandMadePack) -> str:
    return pack.add("tree", tree_of(("100644", "x", pack.add("blob", b"x"))))


def deltas(run: RunHouse, size: int, number: int) -> bytes:
    """A few KB that become `number` files of `size` bytes."""
    pack = HandMadePack(run.source.base_commit)
    large = bytes(15 * MB)
    source = pack.add("blob", large)
    for index in range(number):
        pack.add_delta(source, delta(len(large), size - index))
    return on_branch(run, pack, with_file(pack))


def giant(run: RunHouse) -> bytes:
    return deltas(run, 3 * 1024 * MB, 1)


def full_trees(run: RunHouse) -> bytes:
    """Ten trees, each of which holds the next forty times: 10 ** 16 files."""
    pack = HandMadePack(run.source.base_commit)
    tree, mode = pack.add("blob", b"x"), "100644"
    for _ in range(10):
        tree, mode = pack.add("tree", tree_of(*((mode, f"{number:02}", tree) for number in range(40)))), "40000"
    return on_branch(run, pack, tree)


def deep_trees(run: RunHouse) -> bytes:
    pack = HandMadePack(run.source.base_commit)
    tree = with_file(pack)
    for _ in range(60_000):
        tree = pack.add("tree", tree_of(("40000", "d", tree)))
    return on_branch(run, pack, tree)


def long_message(run: RunHouse) -> bytes:
    pack = HandMadePack(run.source.base_commit)
    return on_branch(run, pack, with_file(pack), message="m" * 50 * MB)


def many_objects(run: RunHouse) -> bytes:
    pack = HandMadePack(run.source.base_commit)
    return on_branch(run, pack, with_file(pack), count=1_000_000)


def packs(run: RunHouse) -> list[str]:
    folder = run.repositories.run_path(run.source.repository, run.run_id) / "objects" / "pack"
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(
    ("bomb", "why"),
    [
        (giant, r"more than \d+ MB of memory"),
        (deep_trees, "nested too deep"),
        (long_message, "message is of 52429"),
        (many_objects, "over 500000 objects"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_bomb_is_refused_in_clear_words_and_leaves_nothing_behind(
    run: RunHouse, bomb: Callable[[RunHouse], bytes], why: str
) -> None:
    made = run.commit("made.txt", "made\n", "Made")
    assert (await run.take()).head_commit == made
    before = packs(run)

    with pytest.raises(BundleRefused, match=why):
        await run.take(bomb(run))

    assert packs(run) == before
    assert run.ours("rev-parse", f"refs/runs/{run.run_id}/head") == made
    again = run.commit("again.txt", "again\n", "Again")
    assert (await run.take()).head_commit == again


async def test_a_pack_that_takes_for_ever_is_given_up_and_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path / "data"})
    repositories = Repositories(settings, SystemClock(), take_seconds=1)
    await repositories.open()
    run = await begin(repositories, tmp_path)
    with pytest.raises(BundleRefused, match="did not end within 1 seconds"):
        await run.take(deltas(run, 500 * MB, 500))
    assert packs(run) == []


async def test_the_files_are_had_where_the_agent_committed_a_bomb(run: RunHouse, tmp_path: Path) -> None:
    bomb = full_trees(run)
    file = tmp_path / "bomb.bundle"
    file.write_bytes(bomb)
    run.git("fetch", "-q", str(file), f"+refs/heads/{run.branch}:refs/heads/bomb")
    run.git("update-ref", f"refs/heads/{run.branch}", "refs/heads/bomb")
    (run.workspace / "late.txt").write_text("late\n")
    ran = run.extract()
    assert ran.code == 0, ran.stderr
    with pytest.raises(BundleRefused, match="too much"):
        await run.take(ran.stdout)
    taken = await run.take(run.extract(tree_on=run.source.base_commit).stdout)
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) == {"a.txt", "src/b.txt", "late.txt"}


async def test_git_and_all_that_it_starts_are_limited_from_their_first_instruction(tmp_path: Path) -> None:
    runner = Git(tmp_path / "home")
    await runner.open()
    told = await runner.run("-c", "alias.limits=!cat /proc/self/limits", "limits", seconds=7, file_bytes=3 * MB)
    limits = {line[:26].strip(): line[26:].split()[0] for line in told.decode().splitlines()}
    assert int(limits["Max data size"]) <= 2 * 1024**3
    assert int(limits["Max address space"]) <= 8 * 1024**3
    assert (limits["Max cpu time"], limits["Max file size"], limits["Max core file size"]) == ("14", str(3 * MB), "0")


async def test_what_writes_too_large_a_file_or_computes_too_long_is_told_so(tmp_path: Path) -> None:
    runner = Git(tmp_path / "home")
    await runner.open()
    with pytest.raises(GitFailed, match="larger than it may"):
        await runner.run("-c", "alias.x=!exec head -c 9000 /dev/zero > large", "x", file_bytes=4096)
    with pytest.raises(GitFailed, match=r"more processor time|did not end within 1 seconds"):
        await runner.run("-c", "alias.x=!exec sh -c 'while :; do :; done'", "x", seconds=1)


async def test_what_a_run_has_no_more_takes_no_room_for_long(run: RunHouse) -> None:
    run.git("config", "core.compression", "0")
    (run.workspace / "noise").write_bytes(os.urandom(34 * MB))
    run.commit("made.txt", "made\n", "With noise")
    await run.take()
    (run.workspace / "noise").unlink()
    run.git("add", "-A")
    run.git("commit", "-q", "--amend", "-m", "Without noise")
    head = run.git("rev-parse", "HEAD")
    assert (await run.take()).head_commit == head
    path = run.repositories.run_path(run.source.repository, run.run_id)
    assert sum(file.stat().st_size for file in path.rglob("*.pack")) < MB
    assert git(path, "rev-parse", f"refs/runs/{run.run_id}/head") == head
