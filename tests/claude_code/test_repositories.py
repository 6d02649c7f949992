"""Repositories: what is imported, from whom and from where; what is refused; what is told of a run's work."""

import asyncio
import hashlib
import zlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from git_house import RunHouse, chunks, git, make_repository, open_repositories, run_script, write_bundle

from automagik.claude_code.bundles import BundleRefused
from automagik.claude_code.git import GitFailed
from automagik.claude_code.repositories import Repositories
from automagik.errors import Conflict, InvalidInput, NotFound, TooLarge
from automagik.settings import Settings
from automagik.types import SystemClock, new_id

pytestmark = pytest.mark.anyio


@pytest.fixture
async def repositories(tmp_path: Path) -> Repositories:
    return await open_repositories(tmp_path / "data", repository_roots=[str(tmp_path / "root")])


# -- bundles


async def test_a_bundle_becomes_a_source_at_its_head(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    git(work, "checkout", "-q", "-b", "feature")
    (work / "c.txt").write_text("three\n")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "Second")
    bundle = write_bundle(work, tmp_path / "x.bundle", "--all", "HEAD")

    source = await repositories.import_bundle(bundle)
    again = await repositories.import_bundle(bundle, ref="main")

    assert (source.base_commit, source.branch) == (git(work, "rev-parse", "feature"), "feature")
    assert (again.base_commit, again.branch) == (git(work, "rev-parse", "main"), "main")
    assert again.repository == source.repository


@pytest.mark.parametrize("by", ["tag", "commit", "short commit"])
async def test_a_ref_may_be_a_tag_or_a_commit(repositories: Repositories, tmp_path: Path, by: str) -> None:
    work = make_repository(tmp_path / "work")
    git(work, "tag", "-a", "v1", "-m", "one")
    commit = git(work, "rev-parse", "main")
    ref = {"tag": "v1", "commit": commit, "short commit": commit[:8]}[by]
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"), ref=ref)
    assert source.base_commit == commit


async def test_an_unknown_ref_names_the_nearest(repositories: Repositories, tmp_path: Path) -> None:
    bundle = write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle")
    for ref in ("mian", "--upload-pack=x", "refs/heads/../../x", "main~0", "@{-1}"):
        with pytest.raises(InvalidInput) as wrong:
            await repositories.import_bundle(bundle, ref=ref)
        assert wrong.value.field == ("body", "ref")
    with pytest.raises(InvalidInput) as wrong:
        await repositories.import_bundle(bundle, ref="mian")
    assert wrong.value.hint == "Did you mean 'main'?"


def broken(kind: str, whole: bytes) -> bytes:
    header, pack = whole.split(b"\n\n", 1)
    match kind:
        case "no bundle":
            return b"PK\x03\x04" + whole
        case "empty":
            return b""
        case "cut":
            return whole[:-40]
        case "flipped":
            return whole[:-60] + bytes([whole[-60] ^ 0xFF]) + whole[-59:]
        case "escaping ref":
            return header.replace(b"refs/heads/main", b"refs/heads/../../../x") + b"\n\n" + pack
        case "ref with a newline in its name":
            return header.replace(b"refs/heads/main", b"refs/heads/ma\x00in") + b"\n\n" + pack
        case "object that is none":
            return b"# v2 git bundle\n" + b"z" * 40 + b" refs/heads/main\n\n" + pack
        case "endless header":
            return b"# v2 git bundle\n" + b"a" * 5_000_000
        case "partial clone":
            return b"# v3 git bundle\n@filter=blob:none\n" + header.split(b"\n", 1)[1] + b"\n\n" + pack
        case "sha-256":
            return b"# v3 git bundle\n@object-format=sha256\n" + header.split(b"\n", 1)[1] + b"\n\n" + pack
        case _:
            return b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/main\n\n" + pack


@pytest.mark.parametrize(
    "kind",
    [
        "no bundle",
        "empty",
        "cut",
        "flipped",
        "escaping ref",
        "ref with a newline in its name",
        "object that is none",
        "endless header",
        "partial clone",
        "sha-256",
        "object that is not in it",
    ],
)
async def test_a_hostile_bundle_is_refused_and_leaves_nothing(
    repositories: Repositories, tmp_path: Path, kind: str
) -> None:
    whole = write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle").read_bytes()
    bad = tmp_path / "bad.bundle"
    bad.write_bytes(broken(kind, whole))
    with pytest.raises(BundleRefused) as refused:
        await repositories.import_bundle(bad)
    assert refused.value.hint
    assert not list((tmp_path / "data" / "repositories").glob("*.git"))
    assert not list((tmp_path / "data" / "repositories" / "incoming").iterdir())


