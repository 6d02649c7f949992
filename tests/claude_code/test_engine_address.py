"""Which engine is meant: a unix socket anywhere on this host works; one elsewhere is refused by doctor, factory and run, with the way out."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from executor_house import RUN, executor_settings, made, run_once, short_folder

from automagik.claude_code.engine_address import EngineAddress
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.probing import Probing
from automagik.errors import ConfigurationError, RunFailed
from automagik.settings import Settings
from automagik.store import Store
from automagik.testing.warm import WarmPython

pytestmark = pytest.mark.anyio

ENGINE = "/var/run/docker.sock"


@pytest.fixture
async def settings(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Settings]:
    with short_folder() as run:
        yield await executor_settings("docker", tmp_path / "data", run)


def set_context(folder: Path, name: str, host: str | None) -> None:
    """Docker's own configuration has this context."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"currentContext": name}))
    if host is not None:
        meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
        meta.mkdir(parents=True, exist_ok=True)
        (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def test_the_engine_is_the_one_of_the_settings_then_of_docker_host_then_of_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert EngineAddress.of(Settings()).socket == ENGINE
    set_context(folder, "default", None)
    assert EngineAddress.of(Settings()).socket == ENGINE
    set_context(folder, "rootless", "unix:///run/user/1000/docker.sock")
    assert EngineAddress.of(Settings()).socket == "/run/user/1000/docker.sock"
    set_context(folder, "lost", None)
    assert EngineAddress.of(Settings()).socket is None
    assert "Docker's context 'lost' names no engine" in EngineAddress.of(Settings()).refusal[0]
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere.sock")
    assert EngineAddress.of(Settings()).socket == "/elsewhere.sock"
    monkeypatch.setenv("AUTOMAGIK_DOCKER_URL", f"unix://{ENGINE}")
    assert EngineAddress.of(Settings()).socket == ENGINE
    (folder / "config.json").write_text("{")
    monkeypatch.delenv("AUTOMAGIK_DOCKER_URL")
    monkeypatch.delenv("DOCKER_HOST")
    assert EngineAddress.of(Settings()).socket == ENGINE


@pytest.mark.parametrize("remote", ["tcp://10.0.0.1:2375", "ssh://me@example.org", "/var/run/docker.sock", "context"])
async def test_an_engine_that_is_no_socket_of_this_host_is_refused_by_factory_and_run(
    store: Store, tmp_path: Path, remote: str
) -> None:
    changes: dict[str, Any] = {"data_dir": tmp_path, "executor": "docker", "docker_config": tmp_path / "docker"}
    if remote == "context":
        remote = "ssh://me@build.example.org"
        set_context(tmp_path / "docker", "build", remote)
    else:
        changes["docker_url"] = remote
    settings = Settings.model_validate(changes)
    factory = ExecutorFactory(settings)
    try:
        with pytest.raises(ConfigurationError) as refused:
            await factory.executor()
        docker = factory.named("docker")
        with pytest.raises(RunFailed) as failed:
            await Probing(settings, store, host="here").check(docker, tell=lambda kind, data: None)
        with pytest.raises(ConfigurationError) as asked:
            await docker.places()
        assert failed.value.outcome == "sandbox_error"
        for error in (refused.value, failed.value, asked.value):
            assert f"is {remote}, and sandboxes reach the platform by unix sockets" in error.detail
            assert "AUTOMAGIK_DOCKER_URL=unix:///var/run/docker.sock" in (error.hint or "")
    finally:
        await factory.close()


async def test_a_socket_elsewhere_works_and_doctor_says_so(settings: Settings, warm: WarmPython) -> None:
    with short_folder() as folder:
        path = folder / "docker.sock"
        line = await asyncio.start_unix_server(_carry, path)
        try:
            async with made(settings.model_copy(update={"docker_url": f"unix://{path}"})) as executor:
                await executor.prepare(RUN)
                assert (await run_once(executor, "echo", "hello")).stdout == b"hello\n"
            found = await asyncio.to_thread(doctor, settings, warm=warm, DOCKER_HOST=f"unix://{path}")
            assert found["status"] == "ok", found
        finally:
            line.close()


async def test_doctor_names_the_way_out_where_the_engine_is_elsewhere(settings: Settings, warm: WarmPython) -> None:
    found = await asyncio.to_thread(doctor, settings, warm=warm, DOCKER_HOST="tcp://10.0.0.1:2375")
    assert found["status"] == "warn"
    assert "DOCKER_HOST) is tcp://10.0.0.1:2375" in found["detail"]
    assert "AUTOMAGIK_EXECUTOR=local" in found["fix"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a folder of one's own needs root")
async def test_an_engine_behind_a_socket_that_does_not_see_this_hosts_files_is_told(settings: Settings) -> None:
    # In a mount namespace of its own doctor has sockets where the engine finds nothing, as an engine elsewhere does.
    assert settings.runtime_dir is not None
    alone = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none {settings.runtime_dir} && exec "$@"', "sh")
    found = await asyncio.to_thread(doctor, settings, *alone)
    assert found["status"] == "fail"
    assert f"does not see this host's folder {settings.runtime_dir}" in found["detail"]
    assert "Run the server or worker where the engine is" in found["fix"]


def doctor(settings: Settings, *before: str, warm: WarmPython | None = None, **environment: str) -> dict[str, Any]:
    """What doctor says of the Docker executor."""
    command = [*before, sys.executable, "-m", "automagik", "doctor", "--json"]
    env = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(settings.data_dir.parent),
        "AUTOMAGIK_DATA_DIR": str(settings.data_dir),
        "AUTOMAGIK_RUNTIME_DIR": str(settings.runtime_dir),
        "AUTOMAGIK_EXECUTOR": "docker",
        "AUTOMAGIK_SANDBOX_IMAGE": settings.sandbox_image,
        "AUTOMAGIK_MODEL": "demo",
        **environment,
    }
    if warm is not None:
        said = warm.run(["doctor", "--json"], env=env, timeout=100)
    else:
        said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    findings: list[dict[str, Any]] = [json.loads(line) for line in said.stdout.splitlines()]
    return next(finding for finding in findings if finding["name"] == "workflows (docker)")


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    behind, ahead = await asyncio.open_unix_connection(ENGINE)
    try:
        await asyncio.gather(_pump(reader, ahead), _pump(behind, writer))
    finally:
        for one in (writer, ahead):
            one.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
    except OSError:  # one of the two is gone
        return
