"""Where a server may clone from: folders under configured roots, and URLs of configured hosts. Everything else is refused."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from automagik.errors import InvalidInput
from automagik.settings import Settings

__all__ = ["Place", "Places"]

_SCP = re.compile(r"(?:(?P<user>[A-Za-z0-9][A-Za-z0-9._-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:].*)")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_URL_PATH = re.compile(r"/[A-Za-z0-9._~%+/@-]+")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LOOPBACK = frozenset({"127.0.0.1", "localhost"})
_MAX_PLACE = 2000
_MAX_POINTER = 4096
_MAX_FOLLOWED = 50

_DEFAULT_FIELD = ("body", "repository")


@dataclass(frozen=True, slots=True)
class Place:
    """A place that git may read from: its location as git takes it, and the protocols that it needs."""

    location: str
    protocols: tuple[str, ...]
    is_folder: bool
    host: str | None = None
    """The host of a URL, in lower case, with its port where it has one."""
    path: str = ""
    """The path at the host, without the slash before it and `.git` after it: `owner/name`."""


class Places:
    """Says of a text that names a repository whether the settings allow to clone it."""

    def __init__(self, settings: Settings) -> None:
        self._roots = tuple(settings.repository_roots)
        self._hosts = frozenset(host.lower() for host in settings.repository_hosts)
        self._ours = (settings.data_dir, settings.runtime_folder)

    def check(self, text: str, *, field: Sequence[str | int] = _DEFAULT_FIELD) -> Place:
        """The place that `text` names. Blocks while it looks at the folder.

        Raises: InvalidInput that names the setting by which an administrator would allow it. What it says never holds a
        password that stood in the text.
        """
        if not text or len(text) > _MAX_PLACE or not text.isprintable() or text.startswith("-"):
            raise _no_place(field)
        if "::" in text:  # `ext::COMMAND` and other helpers that are named in the URL
            raise _no_place(field)
        if "://" in text:
            return self._url(text, field)
        scp = _SCP.fullmatch(text)
        if scp is not None and not text.startswith("/"):
            return self._ssh(scp["user"] or "", scp["host"], None, "/" + scp["path"].lstrip("/"), text, field)
        if not text.startswith("/"):
            raise _no_place(field)
        return self._folder(Path(text), field)

    def _url(self, text: str, field: Sequence[str | int]) -> Place:
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise _no_place(field) from None
        host = parts.hostname or ""
        if parts.password is not None or (parts.username and parts.scheme != "ssh"):
            raise InvalidInput(
                "A repository's URL must hold no user name and no password.",
                field=field,
                code="repository_refused",
                hint="The host's own git credentials are used: a credential helper, or an ssh key.",
            )
        if parts.query or parts.fragment or not _HOST.fullmatch(host) or not _URL_PATH.fullmatch(parts.path):
            raise _no_place(field)
        if parts.scheme == "ssh":
            return self._ssh(parts.username or "", host, port, parts.path, text, field)
        if parts.scheme != "https" and not (parts.scheme == "http" and host.lower() in _LOOPBACK):
            raise InvalidInput(
                f"Repositories are not cloned by '{parts.scheme[:20]}'.",
                field=field,
                code="repository_refused",
                hint="Use https:// or ssh://, or a folder under AUTOMAGIK_REPOSITORY_ROOTS.",
            )
        named = self._allowed(host, port, field)
        return Place(text, (parts.scheme,), False, named, _repository_path(parts.path))

    def _ssh(self, user: str, host: str, port: int | None, path: str, text: str, field: Sequence[str | int]) -> Place:
        if not _HOST.fullmatch(host) or not _URL_PATH.fullmatch(path) or (user and not _USER.fullmatch(user)):
            raise _no_place(field)
        return Place(text, ("ssh",), False, self._allowed(host, port, field), _repository_path(path))

    def _allowed(self, host: str, port: int | None, field: Sequence[str | int]) -> str:
        named = host.lower() if port is None else f"{host.lower()}:{port}"
        if named not in self._hosts:
            raise InvalidInput(
                f"Repositories are not cloned from the host '{named[:100]}'.",
                field=field,
                code="repository_refused",
                hint="An administrator allows it by AUTOMAGIK_REPOSITORY_HOSTS; or send a bundle of the repository.",
            )
        return named

    def _folder(self, path: Path, field: Sequence[str | int]) -> Place:
        """The folder, where it and all that git would follow from it lies under a root, and it is none of ours."""
        refused = InvalidInput(
            "This folder is no repository that may be cloned.",
            field=field,
            code="repository_refused",
            hint="An administrator allows folders by AUTOMAGIK_REPOSITORY_ROOTS; or send a bundle of the repository.",
        )
        try:
            folder = path.resolve(strict=True)
            roots = [Path(root).resolve(strict=True) for root in self._roots if Path(root).is_dir()]
            ours = [folder.resolve() for folder in self._ours]
            for part in (folder, *_followed(folder)):
                if not any(part.is_relative_to(root) for root in roots):
                    raise refused
                if any(part.is_relative_to(own) for own in ours):
                    # An agent can write there, and git runs what a repository's settings say.
                    raise refused
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        return Place(str(folder), ("file",), True)


def _followed(folder: Path) -> list[Path]:
    """What git reads besides the folder: its git folder, the common one of a worktree, objects of other repositories."""
    git = folder / ".git"
    if not git.exists():
        git = folder
    elif git.is_file():
        git = folder / _pointer(git).removeprefix("gitdir:").strip()
    found = [git.resolve(strict=True)]
    common = found[0]
    if (common / "commondir").is_file():
        common = (common / _pointer(common / "commondir").strip()).resolve(strict=True)
        found.append(common)
    for name in ("objects", "refs", "HEAD", "packed-refs", "config"):
        if (common / name).exists():
            found.append((common / name).resolve(strict=True))
    waiting = [common / "objects"]
    while waiting and len(found) < _MAX_FOLLOWED:  # objects of other repositories, which may have others in their turn
        alternates = waiting.pop() / "info" / "alternates"
        lines = _pointer(alternates).splitlines() if alternates.is_file() else []
        named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        others = [(alternates.parents[1] / line).resolve(strict=True) for line in named]
        found += others
        waiting += others
    return found


def _pointer(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_POINTER)


def _repository_path(path: str) -> str:
    return path.strip("/").removesuffix(".git")


def _no_place(field: Sequence[str | int]) -> InvalidInput:
    return InvalidInput(
        "This names no repository.",
        field=field,
        code="repository_refused",
        hint="Give a bundle of the repository, an absolute folder under AUTOMAGIK_REPOSITORY_ROOTS, or a URL like "
        "https://HOST/OWNER/NAME with a host of AUTOMAGIK_REPOSITORY_HOSTS.",
    )