async def test_a_partial_bundle_is_refused(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    git(work, "commit", "-q", "--allow-empty", "-m", "Second")
    bundle = write_bundle(work, tmp_path / "x.bundle", "main", "^main~1")
    with pytest.raises(BundleRefused, match="partial"):
        await repositories.import_bundle(bundle)


async def test_a_bundle_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    repositories = await open_repositories(tmp_path / "data", max_artifact_bytes=100)
    bundle = write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle")
    with pytest.raises(TooLarge):
        await repositories.import_bundle(bundle)


async def test_a_bundles_own_refs_of_runs_are_not_taken(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    git(work, "update-ref", "refs/runs/run_01abc/head", "main")
    git(work, "update-ref", "refs/base/x", "main")
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    refs = git(repositories.path(source.repository), "for-each-ref", "--format=%(refname)").splitlines()
    assert refs == [f"refs/base/{source.base_commit}", "refs/source/HEAD", "refs/source/heads/main"]


async def test_a_tree_with_a_git_folder_in_it_is_refused(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    blob = git(work, "hash-object", "-w", "a.txt")
    inner = git(work, "mktree", stdin=f"100644 blob {blob}\tconfig\n".encode())
    # `git mktree` itself would refuse the name, so the tree is written as it is.
    raw = b"40000 .git\x00" + bytes.fromhex(inner)
    tree = git(work, "hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=raw)
    git(work, "update-ref", "refs/heads/main", git(work, "commit-tree", tree, "-m", "Evil"))
    with pytest.raises(BundleRefused):
        await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))


async def test_a_commit_of_another_source_can_not_be_named(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    secret = run.commit("secret.txt", "hidden", "Secret of a run")
    await run.take()
    with pytest.raises(InvalidInput):
        await repositories.import_bundle(tmp_path / "x.bundle", ref=secret)


async def test_imports_at_once_give_one_repository(repositories: Repositories, tmp_path: Path) -> None:
    bundle = write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle")
    other = await open_repositories(tmp_path / "data")
    sources = await asyncio.gather(*(side.import_bundle(bundle) for side in (repositories, other) * 4))
    assert len({source.repository for source in sources}) == 1
    assert len(list((tmp_path / "data" / "repositories").glob("*.git"))) == 1


# -- places


async def test_a_folder_under_a_root_is_cloned_and_fetched_again(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "root" / "team" / "project", branch="trunk")
    first = await repositories.import_place(str(work))
    git(work, "commit", "-q", "--allow-empty", "-m", "Second")
    second = await repositories.import_place(str(work))

    assert (first.branch, second.branch) == ("trunk", "trunk")
    assert first.repository == second.repository
    assert second.base_commit == git(work, "rev-parse", "trunk")
    # What began from the first goes on.
    assert (await repositories.base_bundle(first)).is_file()


async def test_an_empty_repository_says_what_to_do(repositories: Repositories, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "empty"
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    with pytest.raises(InvalidInput, match="no commit") as wrong:
        await repositories.import_place(str(folder))
    assert "Commit something" in (wrong.value.hint or "")


async def test_only_what_the_settings_allow_is_cloned(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", make_repository(tmp_path / "outside")
    make_repository(root / "inside")
    (root / "link").symlink_to(outside)
    (root / "gitlink").mkdir()
    (root / "gitlink" / ".git").symlink_to(outside / ".git")
    (root / "pointer").mkdir()
    (root / "pointer" / ".git").write_text(f"gitdir: {outside}/.git\n")
    borrower = make_repository(root / "borrower")
    (borrower / ".git" / "objects" / "info" / "alternates").write_text(f"{outside}/.git/objects\n")
    data = root / "data"
    ours = make_repository(data / "runs" / "x" / "workspace")
    repositories = await open_repositories(data, repository_roots=[str(root)], repository_hosts=["git.example.org"])
    for place in (
        str(outside),
        f"{root}/../outside",
        f"{root}/inside/../../outside",
        str(root / "link"),
        str(root / "gitlink"),
        str(root / "pointer"),
        str(borrower),
        str(ours),
        str(root / "nothing"),
        f"{root}-other",
        "relative/folder",
        f"file://{root}/inside",
        "ext::sh -c 'touch /tmp/x'",
        "fd::17",
        "--upload-pack=touch /tmp/x",
        "-c core.sshCommand=x",
        "https://other.example.org/a/b",
        "https://git.example.org.evil.org/a/b",
        "https://git.example.org@evil.org/a/b",
        "https://git.example.org:444/a/b",
        "http://git.example.org/a/b",
        "git://git.example.org/a/b",
        "ssh://-oProxyCommand=x/a/b",
        "ssh://git.example.org/-x/../;touch",
        "git@other.example.org:a/b",
        "-x@git.example.org:a/b",
        "https://git.example.org/a/b?x=y",
        "https://git.example.org/a b",
        "https://git.example.org/a\nb",
        "",
    ):
        with pytest.raises(InvalidInput) as refused:
            await repositories.import_place(place)
        assert refused.value.field == ("body", "repository"), place
        assert refused.value.hint, place
    assert (await repositories.import_place(str(root / "inside"))).branch == "main"


async def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    repositories = await open_repositories(tmp_path / "data", repository_hosts=["git.example.org"])
    with pytest.raises(InvalidInput) as refused:
        await repositories.import_place("https://ann:hunter2secret@git.example.org/a/b")
    assert "hunter2secret" not in f"{refused.value.detail} {refused.value.hint}"


async def test_a_server_that_is_away_is_an_error_with_a_hint(tmp_path: Path) -> None:
    repositories = await open_repositories(tmp_path / "data", repository_hosts=["127.0.0.1:1"])
    with pytest.raises(GitFailed, match="can't be fetched") as failed:
        await repositories.import_place("http://127.0.0.1:1/a/b")
    assert failed.value.hint


# -- what a run made


async def test_a_run_lists_its_own_commits_and_nothing_older(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    run.commit("new.txt", "1\n2\n3\n", "Add\x1e new: 9 files changed, 99 insertions(+)")
    last = run.commit("a.txt", "changed\n", "Change a")

    taken = await run.take()

    assert taken.head_commit == last
    assert [commit.subject for commit in taken.commits] == [
        "Add\x1e new: 9 files changed, 99 insertions(+)",
        "Change a",
    ]
    assert [(c.files_changed, c.insertions, c.deletions) for c in taken.commits] == [(1, 3, 0), (1, 1, 1)]
    assert (taken.files_changed, taken.insertions, taken.deletions) == (2, 4, 1)
    assert taken.descends
    assert taken.wip_commit is None
    diff = (await repositories.diff(run.run_id, source.repository, source.base_commit)).decode()
    assert "+changed" in diff
    assert "new.txt" in diff


async def test_a_bundle_of_a_run_can_be_applied_to_the_users_repository(
    repositories: Repositories, tmp_path: Path
) -> None:
    work = make_repository(tmp_path / "work")
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    with pytest.raises(NotFound):
        await repositories.bundle(run.run_id, source.repository, source.base_commit)
    await run.take()
    with pytest.raises(Conflict):
        await repositories.bundle(run.run_id, source.repository, source.base_commit)
    head = run.commit("new.txt", "x", "Add")
    await run.take()

    bundle = await repositories.bundle(run.run_id, source.repository, source.base_commit)
    git(work, "fetch", "-q", str(bundle), f"refs/runs/{run.run_id}/head:refs/heads/{run.branch}")

    assert git(work, "rev-parse", run.branch) == head
    assert git(work, "rev-parse", "main") == source.base_commit


async def test_several_runs_on_one_repository_stay_apart(repositories: Repositories, tmp_path: Path) -> None:
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    runs = [await RunHouse.begin(repositories, source, tmp_path / f"ws{index}") for index in range(3)]
    for index, run in enumerate(runs):
        run.commit(f"file{index}.txt", "x", f"Work of {index}")
    taken = await asyncio.gather(*(run.take() for run in runs))
    assert [[commit.subject for commit in one.commits] for one in taken] == [[f"Work of {n}"] for n in range(3)]
    # What one run made can neither be built upon nor be named by another one, though it knows the digests.
    thief = runs[1]
    stolen = taken[0].head_commit
    thief.git("fetch", "-q", str(runs[0].workspace), f"{runs[0].branch}:stolen")
    thief.git("checkout", "-q", "stolen")
    thief.commit("more.txt", "x", "On top")
    thin = write_bundle(thief.workspace, tmp_path / "thin.bundle", "stolen", f"^{stolen}").read_bytes()
    named = header_of([("refs/heads/x", stolen)]) + thin.split(b"\n\n", 1)[1]
    for data in (thin, named):
        with pytest.raises(BundleRefused):
            await thief.take(data)
    assert (await thief.take()).head_commit == taken[1].head_commit


async def test_a_run_goes_on_with_what_another_one_made(repositories: Repositories, tmp_path: Path) -> None:
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    first = await RunHouse.begin(repositories, source, tmp_path / "ws")
    head = first.commit("new.txt", "x", "Add")
    (first.workspace / "loose.txt").write_text("not committed")
    taken = await first.take()

    further = replace(source, base_commit=head)
    base = await repositories.base_bundle(further, wip_commit=taken.wip_commit)
    second = RunHouse(repositories, further, tmp_path / "ws2", new_id("run"), "automagik/implement/next")
    second.workspace.mkdir()
    made = run_script(second.making(wip_commit=taken.wip_commit), stdin=base.read_bytes())
    assert made.code == 0, made.stderr
    assert second.git("status", "--porcelain") == "?? loose.txt"
    second.commit("more.txt", "x", "Go on")
    assert [commit.subject for commit in (await second.take()).commits] == ["Go on"]


async def test_what_a_run_merged_of_the_source_is_not_its_own(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "root" / "project")
    git(work, "checkout", "-q", "-b", "feature")
    git(work, "commit", "-q", "--allow-empty", "-m", "Feature")
    git(work, "checkout", "-q", "main")
    (work / "main.txt").write_text("x")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "Somebody else")
    source = await repositories.import_place(str(work), ref="feature")
    assert (source.branch, source.default_branch) == ("feature", "main")
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    run.git("merge", "-q", "-m", "Merge main", "origin/main")
    run.commit("own.txt", "x", "Own")
    assert [commit.subject for commit in (await run.take()).commits] == ["Merge main", "Own"]


async def test_the_bytes_of_a_take_bring_the_run_to_another_host(repositories: Repositories, tmp_path: Path) -> None:
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    run.commit("new.txt", "x", "Add")
    (run.workspace / "loose.txt").write_text("not committed")
    taken = await run.take()
    assert taken.bundle is not None
    base, made = (await repositories.base_bundle(source)).read_bytes(), taken.bundle.read_bytes()

    elsewhere = await open_repositories(tmp_path / "elsewhere")
    there = RunHouse(elsewhere, source, run.workspace, run.run_id, run.branch)
    with pytest.raises(NotFound):
        await there.take(made)
    digest = hashlib.sha256(made).hexdigest()
    assert not await elsewhere.has(run.run_id, source.repository, digest)
    await elsewhere.import_base(source, chunks(base))
    again = await there.take(made)

    assert (again.head_commit, again.wip_commit, again.commits) == (taken.head_commit, taken.wip_commit, taken.commits)
    assert await elsewhere.has(run.run_id, source.repository, digest)
    assert await elsewhere.diff(run.run_id, source.repository, source.base_commit, wip=True) == await repositories.diff(
        run.run_id, source.repository, source.base_commit, wip=True
    )


def header_of(refs: list[tuple[str, str]], prerequisites: list[str] = []) -> bytes:  # noqa: B006 - not changed
    lines = [b"# v2 git bundle"]
    lines += [f"-{commit} x".encode() for commit in prerequisites]
    lines += [f"{commit} {name}".encode() for name, commit in refs]
    return b"\n".join(lines) + b"\n\n"


async def test_what_a_sandbox_hands_out_is_not_trusted(repositories: Repositories, tmp_path: Path) -> None:
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    head = run.commit("new.txt", "x", "Add")
    pack = run.extract().stdout.split(b"\n\n", 1)[1]
    await run.take(b"")
    before = run.ours("for-each-ref")
    for number, bad in enumerate(
        (
            header_of([("refs/heads/x", head)], [source.base_commit]) + pack[:-30],
            header_of([("refs/runs/run_other/head", head)], [source.base_commit]) + pack,
            header_of([("refs/base/x", head)], [source.base_commit]) + pack,
            header_of([("refs/source/heads/main", head)], [source.base_commit]) + pack,
            header_of([("refs/heads/../../runs/x", head)], [source.base_commit]) + pack,
            header_of([("refs/heads/x", "1" * 40)], [source.base_commit]) + pack,
            header_of([(f"refs/heads/x{n}", head) for n in range(600)], [source.base_commit]) + pack,
            b"garbage",
        )
    ):
        with pytest.raises(BundleRefused):
            await run.take(bad)
        assert run.ours("for-each-ref") == before, number


async def test_a_committed_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    repositories = Repositories(Settings(data_dir=tmp_path / "data"), SystemClock(), max_file_bytes=1_000_000)
    await repositories.open()
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    (run.workspace / "bomb.bin").write_bytes(b"\0" * 1_100_000)
    run.git("add", "-A")
    run.git("commit", "-q", "-m", "Bomb")
    data = run.extract().stdout
    assert len(data) < 10_000  # it is small on the way, and large only when unpacked
    with pytest.raises(BundleRefused, match="limit"):
        await run.take(data)
    assert run.ours("for-each-ref", "refs/runs") == ""


async def test_a_pack_that_unfolds_without_end_is_refused(repositories: Repositories, tmp_path: Path) -> None:
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    size = 64 * 1024**3  # what the object says it is
    first, rest, sizes = (3 << 4) | (size & 15) | 0x80, size >> 4, bytearray()
    while rest:
        sizes.append((rest & 0x7F) | (0x80 if rest > 0x7F else 0))
        rest >>= 7
    pack = b"PACK" + (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([first]) + bytes(sizes)
    pack += zlib.compress(b"\0" * 10_000_000)
    with pytest.raises(BundleRefused):
        await run.take(header_of([("refs/heads/x", "1" * 40)], [source.base_commit]) + pack + b"\0" * 20)


# -- the guide


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"CLAUDE.md": "Use tabs.", "AGENTS.md": "Other."}, "Use tabs."),
        ({"AGENTS.md": "Use spaces."}, "Use spaces."),
        ({"sub/CLAUDE.md": "Deep."}, None),
        ({"a.txt": "x"}, None),
    ],
)
async def test_the_guide_is_that_of_the_base_commit(
    repositories: Repositories, tmp_path: Path, files: dict[str, str], wanted: str | None
) -> None:
    work = make_repository(tmp_path / "work", files)
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    assert await repositories.guide(source) == wanted


async def test_a_link_is_no_guide_and_a_huge_one_is_only_named(repositories: Repositories, tmp_path: Path) -> None:
    work = make_repository(tmp_path / "work")
    (work / "CLAUDE.md").symlink_to("/etc/passwd")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "Link")
    source = await repositories.import_bundle(write_bundle(work, tmp_path / "x.bundle"))
    assert await repositories.guide(source) is None

    big = make_repository(tmp_path / "big", {"AGENTS.md": "x" * 100_000})
    source = await repositories.import_bundle(write_bundle(big, tmp_path / "y.bundle"))
    guide = await repositories.guide(source)
    assert guide is not None
    assert len(guide) < 200


# -- letting go


async def test_what_deleted_runs_left_goes_and_unused_repositories_too(
    repositories: Repositories, tmp_path: Path
) -> None:
    source = await repositories.import_bundle(write_bundle(make_repository(tmp_path / "work"), tmp_path / "x.bundle"))
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    run.commit("new.txt", "x", "Add")
    await run.take()
    assert await repositories.runs() == {source.repository: [run.run_id]}

    assert await repositories.prune(timedelta(0)) == 0
    assert await repositories.forget([run.run_id, "run_unknown"]) == 1
    assert await repositories.runs() == {source.repository: []}
    assert await repositories.prune(timedelta(hours=1)) == 0
    assert await repositories.prune(timedelta(seconds=-1)) == 1
    assert await repositories.runs() == {}
