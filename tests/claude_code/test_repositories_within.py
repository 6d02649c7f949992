"""Repositories within the repository, submodules, and files of Git LFS: what comes in, what comes out, and what is said of the rest."""

from pathlib import Path

import pytest
from git_house import RunHouse, git, make_repository, open_repositories, write_bundle

from automagik.claude_code.commits import left_out

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def begin(mine: Path, folder: Path) -> RunHouse:
    repositories = await open_repositories(folder / "data")
    source = await repositories.import_bundle(write_bundle(mine, folder / "upload.bundle"))
    return await RunHouse.begin(repositories, source, folder / "workspace")


@pytest.fixture
async def run(tmp_path: Path) -> RunHouse:
    files = {"a.txt": "one\n", ".gitignore": "ignored/\n*.log\n"}
    return await begin(make_repository(tmp_path / "mine", files), tmp_path)


def with_submodule(folder: Path, url: str = "https://example.invalid/lib.git") -> Path:
    """A repository whose submodule `lib` is a commit of another one."""
    mine = make_repository(folder, {"a.txt": "one\n"})
    (mine / ".gitmodules").write_text(f'[submodule "lib"]\n\tpath = lib\n\turl = {url}\n')
    git(mine, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib")
    git(mine, "add", ".gitmodules")
    git(mine, "commit", "-q", "-m", "With a submodule")
    return mine


@pytest.mark.parametrize("committed", [False, True], ids=["not committed", "committed as a link"])
async def test_files_of_a_repository_within_come_out_as_they_stand(run: RunHouse, committed: bool) -> None:
    within = make_repository(
        run.workspace / "tool's" / "new & \\x", {"src/one.py": "1\n", "-v": "2\n", ".gitignore": "*.pyc\n"}
    )
    (within / "late.py").write_text("late\n")
    (within / "x.pyc").write_text("ignored\n")
    (within / "link").symlink_to("/etc/passwd")
    make_repository(run.workspace / "ignored" / "deep")
    if committed:
        run.git("add", "-A")
        run.git("commit", "-q", "-m", "A link")
    ran = run.extract()
    taken = await run.take(ran.stdout)
    assert taken.wip_commit is not None
    names = set(run.ours("ls-tree", "-r", "-z", "--name-only", taken.wip_commit).split("\0")) - {""}
    folder = "tool's/new & \\x"
    assert names == {
        ".gitignore",
        "a.txt",
        *(f"{folder}/{name}" for name in ("src/one.py", "-v", ".gitignore", "late.py", "link")),
    }
    assert [said for said in left_out(ran.stderr) if "a repository within" in said and "new & " in said]
    assert run.extract().stdout == ran.stdout


async def test_what_an_agent_writes_into_the_folder_of_a_submodule_comes_out(tmp_path: Path) -> None:
    run = await begin(with_submodule(tmp_path / "mine"), tmp_path)
    assert run.extract().stdout == b""  # the empty folder is as it was
    (run.workspace / "lib" / "made.txt").write_text("made\n")
    ran = run.extract()
    taken = await run.take(ran.stdout)
    assert taken.wip_commit is not None
    assert run.ours("show", f"{taken.wip_commit}:lib/made.txt") == "made"
    assert "./lib" in " ".join(left_out(ran.stderr))


async def test_a_large_file_within_is_left_out_and_named(run: RunHouse) -> None:
    within = make_repository(run.workspace / "within", {"small.txt": "small\n"})
    (within / "large.bin").write_bytes(b"x" * 5000)
    ran = run.extract(max_file_bytes=1000)
    taken = await run.take(ran.stdout)
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) == {".gitignore", "a.txt", "within/small.txt"}
    assert "left out, too large: ./within/large.bin" in left_out(ran.stderr)


def test_what_is_said_of_names_that_mean_harm_is_text_and_not_too_much() -> None:
    lines = [f"automagik: left out: \x1b[31m{number} " + "x" * 1000 for number in range(100)]
    said = left_out("\n".join(["something else", *lines]))
    assert len(said) == 30
    assert all(len(line) <= 400 and "\x1b" not in line for line in said)
