"""What a test needs of the machine: skipped by name where it is missing (in CI the project's `conftest.py` fails it)."""

import importlib.util
import shutil
import socket
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Literal

import pytest

__all__ = ["Need", "claude_cli", "missing", "need"]

Need = Literal["bubblewrap", "claude", "curl", "docker", "docker-registry"]

_DOCKER = Path("/var/run/docker.sock")
_TRY_BUBBLEWRAP = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]


def claude_cli() -> Path | None:
    """The Claude CLI of the package `claude-agent-sdk`, None where that is not installed."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / "_bundled" / "claude"
    return found if found.exists() else None


@lru_cache
def missing(what: Need) -> str | None:
    """Why `what` can't be used here, and what mends that; None where it can. It is tried, not only looked for."""
    match what:
        case "curl":
            return None if shutil.which("curl") else "curl is missing: apt-get install curl"
        case "claude":
            return None if claude_cli() else "the Claude CLI is missing: pip install 'automagik-agents[claude]'"
        case "bubblewrap":
            if shutil.which("bwrap") is None:
                return "bubblewrap is missing: apt-get install bubblewrap"
            tried = subprocess.run(_TRY_BUBBLEWRAP, capture_output=True, text=True, timeout=20, check=False)
            return None if tried.returncode == 0 else f"bubblewrap does not work here: {tried.stderr.strip()[:200]}"
        case "docker":
            return _docker_missing()
        case "docker-registry":
            found = shutil.which("docker-registry")
            return None if found else "docker-registry is missing: apt-get install docker-registry"


def need(what: Need) -> None:
    """Skip the test that calls this, by name, where `what` can't be used."""
    reason = missing(what)
    if reason is not None:
        pytest.skip(reason)


def _docker_missing() -> str | None:
    if importlib.util.find_spec("aiodocker") is None:
        return "aiodocker is missing: pip install 'automagik-agents[docker]'"
    try:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.settimeout(5)
            engine.connect(str(_DOCKER))
            engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = engine.recv(200)
    except OSError as error:
        return f"no Docker engine answers at {_DOCKER} ({error.strerror}): apt-get install docker.io, and start dockerd"
    return None if b" 200 " in answer else f"the Docker engine at {_DOCKER} answers {answer[:60]!r}"
