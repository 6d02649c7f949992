"""Images from a registry: a real one, by Debian's `docker-registry`, and ones that are away, hang or have something else."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import secrets
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from executor_house import RUN, executor_settings, made, run_once, short_folder
from registry_house import Registry, free_port, registry
from structlog.testing import capture_logs
from workflow_house import workflow_house, write_workflow

from automagik.claude_code.docker import DockerExecutor
from automagik.claude_code.image_names import bases_of, login_for, may_use, normalised, registry_of
from automagik.claude_code.image_pruning import prunable
from automagik.claude_code.images import build_image
from automagik.errors import ConfigurationError
from automagik.settings import Settings
from automagik.testing.warm import WarmPython

pytestmark = pytest.mark.anyio


@pytest.fixture
async def settings(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Settings]:
    with short_folder() as run:
        used = await executor_settings("docker", tmp_path / "data", run)
        # Nobody's logins and engines but the test's.
        yield used.model_copy(update={"docker_config": tmp_path / "docker"})


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Any]:
    """The engine itself; the images of registries of this machine are removed from it in the end."""
    async with aiodocker.Docker("unix:///var/run/docker.sock") as docker:
        yield docker


@pytest.fixture
async def shelf(engine: Any, tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "registry") as opened:
        yield opened
        await forget(engine, opened.address)


async def forget(engine: Any, address: str) -> None:
    """The engine has no image of this registry."""
    for image in await engine.images.list():
        for name in [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]:
            if name.startswith(f"{address}/"):
                with contextlib.suppress(aiodocker.DockerError):  # it went with its other name
                    await engine.images.delete(name)


def small(settings: Settings) -> Settings:
    """With a CLI that is sent to the engine in no time, for builds that fail before they come to it."""
    program = settings.data_dir.with_name("claude")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return settings.model_copy(update={"claude_cli": program})


async def sweep(engine: Any, mark: str) -> None:
    """What a build upon an image of this label has left is removed; it can be told to be the platform's."""
    left = await engine.images.list(filters={"label": [f"test={mark}"]})
    assert left, "the builder keeps the steps that went well"
    assert {*prunable(left, frozenset())} == {image["Id"] for image in left}
    for image in left:
        await engine.images.delete(image["Id"])


def log_in(settings: Settings, config: object) -> None:
    """Docker's configuration of the host says this."""
    assert settings.docker_config is not None
    settings.docker_config.mkdir(exist_ok=True)
    (settings.docker_config / "config.json").write_text(json.dumps(config))


async def image_of(engine: Any, run_id: str = RUN) -> dict[str, Any]:
    """The image that the run is carried out on."""
    listed = await engine.volumes.list(filters={"label": [f"automagik.run_id={run_id}"]})
    return await engine.images.inspect(listed["Volumes"][0]["Labels"]["automagik.image"])


async def test_an_image_that_is_not_here_is_fetched_with_words_and_by_its_digest_too(
    settings: Settings, engine: Any, shelf: Registry
) -> None:
    digest = shelf.publish("team/tools:1", {"Env": ["OF=one"]})
    pinned = f"{shelf.address}/team/tools@{digest}"
    both = f"{shelf.address}/team/tools:1@{digest}"
    heard: list[str] = []
    async with made(settings) as executor:
        with capture_logs() as logs:
            await executor.prepare(RUN, image=f"{shelf.address}/team/tools:1", tell=heard.append)
        assert heard[0] == f"{shelf.address}/team/tools:1 is fetched from {shelf.address}"
        assert "is coming: 1 of 1 layers" in heard[-1]
        told = {log["event"]: log for log in logs}
        assert told["image_is_fetched"]["registry"] == shelf.address
        assert told["image_fetched"]["image"] == f"{shelf.address}/team/tools:1"
        assert "OF=one" in (await image_of(engine))["Config"]["Env"]

        # Another image takes the name: who has pinned it gets what was meant.
        await forget(engine, shelf.address)
        shelf.publish("team/tools:1", {"Env": ["OF=two"]})
        for number, name in enumerate((pinned, both)):
            await executor.prepare(f"run_{number}", image=name)
            assert "OF=one" in (await image_of(engine, f"run_{number}"))["Config"]["Env"]
            await executor.remove(f"run_{number}")
            await forget(engine, shelf.address)


