"""What `automagik doctor` looks at, one finding a thing."""

import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from automagik import __version__
from automagik.agents.sources import BrokenAgent, find_agents
from automagik.artifacts import ArtifactStore
from automagik.artifacts.objects import Objects
from automagik.claude_code.executor import Executor
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.probing import probe_executor
from automagik.cli.client import ApiClient, find_server
from automagik.cli.failure import CliError
from automagik.cli.folder import local_url, open_store, quiet_logs
from automagik.cli.profile import profile_path
from automagik.errors import AutomagikError
from automagik.providers import ModelRegistry
from automagik.settings import ClientSettings, Settings
from automagik.types import JsonObject, SystemClock

__all__ = ["Finding", "examine"]

_SCARCE_BYTES = 500 * 1024 * 1024
_TOO_FEW_BYTES = 20 * 1024 * 1024
_OPEN_FILES = 4096
"""What a few hundred streams need: two sockets each."""

_TOOLS = {
    "git": "workflows and `make start` in a clone need it: apt install git",
    "curl": "the examples of the documentation use it: apt install curl",
    "make": "the commands of the README use it: apt install make",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is, and for what is not as it should be, the way to mend it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str | None = None

    def to_json(self) -> JsonObject:
        """The finding as one object."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "fix": self.fix}


async def examine(settings: Settings, client: ClientSettings, url: str | None) -> list[Finding]:
    """All findings, in the order in which they should be mended."""
    quiet_logs(settings)
    findings = [_python(), _data_folder(settings), await _database(settings), await _artifacts(settings), _open_files()]
    profile, server = _profile(client), _server(settings, client, url)
    findings += [*profile, *server, await _model(settings), *_agents(settings)]
    if settings.data_dir.is_dir():
        return [*findings, *await _workflows(settings), *_tools()]
    with tempfile.TemporaryDirectory(prefix="automagik-") as folder:  # a look must not make the data folder
        findings += await _workflows(settings.model_copy(update={"data_dir": Path(folder)}))
    findings += _tools()
    return findings


async def _workflows(settings: Settings) -> list[Finding]:
    """Whether workflows can run here, and whether what they run in holds."""
    if sys.platform != "linux":
        return [
            Finding(
                "workflows",
                "warn",
                f"Executors need Linux, and this is {platform.system()}: no workflow can run here.",
                "Run the server on Linux, or in a container or virtual machine of it.",
            )
        ]
    factory = ExecutorFactory(settings)
    try:
        names = ("docker", "local") if settings.executor == "auto" else (settings.executor,)
        findings = [await _executor(settings, factory.named(name)) for name in names]
    finally:
        await factory.close()
    if any(finding.status == "ok" for finding in findings):
        return [*(finding for finding in findings if finding.status != "warn"), *await _workflows_key(settings)]
    return findings


async def _workflows_key(settings: Settings) -> list[Finding]:
    """That the gateway has no key for what the CLI speaks. A server of one's own may need none."""
    if (
        settings.anthropic_api_key
        or settings.anthropic_auth_token
        or "api.anthropic.com" not in settings.anthropic_base_url
    ):
        return []
    if settings.database_url is not None or (settings.data_dir / "automagik.db").exists():
        try:
            async with open_store(settings) as store:
                if {"anthropic_api_key", "anthropic_auth_token"} & set(await store.read(lambda tx: tx.secrets.names())):
                    return []
        except AutomagikError:  # what is wrong with the database is a finding of its own
            return []
    return [
        Finding(
            "workflows (key)",
            "warn",
            "There is no key for Anthropic's API: workflows run with --demo only.",
            "Set ANTHROPIC_API_KEY where the server runs, or store it: automagik secrets set anthropic_api_key",
        )
    ]


async def _executor(settings: Settings, executor: Executor) -> Finding:
    name = f"workflows ({executor.name})"
    available = await executor.check()
    if not available.works:
        return Finding(name, "warn", available.reason or "It does not work here.", available.remedy)
    if not executor.sandboxed:
        detail = "Workflows run as plain processes, as AUTOMAGIK_RUN_WITHOUT_SANDBOX says."
        return Finding(name, "warn", detail, "Unset it, and install bubblewrap or Docker.")
    try:
        found = await probe_executor(settings, executor)
    except AutomagikError as error:
        return Finding(name, "fail", f"The containment probe could not run: {error.detail}", error.hint)
    if found:
        told = "; ".join(str(finding) for finding in found)
        return Finding(name, "fail", f"The sandbox does not hold: {told}", "No workflow runs in it until that is shut.")
    return Finding(name, "ok", "Its sandbox works, and holds: the containment probe got nowhere.")


def _python() -> Finding:
    return Finding("python", "ok", f"Python {platform.python_version()}, automagik {__version__}")


def _data_folder(settings: Settings) -> Finding:
    folder = settings.data_dir
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "data folder",
            "fail",
            f"{folder} can't be written to",
            f"Give yourself {existing}, or choose another folder with AUTOMAGIK_DATA_DIR.",
        )
    free = shutil.disk_usage(existing).free
    detail = f"{folder}, {free // (1024 * 1024):,} MB free"
    if free < _TOO_FEW_BYTES:
        return Finding("data folder", "fail", detail, "Free some space, or move the folder (AUTOMAGIK_DATA_DIR).")
    if free < _SCARCE_BYTES:
        return Finding("data folder", "warn", detail, "Free some space, or move the folder (AUTOMAGIK_DATA_DIR).")
    return Finding("data folder", "ok", detail)


