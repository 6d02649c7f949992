"""Git on the host: an environment of its own, no hooks, no settings but ours, limits that hold."""

from pathlib import Path

import pytest
from git_house import git, make_repository

from automagik.claude_code.git import Git, GitFailed, is_ref_name
from automagik.errors import TooLarge
from automagik.testing.stopwatch import Stopwatch

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runner(tmp_path: Path) -> Git:
    made = Git(tmp_path / "home")
    await made.open()
    return made


async def test_a_repositorys_hooks_aliases_and_monitor_do_not_run(runner: Git, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(make_repository(tmp_path / "work")), str(bare))
    mark = tmp_path / "ran"
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {mark}\n")
    script.chmod(0o755)
    for hook in ("post-update", "reference-transaction", "update", "pre-receive"):
        (bare / "hooks" / hook).parent.mkdir(exist_ok=True)
        (bare / "hooks" / hook).symlink_to(script)
    git(bare, "config", "core.fsmonitor", str(script))

    commit = await runner.line("rev-parse", "main", repository=bare)
    assert commit is not None
    await runner.run("update-ref", "refs/heads/other", commit, repository=bare)

    assert not mark.exists()


async def test_nothing_of_this_process_environment_reaches_git(
    runner: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMAGIK_SECRET_KEY", "do-not-tell")
    monkeypatch.setenv("GIT_DIR", "/somewhere/else")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    make_repository(tmp_path / "work")

    told = await runner.run("-c", "alias.tell=!env", "tell", repository=tmp_path / "work" / ".git")

    assert b"do-not-tell" not in told
    assert b"GIT_CONFIG_COUNT" not in told
    names = {line.split(b"=")[0].decode() for line in told.splitlines()}
    assert {name for name in names if name.startswith("AUTOMAGIK")} == set()


@pytest.mark.parametrize("url", ["ext::sh -c 'touch RAN'", "file:///etc", "git://127.0.0.1/x", "https://127.0.0.1:1/x"])
async def test_no_protocol_is_spoken_that_was_not_allowed(runner: Git, tmp_path: Path, url: str) -> None:
    with pytest.raises(GitFailed) as failed:
        await runner.run("ls-remote", url)
    assert "not allowed" in failed.value.stderr or "not allowed" in failed.value.detail
    assert not (tmp_path / "home" / "RAN").exists()


async def test_what_takes_too_long_is_killed_with_all_that_it_started(runner: Git, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    for seconds in (0.5, 2.5, 8.5):  # a machine that is busy may not have begun by then
        with Stopwatch() as took, pytest.raises(GitFailed, match=rf"did not end within {seconds} seconds"):
            await runner.run("-c", f"alias.hang=!echo $$ > {pid}; sleep 60", "hang", seconds=seconds)
        assert took.seconds < seconds + 9.5
        if pid.exists() and pid.read_text():
            break
    process = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not process.exists() or process.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_an_answer_beyond_its_limit_is_an_error(runner: Git) -> None:
    with pytest.raises(TooLarge):
        await runner.run("help", "-a", max_bytes=100)


async def test_an_error_says_what_git_said(runner: Git, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "work")
    with pytest.raises(GitFailed, match=r"`git cat-file` failed: fatal: .*nothing"):
        await runner.run("cat-file", "-p", "nothing", repository=repository / ".git")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("main", True),
        ("automagik/implement/0123456789", True),
        ("v1.2.3-rc.1", True),
        ("", False),
        ("-x", False),
        ("a..b", False),
        ("a//b", False),
        ("a/.b", False),
        ("a.lock", False),
        ("a.lock/b", False),
        ("a b", False),
        ("a\nb", False),
        ("a^", False),
        ("a:b", False),
        ("@", False),
        ("a@{1}", False),
        ("/a", False),
        ("a/", False),
        ("a\\b", False),
        ("ä", False),
    ],
)
def test_names_of_refs_are_those_that_git_takes(name: str, good: bool, tmp_path: Path) -> None:
    assert is_ref_name(name) is good
    if good:
        git(tmp_path, "check-ref-format", f"refs/heads/{name}")