async def test_a_closed_registry_is_entered_with_the_hosts_login(
    settings: Settings, engine: Any, tmp_path: Path
) -> None:
    async with registry(tmp_path / "closed", closed=True) as shut, made(settings) as executor:
        name = f"{shut.address}/team/small:1"
        shut.publish("team/small:1")
        dockerfile = f"FROM {name}\nENV OF=a-dockerfile\n"
        try:
            for image, text in ((name, None), (None, dockerfile)):
                with pytest.raises(
                    ConfigurationError, match=r"gives the image .* to nobody who is not let in"
                ) as refused:
                    await executor.prepare(RUN, image=image, dockerfile=text)
                assert refused.value.hint is not None
                assert f"docker login {shut.address}" in refused.value.hint
            log_in(settings, shut.login)
            await executor.prepare(RUN, image=name)
            assert name in (await image_of(engine))["RepoTags"]
            await executor.remove(RUN)
            await forget(engine, shut.address)
            await executor.prepare(RUN, dockerfile=dockerfile)
            built = await image_of(engine)
            assert "OF=a-dockerfile" in built["Config"]["Env"]
            await executor.remove(RUN)
            await engine.images.delete(built["RepoTags"][0])
        finally:
            await forget(engine, shut.address)


async def test_the_platforms_image_can_be_built_upon_one_of_a_closed_registry(
    settings: Settings, engine: Any, tmp_path: Path
) -> None:
    mark, told = secrets.token_hex(8), list[str]()
    async with registry(tmp_path / "closed", closed=True) as shut:
        name = f"{shut.address}/team/base:1"
        shut.publish("team/base:1", {"Labels": {"test": mark}})
        log_in(settings, shut.login)
        with pytest.raises(ConfigurationError, match="can't be built"):  # it has nothing that the build needs
            await build_image(small(settings), base=name, tag=f"automagik-test:{mark}", tell=told.append)
        assert told[:2] == [f"{name} is fetched from {shut.address} ...", f"{name} is here ..."]
        await forget(engine, shut.address)
        await sweep(engine, mark)


@pytest.mark.long
async def test_an_image_of_a_closed_registry_gets_the_cli_and_no_sandbox_sees_the_login(
    settings: Settings, engine: Any, tmp_path: Path
) -> None:
    async with registry(tmp_path / "closed", closed=True) as shut, made(settings) as executor:
        repository, login = f"{shut.address}/team/debian", shut.login["auths"][shut.address]
        await engine.images.tag("automagik-base:host", repository, tag="1")
        try:
            await engine.images.push(repository, tag="1", auth=login)
        finally:
            await engine.images.delete(f"{repository}:1")
        log_in(settings, shut.login)
        try:
            await executor.prepare(RUN, image=f"{repository}:1")
            look = (
                "claude --version; env; cat ~/.docker/config.json /root/.docker/*; grep -rs 127.0.0.1 /etc /credentials"
            )
            inside = await run_once(executor, "sh", "-c", look)
            assert b"Claude Code" in inside.stdout
            assert login["auth"].encode() not in inside.stdout
            assert shut.address.encode() not in inside.stdout
            derived = await image_of(engine)
            assert derived["Config"]["Labels"]["automagik.sandbox"] == "1"
            await executor.remove(RUN)
            (tag,) = [tag for tag in derived["RepoTags"] if tag.startswith("automagik-derived:")]
            await engine.images.delete(tag)
        finally:
            await forget(engine, shut.address)


async def test_what_a_registry_does_not_give_is_said_in_plain_words(
    settings: Settings, engine: Any, shelf: Registry
) -> None:
    other = "arm64" if os.uname().machine == "x86_64" else "amd64"
    shelf.publish("team/other:1", architecture=other)
    shelf.publish("team/eager:1", {"OnBuild": ["RUN touch /here"]})
    away = f"127.0.0.1:{free_port()}"
    said = {
        f"{shelf.address}/team/none:1": f"The registry {shelf.address} has no image",
        f"{shelf.address}/team/other:2": f"The registry {shelf.address} has no image",
        f"{shelf.address}/team/other@sha256:{'0' * 64}": f"The registry {shelf.address} has no image",
        f"{shelf.address}/team/other:1": f"is for linux/{other}, and this host's engine runs",
        f"{shelf.address}/team/eager:1": "has ONBUILD instructions",
        f"{away}/team/tools:1": f"can't be fetched from {away}",
    }
    async with made(settings) as executor:
        for name, words in said.items():
            with pytest.raises(ConfigurationError) as refused:
                await executor.prepare(RUN, image=name)
            assert words in refused.value.detail, name
            assert name.partition("@")[0] in refused.value.detail
            assert refused.value.hint
        assert await executor.places() == []


