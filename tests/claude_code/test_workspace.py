"""Workspaces: how they are made, and how everything that an agent made comes out of them, whatever it did to them."""

import os
import subprocess
from pathlib import Path

import pytest
from git_house import Ran, RunHouse, git, make_repository, open_repositories, run_script, write_bundle

from automagik.claude_code.commits import extract_commits
from automagik.claude_code.sources import Source
from automagik.claude_code.workspace import branch_name

pytestmark = pytest.mark.anyio


@pytest.fixture
async def run(tmp_path: Path) -> RunHouse:
    work = make_repository(tmp_path / "work", {"a.txt": "one\n", "src/b.txt": "two\n", ".gitignore": "*.log\nbuild/\n"})
    git(work, "tag", "v1")
    return await begin(work, tmp_path)


async def begin(work: Path, tmp_path: Path) -> RunHouse:
    repositories = await open_repositories(tmp_path / "data")
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    return await RunHouse.begin(repositories, source, tmp_path / "ws")


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder: what may not be touched, but for the times of objects, which git sets to say that it uses them."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK) else b""
        name = str(path.relative_to(folder))
        found[name] = (status.st_mode, 0 if name.startswith(".git/objects/") else status.st_mtime_ns, content)
    return found


# -- making


async def test_a_workspace_is_a_clone_on_a_branch_of_its_own(run: RunHouse) -> None:
    assert run.git("status", "--porcelain") == ""
    assert run.git("symbolic-ref", "--short", "HEAD") == run.branch == branch_name("implement", run.run_id)
    assert run.git("rev-parse", "HEAD") == run.source.base_commit == run.git("rev-parse", "origin/main")
    assert run.git("tag") == "v1"
    assert run.git("remote") == ""
    assert (run.workspace / "src" / "b.txt").read_text() == "two\n"


async def test_the_agent_commits_in_its_own_name(run: RunHouse) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "x"], cwd=run.workspace, env=env, check=True)
    assert run.git("log", "-1", "--format=%an <%ce>") == "Automagik (implement) <agent@automagik.invalid>"


async def test_a_workspace_that_was_begun_before_is_begun_anew(run: RunHouse) -> None:
    (run.workspace / ".git" / "index.lock").touch()
    (run.workspace / "left over").mkdir()
    base = (await run.repositories.base_bundle(run.source)).read_bytes()
    made = run_script(run.making(), stdin=base)
    assert (made.code, made.stdout.decode().strip()) == (0, run.source.base_commit), made.stderr
    assert run.git("status", "--porcelain", "--ignored") == ""


@pytest.mark.parametrize("cut", [0, 10, 300])
async def test_a_bundle_that_breaks_off_makes_no_workspace(run: RunHouse, cut: int) -> None:
    base = (await run.repositories.base_bundle(run.source)).read_bytes()
    assert run_script(run.making(), stdin=base[:cut] if cut < 300 else base[:-30]).code != 0


async def test_a_workspace_can_begin_with_what_another_run_had_not_committed(run: RunHouse, tmp_path: Path) -> None:
    (run.workspace / "new.txt").write_text("not committed")
    (run.workspace / "a.txt").unlink()
    taken = await run.take()
    base = await run.repositories.base_bundle(run.source, wip_commit=taken.wip_commit)
    next_run = RunHouse(run.repositories, run.source, tmp_path / "ws2", run.run_id, run.branch)
    next_run.workspace.mkdir()
    made = run_script(next_run.making(wip_commit=taken.wip_commit), stdin=base.read_bytes())
    assert made.code == 0, made.stderr
    assert set(next_run.git("status", "--porcelain").splitlines()) == {"D a.txt", "?? new.txt"}
    assert next_run.git("rev-parse", "HEAD") == run.source.base_commit


# -- taking out


async def test_nothing_made_is_nothing_taken(run: RunHouse) -> None:
    ran = run.extract()
    assert (ran.code, ran.stdout) == (0, b"")
    taken = await run.take()
    assert (taken.head_commit, taken.commits, taken.wip_commit, taken.bundle) == (
        run.source.base_commit,
        (),
        None,
        None,
    )


