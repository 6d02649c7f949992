"""Publisher: pushes the branch of a `pr` run to its remote and opens the pull request, on the host, with the host's credentials."""

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, cast
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from automagik.claude_code.git import GitFailed, config_environment, is_ref_name
from automagik.claude_code.places import Place
from automagik.claude_code.repositories import Repositories
from automagik.errors import AutomagikError, Conflict, Forbidden, InvalidInput, NotFound
from automagik.memory import clean_text
from automagik.outbound import Called, FetchFailed, Outbound
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.types import Json, JsonObject

__all__ = [
    "GITHUB_TOKEN",
    "PUBLISHING_WORKFLOW",
    "PublishFailed",
    "Published",
    "Publisher",
    "Publishing",
    "PullRequest",
]

PUBLISHING_WORKFLOW: Final = "pr"
"""The one workflow whose runs may be published."""

GITHUB_TOKEN: Final = "github_token"  # noqa: S105 - the secret's name
"""The secret that opens pull requests, and pushes by https where it is set."""

_FIELD = ("body", "publish")
_TITLE_CHARS = 250
_BODY_CHARS = 60_000
_SECONDS = 30.0
_PUSH_SECONDS = 300.0
_ANSWER_BYTES = 1024 * 1024
_OWNER_NAME = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")


class PublishFailed(AutomagikError):
    """The branch could not be pushed, or the pull request not be opened; what was made before stays in our repository."""

    code = "publish_failed"
    title = "Publish failed"
    status = 502


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What a pull request is opened with."""

    title: str
    body: str
    branch: str
    base: str
    draft: bool = False

    @classmethod
    def from_report(cls, report: Mapping[str, Json], *, branch: str, base: str) -> "PullRequest":
        """The pull request that a run's report asks for. `branch` and `base` are those of the run, where the report names none.

        Raises: InvalidInput for a title or a branch that can't be used.
        """
        title = " ".join(clean_text(str(report.get("title") or "")).split())[:_TITLE_CHARS]
        if not title:
            raise InvalidInput(
                "The run's report has no title.", field=_FIELD, code="no_pull_request", hint="Run the workflow again."
            )
        wanted = PullRequest(
            title=title,
            body=clean_text(str(report.get("body") or ""))[:_BODY_CHARS],
            branch=str(report.get("branch") or branch),
            base=str(report.get("base") or base),
            draft=report.get("draft") is True,
        )
        for name in (wanted.branch, wanted.base):
            if not is_ref_name(name):
                raise InvalidInput(
                    f"The report names a branch {name[:80]!r} that can't be.",
                    field=_FIELD,
                    code="no_pull_request",
                    hint="Run the workflow again, or open the pull request yourself: automagik runs apply.",
                )
        return wanted


@dataclass(frozen=True, slots=True)
class Publishing:
    """What is to be published: a commit of a run that has ended, and where."""

    workflow: str
    run_id: str
    repository: str
    head_commit: str
    remote: str
    """A folder under AUTOMAGIK_REPOSITORY_ROOTS, or a URL of a host of AUTOMAGIK_REPOSITORY_HOSTS."""
    request: PullRequest
    requested: bool
    """Whether the run's request asked for it; else nothing leaves the host, and it is only told what would."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was published, or in a dry run what would be."""

    remote: str
    branch: str
    base: str
    commit: str
    title: str
    dry_run: bool
    pushed: bool = False
    """Whether the branch is on the remote now."""
    url: str | None = None
    """The pull request; None: none was opened."""
    number: int | None = None
    note: str | None = None
    """Why there is no pull request, where there is none."""

    def to_json(self) -> JsonObject:
        """As it stands in a run's details."""
        return {
            "remote": self.remote,
            "branch": self.branch,
            "base": self.base,
            "commit": self.commit,
            "title": self.title,
            "dry_run": self.dry_run,
            "pushed": self.pushed,
            "url": self.url,
            "number": self.number,
            "note": self.note,
        }


