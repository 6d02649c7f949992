"""What an agent leaves so that nothing can be taken out: the rest is had all the same."""

import os
from pathlib import Path

import pytest
from git_house import RunHouse, make_repository, open_repositories, write_bundle

from automagik.claude_code.bundles import BundleRefused

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
async def run(tmp_path: Path) -> RunHouse:
    repositories = await open_repositories(tmp_path / "data")
    bundle = write_bundle(make_repository(tmp_path / "mine"), tmp_path / "upload.bundle")
    return await RunHouse.begin(repositories, await repositories.import_bundle(bundle), tmp_path / "workspace")


async def test_a_pipe_in_the_place_of_head_holds_nothing_up(run: RunHouse) -> None:
    made = run.commit("made.txt", "made\n", "Made")
    (run.workspace / ".git" / "HEAD").unlink()
    os.mkfifo(run.workspace / ".git" / "HEAD")
    assert (await run.take()).head_commit == made


@pytest.mark.parametrize("name", ["pack/pack-1.idx", "pack/multi-pack-index", "info/commit-graph", "info/alternates"])
@pytest.mark.parametrize("kind", ["pipe", "garbage", "link"])
async def test_files_that_git_reads_besides_its_objects_hold_nothing_up(run: RunHouse, name: str, kind: str) -> None:
    made = run.commit("made.txt", "made\n", "Made")
    file = run.workspace / ".git" / "objects" / name
    file.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes(os.urandom(4096))
    assert (await run.take()).head_commit == made


async def test_commits_are_had_where_the_tree_can_not_be_read(run: RunHouse) -> None:
    made = run.commit("made.txt", "made\n", "Made")
    os.mkfifo(run.workspace / ".gitignore")
    ran = run.extract(tree_seconds=1)
    assert ran.code == 0, ran.stderr
    assert "could not be read within 1 seconds" in ran.stderr
    assert (await run.take(ran.stdout)).head_commit == made


async def test_of_too_many_branches_the_runs_own_is_taken(run: RunHouse) -> None:
    made = run.commit("made.txt", "made\n", "Made")
    for number in range(600):
        (run.workspace / ".git" / "refs" / "heads" / f"a{number}").write_text(f"{made}\n")
    run.git("pack-refs", "--all")
    for number in range(600, 1000):
        (run.workspace / ".git" / "refs" / "heads" / f"a{number}").write_text(f"{made}\n")
    taken = await run.take()
    assert taken.head_commit == made
    assert taken.branches[run.branch] == made
    assert len(taken.branches) <= 500


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "added only"])
async def test_the_tree_is_had_upon_a_sound_commit_where_a_file_is_too_large(run: RunHouse, committed: bool) -> None:
    sound = run.commit("sound.txt", "sound\n", "Sound")
    assert (await run.take()).head_commit == sound
    (run.workspace / "large.bin").touch()
    os.truncate(run.workspace / "large.bin", 101 * 1024 * 1024)
    run.git("add", "-A")
    if committed:
        run.git("commit", "-q", "-m", "Too large")
    (run.workspace / "late.txt").write_text("late\n")
    with pytest.raises(BundleRefused):
        await run.take()

    ran = run.extract(tree_on=sound)
    assert "left out, too large: ./large.bin" in ran.stderr
    taken = await run.take(ran.stdout)
    assert taken.head_commit == sound
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) == {"a.txt", "src/b.txt", "sound.txt", "late.txt"}
