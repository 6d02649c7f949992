"""What a run made is taken into a user's repository: only what was shown, whatever the agent or the repository had in mind."""

from pathlib import Path

import pytest
from git_house import RunHouse, git, make_repository, open_repositories, write_bundle

from automagik.cli.failure import CliError
from automagik.cli.workflows import validate
from automagik.cli.working_copy import bundled, fetch_bundle, uncommitted

pytestmark = pytest.mark.anyio


async def begun(folder: Path, repository: Path) -> RunHouse:
    repositories = await open_repositories(folder / "data")
    source = await repositories.import_bundle(write_bundle(repository, folder / "upload.bundle"))
    return await RunHouse.begin(repositories, source, folder / "workspace")


def extracted(run: RunHouse, file: Path) -> Path:
    file.write_bytes(run.extract().stdout)
    return file


async def test_only_the_branch_of_the_run_is_applied_and_never_another_one_that_the_agent_made(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine")
    run = await begun(tmp_path, mine)
    run.git("checkout", "-q", "-b", "aaa")
    hidden = run.commit("hidden.txt", "what nobody is shown\n", "Hidden")
    run.git("checkout", "-q", run.branch)
    shown = run.commit("shown.txt", "shown\n", "Shown")
    (run.workspace / "wip.txt").write_text("not committed\n")
    bundle = extracted(run, tmp_path / "run.bundle")
    taken = await run.take(bundle.read_bytes())

    assert taken.head_commit == shown
    assert fetch_bundle(str(mine), bundle, "got", made_on=run.branch, head=taken.head_commit) == shown
    assert git(mine, "rev-parse", "got") == shown
    assert git(mine, "log", "--all", "--format=%s") == "Shown\nFirst"
    with pytest.raises(CliError, match="is not the run's"):
        fetch_bundle(str(mine), bundle, "other", made_on=run.branch, head=hidden)
    assert "other" not in git(mine, "branch")


async def test_what_was_checked_out_is_applied_where_the_agent_left_its_branch(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine")
    run = await begun(tmp_path, mine)
    run.git("checkout", "-q", "--detach")
    shown = run.commit("shown.txt", "shown\n", "Shown")
    bundle = extracted(run, tmp_path / "run.bundle")
    assert fetch_bundle(str(mine), bundle, "got", made_on=run.branch, head=shown) == shown


async def test_what_was_not_committed_is_no_commit_to_apply(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine")
    run = await begun(tmp_path, mine)
    (run.workspace / "wip.txt").write_text("not committed\n")
    bundle = extracted(run, tmp_path / "run.bundle")
    assert bundle.stat().st_size > 0
    with pytest.raises(CliError, match="made no commit"):
        fetch_bundle(str(mine), bundle, "got", made_on=run.branch)


async def test_a_repositorys_hooks_and_the_variables_of_a_hook_have_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = make_repository(tmp_path / "mine"), make_repository(tmp_path / "other", {"other.txt": "other\n"})
    hook = mine / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))

    run = await begun(tmp_path, mine)
    made = run.commit("made.txt", "made\n", "Made")
    bundle = extracted(run, tmp_path / "run.bundle")
    (tmp_path / "hooked").unlink(missing_ok=True)
    with bundled(str(mine), "main") as sent:
        assert git(mine, "rev-parse", "main") in git(mine, "bundle", "list-heads", str(sent))
    fetch_bundle(str(mine), bundle, "got", made_on=run.branch)

    assert git(mine, "rev-parse", "got") == made
    assert not (tmp_path / "hooked").exists()
    with pytest.raises(CliError, match="no commit '--all'"), bundled(str(mine), "--all"):
        pass


async def test_what_a_ref_names_is_sent_as_the_server_takes_it_and_leaves_no_ref_behind(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine")
    first = git(mine, "rev-parse", "HEAD")
    git(mine, "commit", "-q", "--allow-empty", "-m", "Second")
    before = git(mine, "for-each-ref")
    repositories = await open_repositories(tmp_path / "data")
    with bundled(str(mine), "HEAD~1") as sent:
        assert git(mine, "for-each-ref") == before
        assert (await repositories.import_bundle(sent)).base_commit == first


async def test_a_submodule_that_is_checked_out_is_neither_sent_nor_fetched_into(tmp_path: Path) -> None:
    mine, library = make_repository(tmp_path / "mine"), make_repository(tmp_path / "library", {"lib.txt": "lib\n"})
    git(mine, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib")
    git(mine, "commit", "-q", "-m", "With a library")
    for folder, name, value in (
        (mine, "fetch.recurseSubmodules", "true"),
        (mine, "submodule.recurse", "true"),
        (mine, "protocol.ext.allow", "always"),
        (mine / "lib", "protocol.ext.allow", "always"),
        (mine / "lib", "remote.origin.url", f"ext::touch {tmp_path}/RAN"),
        (mine / "lib", "core.fsmonitor", f"touch {tmp_path}/RAN"),
    ):
        git(folder, "config", name, value)
    (tmp_path / "RAN").unlink(missing_ok=True)
    run = await begun(tmp_path, mine)
    assert list((run.workspace / "lib").iterdir()) == []
    run.git("update-index", "--cacheinfo", f"160000,{'2' * 40},lib")
    run.git("commit", "-q", "-m", "Another library")
    made = run.git("rev-parse", "HEAD")
    bundle = extracted(run, tmp_path / "run.bundle")
    assert (await run.take(bundle.read_bytes())).head_commit == made

    assert uncommitted(str(mine)) == 0
    with bundled(str(mine), None):
        pass
    assert fetch_bundle(str(mine), bundle, "got", made_on=run.branch) == made
    assert not (tmp_path / "RAN").exists()
    assert (mine / "lib" / "lib.txt").read_text() == "lib\n"


def test_of_a_shallow_clone_no_bundle_is_made(tmp_path: Path) -> None:
    mine = make_repository(tmp_path / "mine")
    git(mine, "commit", "-q", "--allow-empty", "-m", "Second")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{mine}", "shallow")
    with pytest.raises(CliError, match="shallow") as told, bundled(str(tmp_path / "shallow"), None):
        pass
    assert told.value.hint == "git fetch --unshallow"


def test_a_workflows_file_that_leads_out_of_its_folder_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "own.key").write_text("mine alone")
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "workflow.toml").write_text("")
    (folder / "prompt.md").symlink_to("../own.key")
    with pytest.raises(CliError, match="leads out of its folder"):
        validate(folder, url="http://127.0.0.1:9")