async def test_what_was_not_committed_is_taken_without_touching_the_agents_folder(run: RunHouse) -> None:
    head = run.commit("c.txt", "three\n", "Add c")
    (run.workspace / "a.txt").write_text("staged\n")
    run.git("add", "a.txt")
    (run.workspace / "a.txt").write_text("changed after\n")
    (run.workspace / "src" / "b.txt").unlink()
    (run.workspace / "new file\nwith a newline.txt").write_text("new")
    (run.workspace / "x.log").write_text("ignored")
    (run.workspace / "link").symlink_to("/etc/passwd")
    before = snapshot(run.workspace)

    first, second = run.extract(), run.extract()
    taken = await run.take(first.stdout)

    assert snapshot(run.workspace) == before
    assert first.stdout == second.stdout
    assert taken.head_commit == head
    assert taken.wip_commit is not None
    assert run.ours("rev-parse", f"{taken.wip_commit}^") == head
    assert run.ours("show", f"{taken.wip_commit}:a.txt") == "changed after"
    names = set(run.ours("ls-tree", "-r", "-z", "--name-only", taken.wip_commit).split("\0")) - {""}
    assert names == {".gitignore", "a.txt", "c.txt", "new file\nwith a newline.txt", "link"}
    assert run.ours("cat-file", "-p", f"{taken.wip_commit}:link") == "/etc/passwd"


async def test_every_branch_of_the_run_comes_out(run: RunHouse) -> None:
    first = run.commit("c.txt", "1", "On the run's branch")
    run.git("checkout", "-q", "-b", "side/idea")
    second = run.commit("d.txt", "2", "On the side")
    run.git("checkout", "-q", "--detach")
    third = run.commit("e.txt", "3", "On no branch")
    taken = await run.take()
    assert taken.head_commit == first
    assert dict(taken.branches) == {run.branch: first, "side/idea": second}
    assert run.ours("rev-parse", f"refs/runs/{run.run_id}/branches/side%2Fidea") == second

    # A branch that takes the place of a folder of branches is no trouble.
    run.git("branch", "-D", "side/idea")
    run.git("branch", "side")
    run.git("pack-refs", "--all")
    taken = await run.take()
    assert dict(taken.branches) == {run.branch: first, "side": third}


async def test_work_on_another_branch_alone_is_the_runs_head(run: RunHouse) -> None:
    run.git("checkout", "-q", "-b", "feature")
    tip = run.commit("c.txt", "1", "Elsewhere")
    assert (await run.take()).head_commit == tip


async def test_rewritten_history_is_listed_for_what_it_is(run: RunHouse) -> None:
    run.git("checkout", "-q", "--orphan", "fresh")
    run.git("commit", "-q", "-m", "All anew")
    run.git("branch", "-f", run.branch, "fresh")
    taken = await run.take()
    assert not taken.descends
    assert [commit.subject for commit in taken.commits] == ["All anew"]


async def test_commits_that_were_dropped_are_dropped(run: RunHouse) -> None:
    run.commit("c.txt", "1", "First try")
    await run.take()
    run.git("reset", "-q", "--hard", "HEAD~1")
    taken = await run.take()
    assert (taken.head_commit, taken.commits) == (run.source.base_commit, ())


# -- hostile and broken workspaces