class Publisher:
    """Pushes and opens pull requests. A run never does: its sandbox has neither network nor credentials."""

    def __init__(
        self, *, settings: Settings, repositories: Repositories, outbound: Outbound, secrets: SecretStore
    ) -> None:
        self._repositories = repositories
        self._git = repositories.git
        self._outbound = outbound
        self._secrets = secrets
        self._api_url = settings.github_api_url

    async def publish(self, what: Publishing) -> Published:
        """Push the run's commit as a new branch, and open the pull request; both may be done again, and are then found done.

        A branch that is on the remote already is never moved, unless it is there at this very commit.

        Raises:
            Forbidden: it is a run of another workflow.
            InvalidInput: the remote is not among those that the settings allow.
            Conflict: the remote has a branch of that name with something else in it.
            PublishFailed: the remote or GitHub refused.
        """
        if what.workflow != PUBLISHING_WORKFLOW:
            raise Forbidden(
                f"Runs of the workflow '{what.workflow}' are not published.",
                code="not_published",
                hint="Run the workflow `pr` on the branch, or fetch it yourself: automagik runs apply.",
            )
        place = await asyncio.to_thread(self._repositories.sources.check_place, what.remote, field=_FIELD)
        request = what.request
        if request.branch == request.base:
            raise InvalidInput("A branch can't be merged into itself.", field=_FIELD, code="no_pull_request")
        planned = Published(what.remote, request.branch, request.base, what.head_commit, request.title, dry_run=True)
        if not what.requested:
            return planned
        token = await self._token()
        await self._push(what, place, token)
        done = replace(planned, dry_run=False, pushed=True)
        if place.is_folder or place.host is None or _OWNER_NAME.fullmatch(place.path) is None:
            return replace(done, note="The remote is no GitHub repository: the branch was pushed, and that is all.")
        if token is None:
            return replace(done, note=f"There is no secret `{GITHUB_TOKEN}`: the branch was pushed, open it yourself.")
        url, number = await self._open(place, request, token)
        return replace(done, url=url, number=number)

    # -- pushing

    async def _push(self, what: Publishing, place: Place, token: SecretStr | None) -> None:
        path = self._repositories.run_path(what.repository, what.run_id)
        env: dict[str, str] = {}
        if not place.is_folder:
            entries = await self._git.host_credentials()
            if token is not None and place.protocols != ("ssh",):
                parts = urlsplit(place.location)
                login = base64.b64encode(f"x-access-token:{token.get_secret_value()}".encode()).decode()
                entries.append((f"http.{parts.scheme}://{parts.netloc}/.extraHeader", f"Authorization: Basic {login}"))
            env = config_environment(entries)
        branch = f"refs/heads/{what.request.branch}"
        try:
            await self._git.run(
                *("push", "--quiet", "--no-verify", "--no-follow-tags", "--recurse-submodules=no"),
                f"--force-with-lease={branch}:",  # it must not be there yet
                "--",
                place.location,
                f"{what.head_commit}:{branch}",
                repository=path,
                env=env,
                allow=place.protocols,
                host_home=not place.is_folder,
                seconds=_PUSH_SECONDS,
            )
        except GitFailed as failed:
            listed = await self._remote_commit(path_env=env, place=place, branch=branch)
            if listed == what.head_commit:  # an earlier attempt came as far as this
                return
            if listed is not None:
                raise Conflict(
                    f"The remote has a branch '{what.request.branch}' already.",
                    code="branch_exists",
                    hint="Delete or rename it there, or run the workflow again.",
                ) from failed
            raise PublishFailed(
                f"The branch can't be pushed: {failed.detail}",
                hint="Do this host's git credentials, or the secret `github_token`, allow to push there?",
            ) from failed

    async def _remote_commit(self, *, path_env: Mapping[str, str], place: Place, branch: str) -> str | None:
        """The commit that the branch has on the remote; None where it is not there, or the remote can't be asked."""
        try:
            listed = await self._git.run(
                *("ls-remote", "--", place.location, branch),
                env=path_env,
                allow=place.protocols,
                host_home=not place.is_folder,
            )
        except GitFailed:
            return None
        return listed.decode("ascii", "replace").split("\t", 1)[0].strip() or None

    # -- GitHub

    async def _token(self) -> SecretStr | None:
        try:
            return await self._secrets.get(GITHUB_TOKEN)
        except NotFound:
            return None

    async def _open(self, place: Place, request: PullRequest, token: SecretStr) -> tuple[str, int]:
        """The URL and number of the pull request, opened now or by an earlier attempt."""
        pulls = f"{self._api(place)}/repos/{place.path}/pulls"
        body: JsonObject = {
            "title": request.title,
            "body": request.body,
            "head": request.branch,
            "base": request.base,
            "draft": request.draft,
        }
        answer = await self._call("POST", pulls, token, body)
        if answer.status_code == 422:
            owner = place.path.split("/")[0]
            query = f"state=open&head={quote(f'{owner}:{request.branch}', safe='')}&base={quote(request.base, safe='')}"
            found = _json(await self._call("GET", f"{pulls}?{query}", token))
            if isinstance(found, list) and found:
                return _pull(found[0])
        if answer.status_code != 201:
            raise _refused(answer)
        return _pull(_json(answer))

    def _api(self, place: Place) -> str:
        if self._api_url is not None:
            return self._api_url.rstrip("/")
        return "https://api.github.com" if place.host == "github.com" else f"https://{place.host}/api/v3"

    async def _call(self, method: str, url: str, token: SecretStr, body: JsonObject | None = None) -> Called:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {token.get_secret_value()}",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            return await self._outbound.call(
                method,
                url,
                json.dumps(body).encode() if body is not None else b"",
                headers=headers,
                max_bytes=_ANSWER_BYTES,
                timeout_seconds=_SECONDS,
                field=_FIELD,
            )
        except FetchFailed as failed:
            raise PublishFailed(
                f"The branch was pushed, but GitHub can't be asked: {failed.detail}", hint=failed.hint
            ) from failed


def _json(answer: Called) -> Json:
    try:
        return cast("Json", json.loads(answer.content))
    except ValueError:
        raise _refused(answer) from None


def _pull(document: Json) -> tuple[str, int]:
    if isinstance(document, dict):
        url, number = document.get("html_url"), document.get("number")
        if isinstance(url, str) and url.startswith(("https://", "http://")) and isinstance(number, int):
            return clean_text(url)[:500], number
    raise PublishFailed(
        "The branch was pushed, but GitHub's answer can't be read.", hint="Look there, and open it yourself."
    )


def _refused(answer: Called) -> PublishFailed:
    """What GitHub says, as far as it says something."""
    said = ""
    try:
        document: object = json.loads(answer.content)
    except ValueError:
        document = None
    if isinstance(document, dict):
        told = cast("dict[str, object]", document)
        errors = cast("list[object]", told.get("errors")) if isinstance(told.get("errors"), list) else []
        details = [str(cast("dict[str, object]", e).get("message") or "") for e in errors[:5] if isinstance(e, dict)]
        said = clean_text(" ".join([str(told.get("message") or ""), *details]).strip())[:300]
    return PublishFailed(
        f"The branch was pushed, but GitHub refused the pull request ({answer.status_code}): {said or 'without a reason'}.",
        hint=f"Does the secret `{GITHUB_TOKEN}` allow to write pull requests of this repository?",
    )