async def test_a_registry_that_hangs_is_waited_for_no_longer_than_is_set(settings: Settings) -> None:
    asked: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        asked.append(writer)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with made(settings.model_copy(update={"image_seconds": 1.5})) as executor:
            with pytest.raises(ConfigurationError, match=r"did not come from 127\.0\.0\.1:\d+ within 2 s") as refused:
                async with asyncio.timeout(20):
                    await executor.prepare(RUN, image=f"127.0.0.1:{port}/team/tools:1")
            assert asked
            assert "AUTOMAGIK_IMAGE_SECONDS" in (refused.value.hint or "")
            await executor.prepare(RUN)  # the engine serves others all the while
    finally:
        server.close()
        for writer in asked:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_an_image_that_nothing_can_be_built_upon_is_told_what_it_lacks_and_leaves_what_can_be_removed(
    settings: Settings, engine: Any, shelf: Registry
) -> None:
    mark = secrets.token_hex(8)
    shelf.publish("team/empty:1", {"Labels": {"test": mark}})
    name = f"{shelf.address}/team/empty:1"
    async with made(small(settings)) as executor:
        with pytest.raises(ConfigurationError) as refused:
            await executor.prepare(RUN, image=name)
        assert refused.value.detail.startswith(f"{name}: ")
        assert "git and Perl" in (refused.value.hint or "")
    await engine.images.delete(name)
    await sweep(engine, mark)


async def test_a_run_tells_how_its_image_is_had_and_where_it_is_not_ends_with_the_words_and_what_may_be_named(
    settings: Settings, engine: Any, shelf: Registry, warm: WarmPython
) -> None:
    mark = secrets.token_hex(8)
    given = {"AUTOMAGIK_SANDBOX_IMAGE": settings.sandbox_image, "AUTOMAGIK_WORKFLOW_IMAGES": "team/tools:*"}
    name = f"{shelf.address}/team/none:1"
    async with workflow_house({"default": {"text": "OK"}}, executor="docker", settings=given, warm=warm) as house:
        write_workflow(house.folder / "data" / "workflows" / "away", toml=f'image = "{name}"\n')
        slow = house.folder / "data" / "workflows" / "slow"
        write_workflow(slow, toml='dockerfile = "Dockerfile"\n')
        steps = "".join(f"RUN sleep 1; echo {number}\n" for number in range(4))
        (slow / "Dockerfile").write_text(f"FROM automagik-base:host\nLABEL test={mark}\n{steps}RUN exit 9\n")
        async with asyncio.timeout(20):
            while (await house.client.get("/workflows/slow")).status_code != 200:
                await asyncio.sleep(0.2)
        run = await house.ended(await house.begin(workflow="away"))
        assert (run["status"], run["outcome"]) == ("failed", "sandbox_error"), run
        assert f"The registry {shelf.address} has no image {name}" in run["error"]["detail"]
        assert run["error"]["hint"] == "See its name in the workflow."
        assert [
            event["data"]["detail"] for event in await house.events(run["run_id"]) if event["type"] == "progress"
        ] == [f"{name} is fetched from {shelf.address}"]

        # Of a build that takes its time it is told how far it is, now and then.
        run = await house.ended(await house.begin(workflow="slow"))
        assert "returned a non-zero code: 9" in run["error"]["detail"], run
        events = [event for event in await house.events(run["run_id"]) if event["type"] == "progress"]
        said = [event["data"]["detail"] for event in events]
        assert said[0] == "The image of the Dockerfile is built"
        assert len(said) >= 3
        assert all(re.fullmatch(r"The image of the Dockerfile is built: step \d/7", words) for words in said[1:]), said
        at = [datetime.fromisoformat(event["at"]) for event in events]
        assert min((later - earlier).total_seconds() for earlier, later in itertools.pairwise(at)) > 1.8
        for image in await engine.images.list(filters={"label": [f"test={mark}"]}):
            await engine.images.delete(image["Id"])
        assert house.api.calls == []

        for image, status in (("team/secrets:1", 422), ("team/tools:1", 201)):
            files = {"prompt.md": "Do it.", "workflow.toml": f'image = "{image}"'}
            answer = await house.client.post("/workflows", json={"name": "theirs", "files": files})
            assert answer.status_code == status, answer.text
            if status == 422:
                assert "workflow.toml: image: " in answer.text
                assert "AUTOMAGIK_WORKFLOW_IMAGES" in answer.text
        run = await house.ended(await house.begin(workflow="theirs"))
        assert run["outcome"] == "sandbox_error", run
        assert "can have none fetched" in run["error"]["detail"]