def arm(run: RunHouse, mark: Path) -> None:
    """Every way in which a repository makes git run something."""
    script = run.workspace.parent / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    script.chmod(0o755)
    for name, value in (
        ("core.fsmonitor", str(script)),
        ("core.hooksPath", str(run.workspace / ".git" / "hooks")),
        ("core.editor", str(script)),
        ("core.pager", str(script)),
        ("core.sshCommand", str(script)),
        ("core.alternateRefsCommand", str(script)),
        ("uploadpack.packObjectsHook", str(script)),
        ("filter.evil.clean", str(script)),
        ("filter.evil.smudge", str(script)),
        ("filter.evil.process", str(script)),
        ("filter.evil.required", "true"),
        ("diff.evil.textconv", str(script)),
        ("diff.external", str(script)),
        ("merge.evil.driver", str(script)),
        ("gpg.program", str(script)),
        ("commit.gpgSign", "true"),
        ("alias.add", f"!{script}"),
    ):
        run.git("config", name, value)
    (run.workspace / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    for hook in ("pre-commit", "post-index-change", "reference-transaction", "post-checkout", "fsmonitor-watchman"):
        path = run.workspace / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(script)


async def test_nothing_that_the_repository_says_is_run(run: RunHouse, tmp_path: Path) -> None:
    head = run.commit("c.txt", "three\n", "Add c")
    mark = tmp_path / "ran"
    arm(run, mark)
    (run.workspace / "new.txt").write_text("new")
    mark.unlink(missing_ok=True)

    taken = await run.take()

    assert not mark.exists()
    assert taken.head_commit == head
    assert taken.wip_commit is not None
    assert run.ours("show", f"{taken.wip_commit}:new.txt") == "new"


async def test_settings_that_lead_elsewhere_lead_nowhere(run: RunHouse, tmp_path: Path) -> None:
    head = run.commit("c.txt", "three\n", "Add c")
    with (run.workspace / ".git" / "config").open("a") as config:
        config.write(f"[core]\n\tworktree = /etc\n\tbare = true\n[include]\n\tpath = {tmp_path}/nothing\n")
        config.write("[core\nthis is no config\n")
    (run.workspace / "new.txt").write_text("new")
    taken = await run.take()
    assert taken.head_commit == head
    assert taken.wip_commit is not None
    assert "new.txt" in run.files_of(taken.wip_commit)


def break_lock(folder: Path) -> None:
    for name in ("index.lock", "HEAD.lock", "packed-refs.lock", "config.lock"):
        (folder / ".git" / name).touch()
    branch = git(folder, "symbolic-ref", "HEAD")
    (folder / ".git" / f"{branch}.lock").touch()


def break_index(folder: Path) -> None:
    (folder / ".git" / "index").write_bytes(b"DIRC" + b"\xff" * 500)


def break_index_with_link(folder: Path) -> None:
    (folder / ".git" / "index").unlink()
    (folder / ".git" / "index").symlink_to("/dev/zero")


def break_hidden(folder: Path) -> None:
    git(folder, "update-index", "--assume-unchanged", "a.txt")
    git(folder, "update-index", "--skip-worktree", "src/b.txt")


def break_fifo(folder: Path) -> None:
    os.mkfifo(folder / ".git" / "refs" / "heads" / "pipe")
    os.mkfifo(folder / "pipe")


def break_refs(folder: Path) -> None:
    refs = folder / ".git" / "refs" / "heads"
    (refs / "missing").write_text("1" * 40 + "\n")
    (refs / "garbage").write_bytes(os.urandom(300))
    (refs / "bad name").write_text("1" * 40)
    (refs / "link").symlink_to("/dev/zero")
    (refs / "tree").write_text(git(folder, "rev-parse", "HEAD^{tree}") + "\n")
    (folder / ".git" / "packed-refs").write_bytes(b"garbage\n" + b"2" * 40 + b" refs/heads/../../x\n" + os.urandom(300))


def break_nested(folder: Path) -> None:
    (folder / "sub").mkdir()
    git(folder / "sub", "init", "-q")
    make_repository(folder / "other")


def break_unreadable(folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "closed" / "x").write_text("x")
    (folder / "closed").chmod(0)


def break_encoding(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.txt working-tree-encoding=UTF-16\n")


def break_alternates(folder: Path) -> None:
    (folder / ".git" / "objects" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "objects" / "info" / "alternates").write_text('/nowhere\n"/else\n../../../../etc\n')


def break_monitor(folder: Path) -> None:
    git(folder, "config", "core.untrackedCache", "true")
    git(folder, "update-index", "--untracked-cache")
    git(folder, "update-index", "--split-index")


@pytest.mark.parametrize(
    "breaking",
    [
        break_lock,
        break_index,
        break_index_with_link,
        break_hidden,
        break_fifo,
        break_refs,
        break_nested,
        break_unreadable,
        break_encoding,
        break_alternates,
        break_monitor,
    ],
    ids=lambda value: value.__name__.removeprefix("break_"),
)
async def test_commits_and_changes_come_out_of_a_broken_workspace(run: RunHouse, breaking: object) -> None:
    head = run.commit("c.txt", "three\n", "Add c")
    assert callable(breaking)
    breaking(run.workspace)
    (run.workspace / "a.txt").write_text("changed\n")
    (run.workspace / "src" / "b.txt").write_text("changed, too\n")
    try:
        taken = await run.take()
    finally:
        for path in run.workspace.glob("closed"):
            path.chmod(0o700)
    assert taken.head_commit == head
    assert taken.wip_commit is not None
    assert run.ours("show", f"{taken.wip_commit}:a.txt") == "changed"
    assert run.ours("show", f"{taken.wip_commit}:src/b.txt") == "changed, too"


def lose_git(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder / ".git")], check=True)


