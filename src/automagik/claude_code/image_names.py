"""Names of images as an engine reads them, which of them workflows made through the API may use, and the logins of registries."""

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["bases_of", "login_for", "may_use", "normalised", "not_pulled", "refused", "registry_of"]

_HUB = "docker.io"
_HUB_KEYS = (_HUB, "https://index.docker.io/v1/", "index.docker.io")
"""How `docker login` writes down who one is at Docker's own registry."""
_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE)
_HELPER = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_SECONDS = 20.0


def normalised(name: str) -> str:
    """The one way to write an image's name: without Docker's own registry, with `:latest` where neither tag nor digest is said."""
    short = _short(name)
    return short if "@" in short or ":" in short.rpartition("/")[2] else f"{short}:latest"


def registry_of(name: str) -> str:
    """The registry that an image of this name comes from, as `HOST` or `HOST:PORT`."""
    first, more, _ = _short(name).partition("/")
    return first if more and ("." in first or ":" in first or first == "localhost") else _HUB


def may_use(settings: Settings, image: str) -> bool:
    """Whether a workflow made through the API may name the image: the platform's own, or one of the settings' list."""
    wanted = normalised(image)
    listed = settings.workflow_images
    patterns = [_short(pattern) if pattern.endswith("*") else normalised(pattern) for pattern in listed]
    return wanted == normalised(settings.sandbox_image) or any(fnmatchcase(wanted, pattern) for pattern in patterns)


def refused(image: str) -> tuple[str, str]:
    """What is said of an image that `may_use` does not let pass, and the way out."""
    return (
        f"A workflow made through the API may not use the image {image}: the settings don't list it.",
        "Leave `image` out of workflow.toml for the platform's own, or have an administrator add it to AUTOMAGIK_WORKFLOW_IMAGES.",
    )


def not_pulled(name: str, said: str) -> ConfigurationError:
    """What is meant by what an engine or registry says of an image that did not come."""
    registry, low = registry_of(name), said.lower()
    if any(word in low for word in ("unauthorized", "no basic auth", "denied", "authentication required", "forbidden")):
        return ConfigurationError(
            f"The registry {registry} gives the image {name} to nobody who is not let in: {said}.",
            hint=f"As the user of the platform run: docker login {registry}. Is the image's name right?",
        )
    if any(word in low for word in ("manifest unknown", "not found", "name unknown", "no such image")):
        return ConfigurationError(
            f"The registry {registry} has no image {name}: {said}.", hint="See its name in the workflow."
        )
    if "no matching manifest" in low or "does not match the specified platform" in low:
        return ConfigurationError(
            f"There is no image {name} for this host's kind of machine: {said}.", hint="Name one that is made for it."
        )
    return ConfigurationError(
        f"The image {name} can't be fetched from {registry}: {said}.",
        hint=f"Can the engine's host reach {registry}? Try there: docker pull {name}",
    )


def bases_of(dockerfile: str) -> list[str]:
    """The images that a Dockerfile is built upon, as far as it names them without variables."""
    found: dict[str, None] = {}
    stages: set[str] = {"scratch"}
    for line in dockerfile.splitlines():
        said = _FROM.match(line)
        if said is None:
            continue
        if "$" not in said[1] and said[1].lower() not in stages:
            found[said[1]] = None
        if said[2]:
            stages.add(said[2].lower())
    return list(found)


async def login_for(settings: Settings, image: str) -> dict[str, str] | None:
    """Who this host is at the image's registry, as `docker login` has written it down; None where it has not.

    Raises: ConfigurationError where Docker's configuration can't be read, or its helper fails.
    """
    file = (settings.docker_config or Path.home() / ".docker") / "config.json"
    config = await asyncio.to_thread(_read, file)
    registry = registry_of(image)
    keys = _HUB_KEYS if registry == _HUB else (registry, f"https://{registry}", f"http://{registry}")
    helpers = _object(config.get("credHelpers"))
    helper = next((helpers[key] for key in keys if key in helpers), None)
    logins = _object(config.get("auths"))
    known = next((_object(logins[key]) for key in keys if key in logins), None)
    if helper is None and not (known and (known.get("auth") or known.get("identitytoken"))):
        # The store of all logins: it is asked only for those that it is said to have.
        helper = config.get("credsStore") if known is not None else None
    if helper is not None:
        key = next((key for key in keys if key in helpers or key in logins), keys[-1])
        return await _ask(str(helper), key, registry)
    if known is None:
        return None
    if known.get("identitytoken"):
        return {"identitytoken": str(known["identitytoken"]), "serveraddress": registry}
    try:
        user, _, password = base64.b64decode(str(known.get("auth", "")), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The login of {registry} in {file} can't be read.", hint=f"Run: docker login {registry}"
        ) from error
    return {"username": user, "password": password, "serveraddress": registry} if user else None


async def _ask(helper: str, key: str, registry: str) -> dict[str, str]:
    """What a helper of Docker's kind answers: it reads the registry, and writes an object."""
    mend = f"Try it: docker pull of an image of {registry}, as the platform's user."
    if _HELPER.fullmatch(helper) is None:
        raise ConfigurationError(f"{helper[:80]!r} is no helper for logins.", hint=mend)
    program = f"docker-credential-{helper}"
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": f"/usr/local/bin:{os.defpath}", "HOME": str(Path.home())},
        )
    except OSError as error:
        raise ConfigurationError(f"{program} can't be started: {error.strerror}.", hint=mend) from error
    try:
        async with asyncio.timeout(_HELPER_SECONDS):
            said, _ = await process.communicate(key.encode())
        answer = _object(json.loads(said)) if process.returncode == 0 else {}
    except (TimeoutError, ValueError):
        answer = {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answer.get("Secret"):  # what it says may hold a secret, so it is not told
        raise ConfigurationError(f"{program} gives no login for {registry}.", hint=mend)
    user, secret = str(answer.get("Username", "")), str(answer["Secret"])
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": registry}
    return {"username": user, "password": secret, "serveraddress": registry}


def _short(name: str) -> str:
    return name.removeprefix(f"index.{_HUB}/").removeprefix(f"{_HUB}/").removeprefix("library/")


def _read(file: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"Docker's configuration {file} can't be read.", hint="Mend it, or name another folder as DOCKER_CONFIG."
        ) from error


def _object(value: object) -> dict[str, Any]:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, dict) else {}
