"""Publishing: the branch of a `pr` run on a real remote, the pull request on a forge, and nothing where it was not asked for."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from forge_house import Forge
from git_house import RunHouse, git, make_repository, open_repositories
from pydantic import SecretStr

from automagik.claude_code.publish import GITHUB_TOKEN, Publisher, PublishFailed, Publishing, PullRequest
from automagik.errors import Conflict, Forbidden, InvalidInput
from automagik.outbound import Outbound
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.testing.stores import open_store

pytestmark = pytest.mark.anyio

TOKEN = "ghp_forge0123456789"


@dataclass
class House:
    """A run whose branch could be published, and the forge that it came from."""

    publisher: Publisher
    secrets: SecretStore
    forge: Forge
    bare: Path
    run: RunHouse
    asked: Publishing

    def branches(self) -> dict[str, str]:
        lines = git(self.bare, "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").splitlines()
        return dict(line.split(" ") for line in lines)


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    with Forge(tmp_path / "forge", token=TOKEN) as opened:
        yield opened


@pytest.fixture
async def house(tmp_path: Path, forge: Forge) -> AsyncIterator[House]:
    bare = forge.bare("owner/name", make_repository(tmp_path / "work"))
    settings = {
        "data_dir": tmp_path / "data",
        "repository_hosts": [forge.host],
        "repository_roots": [str(tmp_path / "forge")],
        "outbound_allow": ["127.0.0.1"],
        "github_api_url": f"{forge.url}/api/v3/",
    }
    repositories = await open_repositories(tmp_path / "data", **{k: v for k, v in settings.items() if k != "data_dir"})
    source = await repositories.import_place(f"{forge.url}/owner/name.git")
    run = await RunHouse.begin(repositories, source, tmp_path / "ws")
    head = run.commit("new.txt", "x", "Add")
    await run.take()
    checked = Settings.model_validate(settings)
    async with open_store("sqlite", tmp_path / "data") as store, Outbound(checked) as outbound:
        secrets = SecretStore(store, checked)
        await secrets.open()
        await secrets.set(GITHUB_TOKEN, SecretStr(TOKEN))
        publisher = Publisher(settings=checked, repositories=repositories, outbound=outbound, secrets=secrets)
        asked = Publishing(
            workflow="pr",
            run_id=run.run_id,
            repository=source.repository,
            head_commit=head,
            remote=f"{forge.url}/owner/name.git",
            request=PullRequest("Add a file", "It was missing.", run.branch, "main"),
            requested=True,
        )
        yield House(publisher, secrets, forge, bare, run, asked)


async def test_the_branch_is_pushed_and_the_pull_request_opened(house: House) -> None:
    done = await house.publisher.publish(house.asked)
    assert (done.pushed, done.dry_run, done.number, done.url) == (True, False, 1, f"{house.forge.url}/pull/1")
    assert house.branches() == {
        "main": house.run.source.base_commit,
        house.run.branch: house.asked.head_commit,
    }
    assert house.forge.asked == [
        (
            "POST",
            "/api/v3/repos/owner/name/pulls",
            {
                "title": "Add a file",
                "body": "It was missing.",
                "head": house.run.branch,
                "base": "main",
                "draft": False,
            },
        )
    ]


async def test_done_twice_it_is_there_once(house: House) -> None:
    first = await house.publisher.publish(house.asked)
    assert await house.publisher.publish(house.asked) == first
    assert len(house.forge.pulls) == 1


async def test_without_being_asked_nothing_leaves_the_host(house: House) -> None:
    done = await house.publisher.publish(replace(house.asked, requested=False))
    assert (done.dry_run, done.pushed, done.url) == (True, False, None)
    assert (done.branch, done.base, done.title) == (house.run.branch, "main", "Add a file")
    assert set(house.branches()) == {"main"}
    assert house.forge.asked == []


async def test_only_the_workflow_for_it_publishes(house: House) -> None:
    with pytest.raises(Forbidden):
        await house.publisher.publish(replace(house.asked, workflow="implement"))
    assert set(house.branches()) == {"main"}


async def test_a_branch_that_is_there_is_never_moved(house: House) -> None:
    git(house.bare, "branch", "taken", "main")
    for branch in ("main", "taken"):
        with pytest.raises((Conflict, InvalidInput)):
            await house.publisher.publish(
                replace(house.asked, request=replace(house.asked.request, branch=branch, base="main"))
            )
    assert house.branches() == dict.fromkeys(("main", "taken"), house.run.source.base_commit)
    assert house.forge.asked == []


async def test_a_remote_that_the_settings_do_not_allow_is_refused(house: House, tmp_path: Path) -> None:
    make_repository(tmp_path / "elsewhere")
    for remote in (str(tmp_path / "elsewhere"), "https://example.org/a/b", "ext::sh -c x", "--exec=x"):
        with pytest.raises(InvalidInput):
            await house.publisher.publish(replace(house.asked, remote=remote))


async def test_to_a_folder_the_branch_is_pushed_and_that_is_all(house: House) -> None:
    done = await house.publisher.publish(replace(house.asked, remote=str(house.bare)))
    assert (done.pushed, done.url) == (True, None)
    assert done.note is not None
    assert house.run.branch in house.branches()
    assert house.forge.asked == []


async def test_without_a_token_the_host_can_not_push_there(house: House) -> None:
    await house.secrets.delete(GITHUB_TOKEN)
    with pytest.raises(PublishFailed) as failed:
        await house.publisher.publish(house.asked)
    assert GITHUB_TOKEN in (failed.value.hint or "")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, {"message": "Resource not accessible"}, "Resource not accessible"),
        (500, b"<html>", "500"),
        (201, b"<html>", "201"),
        (201, {"html_url": "javascript:alert(1)", "number": 1}, "can't be read"),
        (422, {"message": "Validation Failed", "errors": [{"message": "No commits"}]}, "No commits"),
    ],
)
async def test_what_the_forge_refuses_is_told_without_the_token(
    house: House, status: int, body: object, said: str
) -> None:
    house.forge.refusal = (status, body)
    with pytest.raises(PublishFailed) as failed:
        await house.publisher.publish(house.asked)
    assert said in failed.value.detail
    assert TOKEN not in f"{failed.value.detail} {failed.value.hint}"
    assert house.run.branch in house.branches()


def test_a_report_becomes_a_pull_request() -> None:
    report = {"title": "Add\n  this \x00", "body": "Why", "branch": "", "base": "", "draft": True}
    wanted = PullRequest.from_report(report, branch="automagik/pr/x", base="main")
    assert wanted == PullRequest("Add this \ufffd", "Why", "automagik/pr/x", "main", draft=True)
    named = PullRequest.from_report({"title": "T", "branch": "team/x", "base": "next"}, branch="b", base="main")
    assert (named.branch, named.base) == ("team/x", "next")


@pytest.mark.parametrize("report", [{}, {"title": " "}, {"title": "T", "branch": "a..b"}, {"title": "T", "base": "-x"}])
def test_a_report_without_a_title_or_with_a_bad_branch_is_refused(report: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        PullRequest.from_report(report, branch="b", base="main")
