"""The container image: what it is built from, and the command that builds it."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_house import executor_settings, short_folder, test_image

from automagik.claude_code.containers import ContainerManager
from automagik.claude_code.image import base_context, claude_cli, host_root, own_context
from automagik.errors import ConfigurationError
from automagik.settings import Settings
from automagik.testing.needs import claude_cli as bundled_cli
from automagik.testing.needs import need

pytestmark = pytest.mark.anyio


@pytest.fixture
async def settings(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Settings]:
    with short_folder() as run:
        yield await executor_settings("docker", tmp_path, run)


def test_the_cli_is_the_packages_own_or_the_one_of_the_settings(tmp_path: Path) -> None:
    need("claude")
    assert claude_cli(Settings()) == bundled_cli()
    other = tmp_path / "claude"
    other.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigurationError, match="names no program"):
        claude_cli(Settings.model_validate({"claude_cli": other}))
    other.chmod(0o755)
    assert claude_cli(Settings.model_validate({"claude_cli": other})) == other


def test_a_context_has_the_digest_of_what_is_built_from_it(tmp_path: Path) -> None:
    program = tmp_path / "claude"
    program.write_bytes(b"one")
    program.chmod(0o755)
    settings = Settings.model_validate({"claude_cli": program})
    first = own_context(settings, base=None).digest()
    assert own_context(settings, base=None).digest() == first
    assert own_context(settings, base="debian:bookworm").digest() != first
    program.write_bytes(b"two")
    assert own_context(settings, base=None).digest() != first
    written = io.BytesIO()
    own_context(settings, base=None).write(written)
    with tarfile.open(fileobj=written) as archive:
        assert {member.name: member.mode for member in archive} == {"Dockerfile": 0o755, "claude": 0o755}
        dockerfile = archive.extractfile("Dockerfile")
        assert dockerfile is not None
        assert dockerfile.read().count(b"ARG BASE_IMAGE=") == 1


async def test_a_base_of_this_host_has_git_a_shell_and_perl_and_nobodys_files(tmp_path: Path) -> None:
    root = tmp_path / "root.tar"
    await host_root(root)
    with tarfile.open(root) as archive:
        names = set(archive.getnames())
        passwd = archive.extractfile("etc/passwd")
        assert passwd is not None
        assert b"root:x:0:0" in passwd.read()
    assert {"usr/bin/git", "usr/bin/perl", "usr/bin/bash", "etc/nsswitch.conf", "tmp"} <= names
    assert any(name.rpartition("/")[2].startswith("libc.so") for name in names)
    for never in ("etc/shadow", "root/", "home/", "var/lib", "etc/ssl/private", "run/"):
        assert not [name for name in names if name.startswith(never) and name != never.rstrip("/")]
    assert dict(base_context(root).files)["root.tar"] == root


async def test_the_command_builds_the_image_and_tells_its_id(settings: Settings) -> None:
    await test_image()  # its layers are there then
    name = "automagik-test:by-command"
    command = [
        sys.executable,
        "-m",
        "automagik",
        "image",
        "build",
        "--base",
        "automagik-base:host",
        "--tag",
        name,
        "--json",
    ]
    built = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(settings.data_dir), "AUTOMAGIK_DATA_DIR": str(settings.data_dir)},
    )
    assert built.returncode == 0, built.stderr
    told = json.loads(built.stdout)
    manager = ContainerManager(settings, instance="tests")
    try:
        found = await manager.find_image(name)
    finally:
        await manager.close()
    assert found is not None
    assert told["image"] == name
    assert told["id"] == found["Id"]
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["WorkingDir"] == "/workspace"
    assert config["Labels"]["automagik.sandbox"] == "1"


def test_the_command_says_what_mends_a_missing_engine(tmp_path: Path) -> None:
    need("claude")
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AUTOMAGIK_DATA_DIR": str(tmp_path),
        "AUTOMAGIK_DOCKER_URL": f"unix://{tmp_path}/none.sock",
    }
    command = [sys.executable, "-m", "automagik", "image", "build"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert tried.returncode == 1
    assert "The container engine is away" in tried.stderr
    assert "docker.io" in tried.stderr