async def _database(settings: Settings) -> Finding:
    if settings.database_url is None and not (settings.data_dir / "automagik.db").exists():
        return Finding("database", "ok", "SQLite in the data folder; the first start makes it")
    try:
        async with open_store(settings) as store:
            await store.check()
            return Finding("database", "ok", f"{store.dialect}, reachable, its schema is this version's")
    except AutomagikError as error:
        return Finding("database", "fail", error.detail, error.hint or "Check AUTOMAGIK_DATABASE_URL.")


async def _artifacts(settings: Settings) -> Finding:
    objects = Objects(settings)
    if settings.artifacts_url is None and not (settings.data_dir / "artifacts").exists():
        return Finding("artefacts", "ok", "in the data folder; the first start makes it")
    try:
        if settings.database_url is None and not (settings.data_dir / "automagik.db").exists():
            await objects.open()
            await objects.check()
        else:
            async with open_store(settings) as store:
                artifacts = ArtifactStore(settings, store, SystemClock())
                await artifacts.open()
                await artifacts.check()
    except AutomagikError as error:
        detail = f"{objects.place}: {error.detail}"
        return Finding("artefacts", "fail", detail, error.hint or "Check AUTOMAGIK_ARTIFACTS_URL.")
    return Finding("artefacts", "ok", f"{objects.place} can be written and read")


def _open_files() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= _OPEN_FILES:
        return Finding("open files", "ok", "unlimited" if hard == resource.RLIM_INFINITY else f"up to {hard}")
    return Finding(
        "open files",
        "warn",
        f"up to {hard}: enough for {hard // 2} streams",
        "Raise it with `ulimit -n` or in limits.conf.",
    )


def _profile(client: ClientSettings) -> Iterator[Finding]:
    path = profile_path(client.config_dir)
    if client.key is not None:
        yield Finding("key", "ok", "from AUTOMAGIK_KEY")
    elif not path.exists():
        yield Finding(
            "key", "warn", f"no profile at {path}", "Run `automagik keys create --first`, or set AUTOMAGIK_KEY."
        )
        return
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Finding(
                "profile",
                "fail",
                f"{path} can be read by others (mode {mode:o})",
                f"chmod 600 {path}, then replace the key.",
            )
        else:
            yield Finding("profile", "ok", f"{path}, mode {mode:o}")


