"""Which hosts the egress `registries` means: those of the settings, else those that this host's package managers are set to.

They are asked, or their files are read; no host stands in this code. A package manager that is not installed, does not
answer in time or has nothing set adds nothing.
"""

import asyncio
import contextlib
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit, urlunsplit

import structlog

from automagik.errors import InvalidInput
from automagik.outbound import Outbound
from automagik.settings import Settings

__all__ = ["Registries", "RegistryFinder"]

_ASK_SECONDS = 10.0
_MAX_PAGE_BYTES = 8 * 1024**2
_URL = re.compile(r"https?://[^\s'\",|>)]+")
_CERTIFICATES = "/etc/ssl/certs"

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registries:
    """Where packages come from."""

    hosts: tuple[str, ...]
    """Names of hosts, with a port where it is not one of http's own."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """What tells the package managers inside which registries those are. Never a user name or password."""


class RegistryFinder:
    """Finds the registries once. `home`: where the package managers' own files are, the platform user's if not given."""

    def __init__(self, settings: Settings, outbound: Outbound | None = None, *, home: Path | None = None) -> None:
        self._settings = settings
        self._outbound = outbound
        self._home = home or Path.home()
        self._found: Registries | None = None
        self._finding = asyncio.Lock()

    async def find(self) -> Registries:
        """The registries, found at the first call and remembered."""
        async with self._finding:
            if self._found is None:
                self._found = await self._find()
                _log.info("sandbox_registries", hosts=list(self._found.hosts))
            return self._found

    async def _find(self) -> Registries:
        pip, npm, go, apt, cargo = await asyncio.gather(
            self._pip(),
            self._npm(),
            self._go(),
            asyncio.to_thread(_apt_urls),
            asyncio.to_thread(_cargo_urls, self._home),
        )
        env = {**pip.env, **npm.env, **go.env}
        if self._settings.registry_hosts:
            return Registries(tuple(self._settings.registry_hosts), env)
        hosts = [*pip.hosts, *npm.hosts, *go.hosts, *_hosts(apt), *_hosts(cargo)]
        return Registries(tuple(dict.fromkeys(hosts)), env)

    async def _pip(self) -> Registries:
        pip = await self._working_pip()
        if pip is None:
            return Registries(())
        set_to = dict(
            re.findall(r"^[^=\n]*?\.([a-z-]+)='(.*)'$", await self._ask(*pip, "config", "list"), re.MULTILINE)
        )
        index = set_to.get("index-url")
        if index is None:
            # What it takes where nothing is set, it says in its help.
            help_text = " ".join((await self._ask(*pip, "install", "--help")).split())
            index = next(iter(re.findall(r"Package Index \(default (https?://[^\s)]+)\)", help_text)), None)
        if index is None:
            return Registries(())
        extra = set_to.get("extra-index-url", "").replace("\\n", " ").split()
        env = {"PIP_INDEX_URL": _without_user(index)}
        if extra:
            env["PIP_EXTRA_INDEX_URL"] = " ".join(map(_without_user, extra))
        if set_to.get("cert", "").startswith(_CERTIFICATES):
            env["PIP_CERT"] = set_to["cert"]
        files = [url for urls in await asyncio.gather(*map(self._file_urls, (index, *extra))) for url in urls]
        return Registries(tuple(_hosts([index, *extra, *files])), env)

    async def _working_pip(self) -> Sequence[str] | None:
        candidates: list[Sequence[str]] = [(sys.executable, "-m", "pip")]
        candidates += [(found,) for name in ("pip3", "pip") if (found := shutil.which(name))]
        for candidate in candidates:
            if await self._ask(*candidate, "--version"):
                return candidate
        return None

    async def _file_urls(self, index: str) -> list[str]:
        """Whence an index serves its files, which may be another host: seen on the page of a project that every index has."""
        if self._outbound is None:
            return []
        try:
            page = await self._outbound.fetch(f"{_without_user(index).rstrip('/')}/pip/", max_bytes=_MAX_PAGE_BYTES)
        except InvalidInput as error:
            _log.info("sandbox_registry_not_asked", url=_without_user(index), reason=error.detail)
            return []
        links: list[str] = re.findall(r"href=[\"'](https?://[^\"'#]+)", page.content.decode(errors="replace"))
        return list({f"https://{urlsplit(link).netloc}": link for link in links}.values())

    async def _npm(self) -> Registries:
        npm = shutil.which("npm")
        said = (await self._ask(npm, "config", "get", "registry")).strip() if npm else ""
        if not _URL.fullmatch(said):
            return Registries(())
        scoped = [
            match[1]
            for match in re.finditer(r"^@[^:=\s]+:registry\s*=\s*(\S+)", _text(self._home / ".npmrc"), re.MULTILINE)
        ]
        env = {"npm_config_registry": _without_user(said)}
        authority = (await self._ask(npm, "config", "get", "cafile")).strip() if npm else ""
        if authority.startswith(_CERTIFICATES):
            env["npm_config_cafile"] = authority
        return Registries(tuple(_hosts([said, *scoped])), env)

    async def _go(self) -> Registries:
        go = shutil.which("go")
        try:
            said: object = json.loads(await self._ask(go, "env", "-json", "GOPROXY", "GOSUMDB")) if go else None
        except ValueError:
            said = None
        if not isinstance(said, dict):
            return Registries(())
        known = cast("dict[str, object]", said)
        proxies = cast("list[str]", _URL.findall(str(known.get("GOPROXY", ""))))
        if not proxies:
            return Registries(())
        database = str(known.get("GOSUMDB", "")).split()
        keeper = database[-1] if database else ""
        sums = (
            [keeper if "://" in keeper else f"https://{keeper.partition('+')[0]}"] if keeper not in ("", "off") else []
        )
        env = {"GOPROXY": ",".join(map(_without_user, proxies))}
        if database:
            env["GOSUMDB"] = " ".join(database)
        return Registries(tuple(_hosts([*proxies, *sums])), env)

    async def _ask(self, *command: str) -> str:
        """What a program prints; nothing where it fails, or takes too long."""
        path = f"{Path(command[0]).parent}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={"HOME": str(self._home), "PATH": path, "LANG": "C.UTF-8", "COLUMNS": "1000"},
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return ""
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return ""
        return output.decode(errors="replace") if process.returncode == 0 else ""


def _apt_urls() -> list[str]:
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *etc.glob("sources.list.d/*.list"), *etc.glob("sources.list.d/*.sources")]
    lines = [line for file in files for line in _text(file).splitlines() if not line.lstrip().startswith("#")]
    return _URL.findall("\n".join(lines))


def _cargo_urls(home: Path) -> list[str]:
    """From its settings, and from the indexes that it has used: each says whence it serves its files."""
    folder = home / ".cargo"
    found: list[str] = []
    for name in ("config.toml", "config"):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            found += _strings(tomllib.loads(_text(folder / name)))
    for index in folder.glob("registry/index/*"):
        with contextlib.suppress(ValueError):
            found += _strings(json.loads(_text(index / "config.json") or "{}"))
        found.append(f"https://{index.name.rpartition('-')[0]}")
    return [url for text in found for url in _URL.findall(text)]


def _strings(value: object) -> list[str]:
    """All texts within a document."""
    if isinstance(value, str):
        return [value]
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        inner = cast("list[object]", value)
    return [text for part in inner for text in _strings(part)]


def _hosts(urls: Iterable[str]) -> list[str]:
    hosts: list[str] = []
    for url in urls:
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            port = parts.port
            if parts.hostname:
                hosts.append(parts.hostname if port in (None, 80, 443) else f"{parts.hostname}:{port}")
    return list(dict.fromkeys(hosts))


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