# -- names and logins


@pytest.mark.parametrize(
    ("name", "as_the_engine", "from_registry"),
    [
        ("debian", "debian:latest", "docker.io"),
        ("docker.io/library/debian:12", "debian:12", "docker.io"),
        ("index.docker.io/team/tools", "team/tools:latest", "docker.io"),
        ("ghcr.io/team/tools:1", "ghcr.io/team/tools:1", "ghcr.io"),
        ("index.example.org/tools", "index.example.org/tools:latest", "index.example.org"),
        ("localhost/tools", "localhost/tools:latest", "localhost"),
        ("host:5000/a/b@sha256:12", "host:5000/a/b@sha256:12", "host:5000"),
    ],
)
def test_a_name_is_read_as_the_engine_reads_it(name: str, as_the_engine: str, from_registry: str) -> None:
    assert normalised(name) == as_the_engine
    assert registry_of(name) == from_registry


@pytest.mark.parametrize(
    ("image", "listed", "may"),
    [
        ("automagik-claude", (), True),
        ("docker.io/library/automagik-claude:latest", (), True),
        ("automagik-claude:other", (), False),
        ("evil.example.org/automagik-claude", (), False),
        ("python:3.12", (), False),
        ("python:3.12", ("python:*",), True),
        ("python", ("docker.io/library/python",), True),
        ("python:3.12", ("python",), False),
        ("ghcr.io/team/tools@sha256:12", ("ghcr.io/team/*",), True),
        ("ghcr.io.evil.example.org/team/tools", ("ghcr.io/team/*",), False),
        ("sha256:12", ("python:*",), False),
    ],
)
def test_a_workflow_of_the_api_may_name_the_platforms_image_and_listed_ones(
    image: str, listed: tuple[str, ...], may: bool
) -> None:
    assert may_use(Settings(workflow_images=list(listed)), image) is may


def test_the_images_that_a_dockerfile_is_built_upon_are_known() -> None:
    text = "ARG V=1\nFROM --platform=linux/amd64 a/b:1 AS one\nRUN x\nfrom one\nFROM c:$V\nFROM scratch\n# FROM d\nFROM e\n"
    assert bases_of(text) == ["a/b:1", "e"]


async def test_a_login_is_found_as_docker_has_written_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(docker_config=tmp_path)
    assert await login_for(settings, "python") is None
    hub = {"auth": "bWU6c2VjcmV0"}
    log_in(settings, {"auths": {"https://index.docker.io/v1/": hub, "ghcr.io": {"identitytoken": "t"}, "empty.io": {}}})
    assert await login_for(settings, "python") == {
        "username": "me",
        "password": "secret",
        "serveraddress": "docker.io",
    }
    assert await login_for(settings, "ghcr.io/a/b") == {"identitytoken": "t", "serveraddress": "ghcr.io"}
    assert await login_for(settings, "quay.io/a/b") is None
    assert await login_for(settings, "empty.io/a/b") is None
    log_in(settings, {"auths": {"ghcr.io": {"auth": "!"}}, "credHelpers": {"quay.io": "none-such", "x.io": "../x"}})
    for image, words in {
        "ghcr.io/a": "login of ghcr.io",
        "quay.io/a": "docker-credential-none-such can't be started",
        "x.io/a": "no helper",
    }.items():
        with pytest.raises(ConfigurationError, match=words):
            await login_for(settings, image)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="can't be read"):
        await login_for(settings, "python")


async def test_nothing_of_a_run_is_made_while_an_image_is_not_had(settings: Settings) -> None:
    executor = DockerExecutor(settings)
    try:
        with pytest.raises(ConfigurationError):
            await executor.prepare(RUN, image=f"127.0.0.1:{free_port()}/none")
        assert await executor.places() == []
    finally:
        await executor.close()