def _server(settings: Settings, client: ClientSettings, url: str | None) -> Iterator[Finding]:
    try:
        server = find_server(url, client)
    except CliError as failure:
        yield Finding("server", "fail", failure.detail, failure.hint)
        return
    if server.url.startswith("http://") and server.key is not None and not _is_local(server.url):
        yield Finding(
            "server",
            "warn",
            f"{server.url}: the key travels unencrypted",
            "Put a proxy with TLS before it, and use https.",
        )
    with ApiClient(server) as api:
        try:
            api.get("/health")
        except CliError as failure:
            yield _no_server(settings, server.url, failure)
            return
        yield Finding("server", "ok", f"answers at {server.url}")
        try:
            key = api.get("/api/v1/keys/self")
        except CliError as failure:
            yield Finding("access", "fail", failure.detail, failure.hint)
            return
        scopes = cast("list[str]", key["scopes"])
        yield Finding("access", "ok", f"{key['key_id']} may: {' '.join(scopes)}")
        yield from _degraded(api)


def _degraded(api: ApiClient) -> Iterator[Finding]:
    """What the server finds wrong with itself."""
    try:
        checks = cast("list[dict[str, str | None]]", api.get("/ready")["checks"])
    except CliError as failure:
        yield Finding("server (ready)", "fail", failure.detail, "GET /ready with an administrator's key says more.")
        return
    for check in checks:
        if check["status"] != "ok":
            detail = check["detail"] or "It does not work as it should; a key with `admin` is told why."
            where = "See the log of the worker on that host." if check["name"] == "workers" else "See the server's log."
            yield Finding(f"server ({check['name']})", "warn", detail, where)


def _no_server(settings: Settings, url: str, failure: CliError) -> Finding:
    if url != local_url(settings):
        return Finding("server", "warn", failure.detail, failure.hint)
    try:
        with socket.create_connection((settings.host or "127.0.0.1", settings.port), timeout=2):
            pass
    except OSError:
        return Finding("server", "ok", f"not running; port {settings.port} is free. `automagik serve` starts it")
    return Finding(
        "server",
        "fail",
        f"port {settings.port} is taken by something that is no Automagik",
        "Choose another port with AUTOMAGIK_PORT, or stop what listens there.",
    )


def _is_local(url: str) -> bool:
    return any(url.startswith(f"http://{host}") for host in ("127.", "localhost", "[::1]"))


async def _model(settings: Settings) -> Finding:
    registry = ModelRegistry(settings)
    await registry.open()
    try:
        name = await registry.default_model_name()
        try:
            await registry.check(name)
        except AutomagikError as error:
            return Finding(
                "model", "fail", f"{name}: {error.detail}", error.hint or "Choose another with AUTOMAGIK_MODEL."
            )
    finally:
        await registry.close()
    if settings.model is not None:
        return Finding("model", "ok", f"{name}, by AUTOMAGIK_MODEL")
    if name == "demo":
        return Finding(
            "model",
            "warn",
            "demo, which is no language model: no key is set, and no local server was found",
            "Set OPENAI_API_KEY, ANTHROPIC_API_KEY or GOOGLE_API_KEY, start Ollama, or set AUTOMAGIK_MODEL.",
        )
    by_key = settings.openai_api_key or settings.anthropic_api_key or settings.google_api_key
    return Finding("model", "ok", f"{name}, {'because its key is set' if by_key else 'found on this machine'}")


def _agents(settings: Settings) -> list[Finding]:
    found = list(find_agents(settings.agents_folder))
    broken = [agent for agent in found if isinstance(agent, BrokenAgent)]
    if not broken:
        return [
            Finding("agents", "ok", f"{len(found)} besides claude_code, in code, packages and {settings.agents_folder}")
        ]
    return [
        Finding("agents", "warn", f"{agent.name} can't be used: {agent.cause}", f"Mend or remove {_place(agent)}.")
        for agent in broken
    ]


def _place(agent: BrokenAgent) -> str:
    return str(Path(agent.location)) if agent.source == "file" else f"the package behind {agent.location}"


def _tools() -> Iterator[Finding]:
    for name, why in _TOOLS.items():
        path = shutil.which(name)
        yield Finding(name, "ok", path) if path else Finding(name, "warn", "not found", why)
