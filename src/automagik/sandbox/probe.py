"""The containment probe: whether a sandbox holds, seen by trying to get out of it. Everything that isn't proved shut is open."""

import asyncio
import json
import os
import re
import secrets
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, cast

from automagik.errors import ConfigurationError
from automagik.sandbox.probe_script import ATTEMPTS, PROBE

__all__ = [
    "ATTEMPTS",
    "PROBE",
    "Finding",
    "ProbeGround",
    "ProbeTargets",
    "findings",
    "probe_command",
    "probe_environment",
]

_MAX_OUTPUT_BYTES: Final = 64 * 1024
_MAX_DETAIL_CHARS: Final = 300
_SERVICE_BACKLOG = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """A way out of the sandbox, or one of which it is not known whether it is shut."""

    attempt: str
    """One of `ATTEMPTS`; `output` where the probe's own words can't be read."""
    result: Literal["reached", "unknown"]
    detail: str

    def __str__(self) -> str:
        return f"{self.attempt}: {self.detail or self.result}"


@dataclass(frozen=True, slots=True)
class ProbeTargets:
    """What of this host the probe tries to reach, besides what is the same on every host."""

    secret: str
    """What stands in the files that it must not be able to read."""
    data_file: Path
    workspace_file: Path
    home: Path | None = None
    name_servers: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    """`address:port` of what listens on the host."""
    engines: tuple[str, ...] = ()
    sockets: tuple[Path, ...] = ()
    abstract_socket: str = ""
    processes: tuple[tuple[int, int], ...] = ()
    """Pids of the host with their start times."""


def probe_command() -> tuple[str, ...]:
    """What to run in the sandbox; its standard output goes to `findings`."""
    return ("/bin/bash", "-c", PROBE, "probe")


def probe_environment(targets: ProbeTargets) -> dict[str, str]:
    """The variables that tell the probe what to try."""
    home_id = ""
    if targets.home is not None:
        with suppress(OSError):
            seen = targets.home.stat()
            home_id = f"{seen.st_dev}:{seen.st_ino}"
    return {
        "PROBE_SECRET": targets.secret,
        "PROBE_DATA": str(targets.data_file),
        "PROBE_WORKSPACE": str(targets.workspace_file),
        "PROBE_HOME": str(targets.home) if home_id else "",
        "PROBE_HOME_ID": home_id,
        "PROBE_DNS": " ".join(targets.name_servers),
        "PROBE_GATEWAYS": " ".join(targets.gateways),
        "PROBE_SERVICES": " ".join(targets.services),
        "PROBE_ENGINES": " ".join(targets.engines),
        "PROBE_SOCKETS": "\n".join(map(str, targets.sockets)),
        "PROBE_ABSTRACT": targets.abstract_socket,
        "PROBE_PROCESSES": " ".join(f"{pid}:{started}" for pid, started in targets.processes),
    }


def findings(output: bytes) -> tuple[Finding, ...]:
    """What the probe's standard output proves to be open, or doesn't prove to be shut. Nothing: the sandbox holds."""
    found: list[Finding] = []
    told: dict[str, Literal["blocked", "reached"]] = {}
    if len(output) > _MAX_OUTPUT_BYTES:
        return (Finding("output", "unknown", "the probe said more than it can have to say"),)
    for line in output.decode(errors="replace").splitlines():
        said = _line(line)
        if said is None or said[0] in told:
            found.append(
                Finding("output", "unknown", f"the probe said what can't be read: {line[:_MAX_DETAIL_CHARS]!r}")
            )
            continue
        attempt, result, detail = said
        told[attempt] = result
        if result == "reached":
            found.append(Finding(attempt, "reached", detail))
    missing = [attempt for attempt in ATTEMPTS if attempt not in told]
    return (*found, *(Finding(attempt, "unknown", "the probe did not say") for attempt in missing))


