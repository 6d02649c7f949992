"""What an image says of itself that matters to a container of a workflow, and which images are refused for it."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from automagik.claude_code.executor import Inside
from automagik.errors import ConfigurationError

__all__ = ["ImageFacts", "check_image"]

_INSIDE = Inside()
_OURS = (
    _INSIDE.workspace,
    _INSIDE.credentials,
    _INSIDE.toolchain,
    _INSIDE.sockets,
    _INSIDE.home,
    _INSIDE.tmp,
)
"""Folders of a container that are the platform's or the agent's."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/dev", "/proc", "/sys")
_STEERING = re.compile(
    r"LD_.*|GLIBC_TUNABLES|GCONV_PATH|HOSTALIASES|BASH_.*|ENV|SHELLOPTS|BASHOPTS|PS4|IFS|PERL5.*|PERLLIB|PERL_.*|GIT_.*|.*_PROXY"
    r"|NODE_OPTIONS|BUN_.*|ANTHROPIC_.*|CLAUDE.*|AWS_.*|GOOGLE_.*|CLOUD_ML_.*",
    re.IGNORECASE,
)
"""Variables that steer the loader, shells, git or the CLI: an image's are left out, its others (JAVA_HOME, GOPATH, ...) stay."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Of an image's own configuration what a container of it would take over."""

    path: tuple[str, ...] = ()
    """Its own folders of programs: absolute ones that no agent can write to."""
    steering: tuple[str, ...] = ()
    """Names of its variables that must not be had."""
    volumes: tuple[str, ...] = ()
    """Folders for which the engine would make a volume without a bound."""

    @classmethod
    def of(cls, shown: Mapping[str, Any] | None) -> Self:
        """Of what the engine shows of the image."""
        config = _config(shown)
        lines = cast("list[str]", config.get("Env") or [])
        env = {name: value for name, _, value in (line.partition("=") for line in lines)}
        folders = [folder for folder in env.get("PATH", "").split(":") if folder.startswith("/")]
        return cls(
            path=tuple(folder for folder in folders if not _within(posixpath.normpath(folder), _OURS)),
            steering=tuple(sorted(name for name in env if _STEERING.fullmatch(name))),
            volumes=tuple(sorted({_clean(path) for path in config.get("Volumes") or ()})),
        )


def check_image(shown: Mapping[str, Any], name: str, *, machine: str) -> None:
    """Refuse an image of another machine's kind, and one that asks for more than a sandbox gives.

    `machine`: the engine's, as `amd64`. Raises: ConfigurationError.
    """
    kind = str(shown.get("Architecture") or machine)
    system = str(shown.get("Os") or "linux")
    if (system, kind) != ("linux", machine):
        raise ConfigurationError(
            f"The image {name} is for {system}/{kind}, and this host's engine runs linux/{machine}.",
            hint=f"Name one that is made for linux/{machine}, or by several machines' kinds.",
        )
    if _config(shown).get("OnBuild"):
        raise ConfigurationError(
            f"The image {name} has ONBUILD instructions: they would run when the platform's is made of it.",
            hint="Name an image without them, or build one upon it in a Dockerfile of the workflow.",
        )
    for path in ImageFacts.of(shown).volumes:
        if path == "/" or _within(path, _SYSTEM) or any(path != own and _within(path, (own,)) for own in _OURS):
            raise ConfigurationError(
                f"The image {name} has the VOLUME {path[:200]}, which lies in a folder of the system or of the platform.",
                hint="Build one without it: a VOLUME can't be taken back by an image upon it.",
            )


def _config(shown: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", (shown or {}).get("Config") or {})


def _clean(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)
