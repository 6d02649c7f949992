"""Repositories within the repository, submodules, and files of Git LFS: what comes in, what comes out, and what is said of the rest."""

import hashlib
import json
from pathlib import Path

import pytest
from git_house import RunHouse, git, make_repository, open_repositories, write_bundle
from workflow_house import workflow_house

from automagik.claude_code.bundles import BundleRefused
from automagik.claude_code.commits import left_out
from automagik.claude_code.contents import Contents
from automagik.testing.needs import need
from automagik.testing.warm import WarmPython

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


async def test_a_repository_within_that_has_no_commit_is_no_trouble(run: RunHouse) -> None:
    (run.workspace / "new").mkdir()
    git(run.workspace / "new", "init", "-q")
    (run.workspace / "new" / "one.py").write_text("1\n")
    ran = run.extract()
    taken = await run.take(ran.stdout)
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) == {".gitignore", "a.txt", "new/one.py"}
    (said,) = left_out(ran.stderr)
    assert said.endswith("its own commits are not: ./new")


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


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'1' * 64}\nsize 123456\n"


async def contents_of(mine: Path, folder: Path) -> Contents:
    repositories = await open_repositories(folder / "data")
    source = await repositories.import_bundle(write_bundle(mine, folder / "upload.bundle"))
    return await Contents.of(repositories.git, repositories.path(source.repository), source.base_commit)


@pytest.mark.parametrize(
    "url",
    ["https://example.invalid/lib.git", "ext::sh -c 'touch RAN'", "file:///etc", "../../up"],
)
async def test_submodules_are_told_apart_and_nobody_fetches_them(tmp_path: Path, url: str) -> None:
    mine = with_submodule(tmp_path / "mine", url)
    contents = await contents_of(mine, tmp_path)
    assert (contents.submodules, contents.pointers) == (("lib",), ())
    (told,) = contents.warnings()
    assert told["code"] == "submodules_left_out"
    assert "1 submodule (lib)" in str(told["detail"])
    run = await begin(mine, tmp_path)
    assert list((run.workspace / "lib").iterdir()) == []
    assert run.git("status", "--porcelain") == ""
    assert not list(tmp_path.rglob("RAN"))


async def test_a_submodules_address_that_is_an_option_of_git_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match=r"gitmodulesUrl: disallowed submodule url: --upload-pack=touch RAN"):
        await contents_of(with_submodule(tmp_path / "mine", "--upload-pack=touch RAN"), tmp_path)


async def test_files_of_git_lfs_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    files = {
        "docs/pointer.md": POINTER,  # no attribute makes it one, but it is one
        "art/a.png": POINTER,
        "art/empty.png": "",
        "art/committed.png": "not a pointer\n",
        "art/.gitattributes": "*.png filter=lfs diff=lfs merge=lfs -text\n",
        ".lfsconfig": "[lfs]\n\turl = https://evil.invalid/lfs\n",
    }
    mine = make_repository(tmp_path / "mine", files)
    git(mine, "mv", "art/a.png", "art/\x1b[31mred.png")
    git(mine, "commit", "-q", "-m", "A name")
    contents = await contents_of(mine, tmp_path)
    assert set(contents.pointers) == {"docs/pointer.md", "art/\x1b[31mred.png"}
    (told,) = contents.warnings()
    assert told["code"] == "lfs_left_out"
    assert "2 files" in str(told["detail"])
    assert "\x1b" not in str(told["detail"])
    assert "red" not in contents.instructions()


async def test_a_repository_without_either_is_told_nothing_of(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine", {"pointer.txt": POINTER})
    contents = await contents_of(mine, tmp_path)
    assert (contents.warnings(), contents.instructions()) == ([], "")


async def test_a_filter_that_the_repository_names_runs_on_neither_side(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine", {"a.x": "one\n", ".gitattributes": "*.x filter=evil\n"})
    run = await begin(mine, tmp_path)
    for kind in ("smudge", "clean", "process"):
        run.git("config", f"filter.evil.{kind}", f"touch {tmp_path}/RAN; cat")
    (run.workspace / "b.x").write_text("two\n")
    taken = await run.take()
    assert taken.wip_commit is not None
    await run.repositories.diff(run.run_id, run.source.repository, run.source.base_commit, wip=True)
    assert not (tmp_path / "RAN").exists()


async def test_a_run_warns_of_what_its_workspace_is_without(warm: WarmPython) -> None:
    need("bubblewrap")
    need("claude")
    call = {
        "name": "Bash",
        "input": {"command": "cat a.png; git init -q tool; echo x > tool/x.py", "description": "Look"},
    }
    turns = [{"text": "I look.", "tool_use": [call]}, {"text": "Done."}]
    script = {"rules": [{"when": {"tools": True}, "turns": turns}], "default": {"text": "OK"}}
    async with workflow_house(script, warm=warm) as house:
        (house.repository / "a.png").write_text(POINTER)
        (house.repository / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
        git(house.repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib")
        git(house.repository, "add", "a.png", ".gitattributes")
        git(house.repository, "commit", "-q", "-m", "Pictures and a library")
        run_id = await house.begin()
        run = await house.ended(run_id)
        assert run["outcome"] == "completed", run["error"]
        events = await house.events(run_id)
        told = {event["data"]["code"]: event["data"]["detail"] for event in events if event["type"] == "warning"}
        diff = (await house.client.get(f"/runs/{run_id}/diff", params={"wip": "true"})).text
        prompts = json.dumps([call.body for call in house.api.calls])
        # What was sent for a run can be seen, so that it needs not be sent for the next one.
        digest = hashlib.sha256((house.folder / "upload.bundle").read_bytes()).hexdigest()
        sent = await house.client.get(f"/artifacts/{digest}")
        assert (sent.status_code, sent.headers["content-type"]) == (200, "application/x-git-bundle")
    assert "1 submodule (lib)" in told["submodules_left_out"]
    assert "1 file (a.png) of Git LFS" in told["lfs_left_out"]
    assert "./tool" in told["left_out"]
    assert "tool/x.py" in diff
    assert "What the workspace is without" in prompts