def lose_objects(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder / ".git" / "objects")], check=True)


def lose_packs(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder / ".git" / "objects" / "pack")], check=True)


def replace_git(folder: Path) -> None:
    lose_git(folder)
    (folder / ".git").symlink_to("/")


@pytest.mark.parametrize("losing", [lose_git, lose_objects, lose_packs, replace_git], ids=lambda value: value.__name__)
async def test_without_a_git_folder_the_tree_is_saved_all_the_same(run: RunHouse, losing: object) -> None:
    run.commit("c.txt", "three\n", "Add c")
    assert callable(losing)
    losing(run.workspace)
    ran = run.extract()
    taken = await run.take(ran.stdout)
    assert "automagik: " in ran.stderr
    assert taken.head_commit == run.source.base_commit
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) >= {"a.txt", "src/b.txt", "c.txt"}


async def test_an_unborn_branch_saves_what_is_there(run: RunHouse) -> None:
    run.git("checkout", "-q", "--orphan", "nothing-yet")
    (run.workspace / "new.txt").write_text("new")
    taken = await run.take()
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) >= {"a.txt", "new.txt"}


async def test_large_files_that_are_not_committed_are_left_out_and_named(run: RunHouse) -> None:
    (run.workspace / "big one.bin").write_bytes(b"x" * 5000)
    (run.workspace / "src" / "b.txt").write_bytes(b"y" * 5000)
    (run.workspace / "small.txt").write_text("small")
    ran = run.extract(max_file_bytes=1000)
    taken = await run.take(ran.stdout)
    assert "left out, too large: ./big one.bin" in ran.stderr
    assert taken.wip_commit is not None
    assert "big one.bin" not in run.files_of(taken.wip_commit)
    assert run.ours("show", f"{taken.wip_commit}:src/b.txt") == "two"
    assert run.ours("show", f"{taken.wip_commit}:small.txt") == "small"


def extract_with_room(run: RunHouse, kib: int) -> Ran:
    """The script where the temporary folder's files may have so many KiB: what a full disk does to it."""
    script = extract_commits(base_commit=run.source.base_commit, workspace=str(run.workspace))
    limited = ["bash", "-c", f'trap "" XFSZ; ulimit -f {kib}; exec "$@"', "x", *script.command]
    done = subprocess.run(limited, env=dict(script.env), capture_output=True, check=False, timeout=60)
    return Ran(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))


async def test_a_full_disk_still_gives_the_commits(run: RunHouse) -> None:
    head = run.commit("c.txt", "three\n", "Add c")
    (run.workspace / "noise.bin").write_bytes(os.urandom(400_000))
    ran = extract_with_room(run, 200)
    assert ran.code == 0, ran.stderr
    taken = await run.take(ran.stdout)
    assert taken.head_commit == head
    assert "automagik: " in ran.stderr


async def test_no_room_at_all_is_a_failure_and_not_an_empty_result(run: RunHouse) -> None:
    run.commit("c.txt", "three\n", "Add c")
    script = extract_commits(base_commit=run.source.base_commit, workspace=str(run.workspace))
    assert run_script(script, env={"TMPDIR": "/nonexistent"}).code == 3


async def test_a_workspace_of_another_repository_gives_no_commits_of_it(tmp_path: Path, run: RunHouse) -> None:
    other = make_repository(tmp_path / "ws3", {"z.txt": "z"})
    stranger = RunHouse(run.repositories, run.source, other, run.run_id, run.branch)
    taken = await stranger.take()
    assert taken.head_commit == run.source.base_commit
    assert taken.wip_commit is not None
    assert run.files_of(taken.wip_commit) == {"z.txt"}


def test_scripts_hold_nothing_of_their_arguments() -> None:
    script = extract_commits(base_commit="1" * 40, workspace="/x'; touch /tmp/y; '")
    assert "touch" not in script.command[2]
    assert Source("b" * 41, "1" * 40).branch is None