def _line(line: str) -> tuple[str, Literal["blocked", "reached"], str] | None:
    try:
        said: object = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    fields = cast("dict[str, object]", said)
    attempt, result, detail = fields.get("attempt"), fields.get("result"), fields.get("detail")
    if set(fields) != {"attempt", "result", "detail"} or attempt not in ATTEMPTS or not isinstance(detail, str):
        return None
    if result not in ("blocked", "reached"):
        return None
    return str(attempt), "blocked" if result == "blocked" else "reached", detail[:_MAX_DETAIL_CHARS]


class ProbeGround:
    """Lays out, while it is open, what a sandbox must not reach: files with a secret, sockets, a port, this process itself.

    `data_dir` and `runtime_dir` are the platform's own; `workspaces` is where runs have theirs; `engines` are paths of
    container engines' sockets.
    """

    def __init__(
        self,
        data_dir: Path,
        runtime_dir: Path,
        *,
        workspaces: Path | None = None,
        engines: Sequence[str] = (),
        home: Path | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._runtime_dir = runtime_dir
        self._workspaces = workspaces or data_dir
        self._engines = tuple(engines)
        self._home = home or Path.home()
        self._stack = ExitStack()

    async def __aenter__(self) -> ProbeTargets:
        """Raises: ConfigurationError, where it can't be laid out."""
        try:
            return await asyncio.to_thread(self._lay_out)
        except OSError as error:
            self._stack.close()
            raise ConfigurationError(f"The containment probe can't be prepared: {error}") from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._stack.close)

    def _lay_out(self) -> ProbeTargets:
        secret, name = secrets.token_hex(16), f"probe-{secrets.token_hex(4)}"
        own_addresses = _own_addresses()
        services = [self._listen(socket.AF_INET, ("127.0.0.1", 0))]
        services += [self._listen(socket.AF_INET, (address, 0)) for address in own_addresses]
        address = f"automagik-{name}"
        self._listener(socket.AF_UNIX, "\0" + address)
        path = self._runtime_dir / f"{name}.sock"
        self._runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener(socket.AF_UNIX, str(path))
        self._stack.callback(path.unlink, missing_ok=True)
        return ProbeTargets(
            secret=secret,
            data_file=self._file(self._data_dir / name, secret),
            workspace_file=self._file(self._workspaces / f"{name}-workspace", secret),
            home=self._home,
            name_servers=_name_servers(),
            gateways=_gateways(),
            services=tuple(services),
            engines=self._engines,
            sockets=(path,),
            abstract_socket=address,
            processes=((os.getpid(), _started(os.getpid())),),
        )

    def _file(self, path: Path, secret: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secret)
        self._stack.callback(path.unlink, missing_ok=True)
        # Open to everybody who gets there: what keeps a sandbox out must be the sandbox.
        path.chmod(0o644)
        return path

    def _listen(self, family: socket.AddressFamily, address: tuple[str, int]) -> str:
        host, port = self._listener(family, address).getsockname()[:2]
        return f"{host}:{port}"

    def _listener(self, family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
        listener = self._stack.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen(_SERVICE_BACKLOG)
        return listener


def _name_servers() -> tuple[str, ...]:
    try:
        text = Path("/etc/resolv.conf").read_text(errors="replace")
    except OSError:
        return ()
    return tuple(re.findall(r"^\s*nameserver\s+([0-9a-fA-F.:]+)", text, re.MULTILINE))[:4]


def _gateways() -> tuple[str, ...]:
    """The IPv4 routers of this host, from the kernel's table."""
    found: list[str] = []
    with suppress(OSError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            gateway = line.split()[2]
            if gateway != "00000000":
                found.append(socket.inet_ntoa(struct.pack("<L", int(gateway, 16))))
    return tuple(dict.fromkeys(found))[:4]


def _own_addresses() -> list[str]:
    """The address by which this host reaches others; nothing is sent to find it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            address = str(probe.getsockname()[0])
    except OSError:
        return []
    return [] if address.startswith("127.") else [address]


def _started(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])
