"""The container engine: the one place that speaks to it, and all that is the platform's there. The one module that imports aiodocker."""

import asyncio
import contextlib
import hashlib
import json
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from automagik.claude_code.engine_address import EngineAddress
from automagik.claude_code.executor import Area, Resources
from automagik.claude_code.image_names import normalised, not_pulled, registry_of
from automagik.errors import ConfigurationError, Conflict, NotFound, ServiceUnavailable
from automagik.sandbox.confinement import Availability
from automagik.settings import Settings

if TYPE_CHECKING:
    import aiodocker
    import aiohttp
    from aiodocker.stream import Stream

__all__ = ["INSTANCE_LABEL", "ROLE_LABEL", "RUN_LABEL", "Attached", "Container", "ContainerManager", "Logged", "Role"]

RUN_LABEL = "automagik.run_id"
INSTANCE_LABEL = "automagik.instance"
"""Whose it is: the data folder's. Nobody touches another one's."""
ROLE_LABEL = "automagik.role"
_IMAGE_LABEL = "automagik.image"
_OUTPUT_LABEL = "automagik.output_bytes"

Role = Literal["run", "once"]

_INSTALL = "apt-get install docker.io, and let the platform's user into the group docker"
_CALL_SECONDS = 60.0
_CHUNK_BYTES = 256 * 1024
_HEADER = struct.Struct(">BxxxL")
_ENTRY_BYTES = 500
"""What an entry of a log costs besides what was written: a place on the disk, and the time to read it."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of ours."""

    id: str
    run_id: str
    role: Role
    state: str
    """As the engine says it: created, running, exited, dead and so on."""
    output_bytes: int
    """How much its command may write."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A part of a container's log."""

    stdout: bytes
    stderr: bytes
    cost_bytes: int
    """What it takes of the engine's disk, and a part for each entry."""


class Attached:
    """The standard streams of a container, byte for byte."""

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream
        self._open = True

    @property
    def is_open(self) -> bool:
        """Whether it was not closed, or found closed."""
        return self._open

    async def send(self, data: bytes) -> bool:
        """Whether it went in: False when there is no way in any more."""
        if not self._open:
            return False
        try:
            async with _meanings():
                await self._stream.write_in(data)
        except (ServiceUnavailable, AssertionError, RuntimeError):  # aiodocker asserts that its connection is there
            self._open = False
        return self._open

    async def close(self) -> None:
        """Let go. Where this is the container's standard input, that is at its end."""
        self._open = False
        with contextlib.suppress(AssertionError):
            await self._stream.close()

    async def read(self) -> tuple[int, bytes] | None:
        """The next piece: 1 and 2 are standard output and error. None at the end."""
        async with _meanings():
            message = await self._stream.read_out()
        return None if message is None else (message.stream, message.data)


class ContainerManager:
    """Containers, volumes and images of one data folder. Everything raises ServiceUnavailable while the engine is away."""

    def __init__(self, settings: Settings, *, instance: str) -> None:
        self.address = EngineAddress.of(settings)
        self._instance = instance
        self._docker: aiodocker.Docker | None = None
        self._machine: str | None = None

    async def check(self) -> Availability:
        """Whether there is an engine whose containers can be used."""
        if self.address.socket is None:
            return Availability(False, *self.address.refusal)
        try:
            import aiodocker as _  # noqa: F401, PLC0415 - an optional extra
        except ImportError:
            return Availability(False, "The package aiodocker is missing.", "pip install 'automagik-agents[docker]'")
        try:
            async with _meanings():
                version = await self._engine().version()
        except ServiceUnavailable as away:
            return Availability(False, f"{away.detail} It was asked at {self.address.url}.", _INSTALL)
        if version["Os"] != "linux":
            return Availability(
                False, f"The engine runs containers of {version['Os']}.", "Switch it to Linux containers."
            )
        self._machine = str(version["Arch"])
        return Availability(True)

    async def machine(self) -> str:
        """What kind of machine the engine runs on, as `amd64`."""
        if self._machine is None:
            async with _meanings(seconds=_CALL_SECONDS):
                self._machine = str((await self._engine().version())["Arch"])
        return self._machine

    async def close(self) -> None:
        """Close the connections to the engine."""
        if self._docker is not None:
            await self._docker.close()
            await self._docker.session.close()
            self._docker = None

    # -- containers

    async def create(self, run_id: str, role: Role, config: Mapping[str, Any], *, output_bytes: int = 0) -> str:
        """The id of a new container. Raises: Conflict where the run has one; ConfigurationError where the engine refuses."""
        labels = {RUN_LABEL: run_id, INSTANCE_LABEL: self._instance, ROLE_LABEL: role, _OUTPUT_LABEL: str(output_bytes)}
        name = self._name(run_id) if role == "run" else None
        async with _meanings(f"container of {run_id}"):
            made = await self._engine().containers.create(cast("Any", {**config, "Labels": labels}), name=name)
        return made.id

    async def start(self, container: str) -> None:
        """It runs. Raises: ConfigurationError where the engine can't start it."""
        async with _meanings("container"):
            await self._engine().containers.container(container).start()

    async def signal(self, container: str, name: str) -> bool:
        """Whether it could be signalled: False when it has ended."""
        try:
            async with _meanings("container"):
                await self._engine().containers.container(container).kill(signal=name)
        except (Conflict, NotFound):
            return False
        return True

    async def wait(self, container: str) -> None:
        """Return when it has ended, or is not there."""
        with contextlib.suppress(NotFound):
            async with _meanings("container"):
                await self._engine().containers.container(container).wait()

    async def state(self, container: str) -> dict[str, Any] | None:
        """What the engine says of how it stands, None where it is not there."""
        try:
            async with _meanings("container", seconds=_CALL_SECONDS):
                return (await self._engine().containers.container(container).show())["State"]
        except NotFound:
            return None

    async def remove(self, container: str) -> None:
        """It is gone, whatever it did."""
        with contextlib.suppress(NotFound, Conflict):  # somebody removes it just now
            async with _meanings("container", seconds=_CALL_SECONDS):
                await self._engine().containers.container(container).delete(force=True, v=True)

    async def listed(self, run_id: str | None = None) -> list[Container]:
        """The containers of a run or of all, ended ones too."""
        async with _meanings(seconds=_CALL_SECONDS):
            found = await self._engine().containers.list(all=True, filters=json.dumps(self._filter(run_id)))
        return [_container(one.id, one["Labels"], one["State"]) for one in found]

    async def attach(self, container: str, *, stdin: bool = False, output: bool = False) -> Attached:
        """Its standard streams, to be closed. To miss nothing, attach before the start.

        Input and output want one each: to end the input is to close its connection.
        """
        stream = self._engine().containers.container(container).attach(stdin=stdin, stdout=output, stderr=output)
        async with _meanings("container"):
            await stream.__aenter__()
        return Attached(stream)

    async def log(
        self, container: str, *streams: Literal["stdout", "stderr"], follow: bool = False
    ) -> AsyncIterator[Logged]:
        """What it has written so far, byte for byte as the log has it; with `follow`, and goes on to write until it ends."""
        params = {**dict.fromkeys(streams, "1"), "follow": "1" if follow else "0"}
        async with _meanings("container"), self._raw(f"containers/{container}/logs", params) as response:
            pending = b""
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                pending += chunk
                said = {1: bytearray(), 2: bytearray()}
                at = entries = 0
                while len(pending) - at >= _HEADER.size:
                    stream, size = _HEADER.unpack_from(pending, at)
                    end = at + _HEADER.size + size
                    if len(pending) < end:
                        break
                    said[stream] += pending[at + _HEADER.size : end]
                    at, entries = end, entries + 1
                pending = pending[at:]
                if entries:
                    yield Logged(bytes(said[1]), bytes(said[2]), at + entries * _ENTRY_BYTES)

    async def put(self, container: str, path: str, archive: AsyncIterable[bytes]) -> None:
        """Unpack an archive in a container that need not run. Raises: ConfigurationError where the engine refuses it."""
        async with _meanings("container"):
            await self._engine().containers.container(container).put_archive(path, archive)

    async def get(self, container: str, path: str) -> AsyncIterator[bytes]:
        """An archive of what is at a path. Raises: NotFound."""
        async with _meanings("file"), self._raw(f"containers/{container}/archive", {"path": path}) as response:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def usage(self, container: str) -> Resources:
        """What a container uses now; nothing when it has ended."""
        try:
            async with (
                _meanings("container", seconds=_CALL_SECONDS),
                self._raw(f"containers/{container}/stats", {"stream": "0", "one-shot": "1"}) as response,
            ):
                told = json.loads(await response.read())
        except (NotFound, Conflict):
            return Resources(memory_bytes=0, pids=0)
        memory = cast("dict[str, Any]", told.get("memory_stats") or {})
        details = cast("dict[str, Any]", memory.get("stats") or {})
        # As `docker stats` reckons: what the kernel could drop from its cache of files is nobody's need.
        idle = details.get("total_inactive_file", details.get("inactive_file", 0))
        pids = cast("dict[str, int]", told.get("pids_stats") or {}).get("current", 0)
        return Resources(memory_bytes=max(0, memory.get("usage", 0) - idle), pids=pids)

    # -- volumes

    def volume(self, run_id: str, area: Area) -> str:
        """The name of a run's volume."""
        return f"{self._name(run_id)}-{area}"

    async def make_volume(self, run_id: str, area: Area, *, image: str) -> None:
        """A volume that remembers the run's image; one that is there is kept."""
        labels = {RUN_LABEL: run_id, INSTANCE_LABEL: self._instance, _IMAGE_LABEL: image}
        async with _meanings("volume", seconds=_CALL_SECONDS):
            await self._engine().volumes.create({"Name": self.volume(run_id, area), "Labels": labels})

    async def image_of(self, run_id: str) -> str:
        """The image that a run's volumes were made for. Raises: NotFound where it has none here."""
        async with _meanings("execution", run_id, seconds=_CALL_SECONDS):
            volume = await self._engine().volumes.get(self.volume(run_id, "workspace"))
            told = await volume.show()
        return str(told["Labels"][_IMAGE_LABEL])

    async def mountpoint(self, volume_name: str) -> str:
        """Where the engine's host keeps a volume. Raises: NotFound."""
        async with _meanings("volume", volume_name, seconds=_CALL_SECONDS):
            volume = await self._engine().volumes.get(volume_name)
            return str((await volume.show())["Mountpoint"])

    async def volumes(self) -> list[str]:
        """The runs that have volumes."""
        async with _meanings(seconds=_CALL_SECONDS):
            listed = await self._engine().volumes.list(filters=self._filter(None, RUN_LABEL))
        return sorted({volume["Labels"][RUN_LABEL] for volume in listed["Volumes"] or ()})

    def toolchain(self, digest: str, *, image: str) -> str:
        """The name of a toolchain's volume; it fits the one image that it was prepared on."""
        return (
            f"automagik-{self._instance[:8]}-toolchain-{hashlib.sha256(f'{digest} {image}'.encode()).hexdigest()[:24]}"
        )

    async def has_volume(self, name: str) -> bool:
        """Whether there is a volume of this name."""
        try:
            async with _meanings("volume", name, seconds=_CALL_SECONDS):
                await self._engine().volumes.get(name)
        except NotFound:
            return False
        return True

    async def make_toolchain(self, name: str) -> None:
        """An empty volume for a toolchain; what is left of an unfinished one goes."""
        await self.remove_volume(name)
        async with _meanings("volume", seconds=_CALL_SECONDS):
            await self._engine().volumes.create({"Name": name, "Labels": {INSTANCE_LABEL: self._instance}})

    async def remove_volume(self, name: str) -> None:
        """It is gone. Its containers must be gone before."""
        with contextlib.suppress(NotFound):
            async with _meanings("volume", name, seconds=_CALL_SECONDS):
                volume = await self._engine().volumes.get(name)
                await volume.delete()

    async def remove_volumes(self, run_id: str) -> None:
        """They are gone. Their containers must be gone before."""
        for area in ("workspace", "credentials"):
            await self.remove_volume(self.volume(run_id, area))

    # -- images

    async def find_image(self, name: str) -> dict[str, Any] | None:
        """What the engine knows of an image, None where it is not there. It is not pulled."""
        try:
            async with _meanings("image", name, seconds=_CALL_SECONDS):
                return await self._engine().images.inspect(name)
        except NotFound:
            return None

    async def tag_image(self, image: str, repository: str, tag: str) -> None:
        """Name an image; where it has the name, it was named last now."""
        async with _meanings("image", image, seconds=_CALL_SECONDS):
            await self._engine().images.tag(image, repository, tag=tag)

    async def images(self) -> tuple[list[dict[str, Any]], frozenset[str]]:
        """What images the engine has, and the ids of those that anybody's container or run's volume is made for."""
        async with _meanings(seconds=_CALL_SECONDS):
            engine = self._engine()
            listed = await engine.images.list()
            containers = await engine.containers.list(all=True)
            volumes = (await engine.volumes.list(filters={"label": [_IMAGE_LABEL]}))["Volumes"] or ()
        used = {str(one["ImageID"]) for one in containers} | {str(one["Labels"][_IMAGE_LABEL]) for one in volumes}
        return listed, frozenset(used)

    async def drop_image(self, name: str) -> bool:
        """Whether the name is gone, with the image where it was its last one; False where something uses it."""
        try:
            async with _meanings("image", name, seconds=_CALL_SECONDS):
                await self._engine().images.delete(name)
        except NotFound:
            return True
        except Conflict:
            return False
        return True

    async def pull(
        self, name: str, *, login: Mapping[str, str] | None = None, tell: Callable[[str, str], None] | None = None
    ) -> None:
        """Fetch an image from its registry, as whom `login` says. `tell` hears of a layer how it stands.

        Raises: ConfigurationError with what the engine or the registry says where that fails.
        """
        from aiodocker import DockerError  # noqa: PLC0415 - an optional extra

        # Without a tag all of them would come; with a login aiodocker wants to see the registry.
        full = normalised(name)
        if login is not None and registry_of(full) == "docker.io":
            full = f"docker.io/{full if '/' in full else f'library/{full}'}"
        try:
            async with _meanings(f"image {name}"):
                try:
                    async for step in self._engine().images.pull(full, auth=login, stream=True):
                        if tell is not None and step.get("id"):
                            tell(str(step["id"]), str(step.get("status", "")))
                except DockerError as error:
                    if not _is_away(error.status, error.message):
                        raise not_pulled(name, error.message.strip()) from error
                    raise
        except NotFound as error:
            raise not_pulled(name, error.detail) from error

    async def build(
        self, archive: IO[bytes], *, tag: str, arguments: Mapping[str, str], tell: Callable[[str], None] | None = None
    ) -> None:
        """Build an image from a context and name it. `tell` hears the builder's lines.

        Raises: ConfigurationError with the builder's last words where a step fails.
        """
        from aiodocker.exceptions import DockerStreamError  # noqa: PLC0415 - an optional extra

        last: deque[str] = deque(maxlen=5)
        try:
            async with _meanings(f"image {tag}"):
                steps = self._engine().images.build(
                    fileobj=archive,
                    encoding="identity",
                    tag=tag,
                    buildargs=dict(arguments),
                    rm=True,
                    forcerm=True,
                    stream=True,
                )
                async for step in steps:
                    said = str(step.get("stream") or step.get("status") or "").strip()
                    if said:
                        last.append(said)
                        if tell is not None:
                            tell(said)
        except ConfigurationError as error:
            if isinstance(error.__cause__, DockerStreamError):
                words = "\n".join((*last, error.__cause__.message))
                raise ConfigurationError(
                    f"The image {tag} can't be built: {words}", hint="Mend its Dockerfile."
                ) from error
            raise

    # -- inner parts

    def _engine(self) -> Any:
        """The client. Any, because aiodocker says the types of only a part of it."""
        if self._docker is None:
            import aiodocker  # noqa: PLC0415 - an optional extra
            import aiohttp  # noqa: PLC0415 - comes with it

            # Each run holds several connections for as long as it lasts, so their number has no limit.
            if self.address.socket is None:
                raise ConfigurationError(self.address.refusal[0], hint=self.address.refusal[1])
            connector = aiohttp.UnixConnector(self.address.socket, limit=0)
            session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(sock_connect=10))
            self._docker = aiodocker.Docker(url="unix://localhost", connector=connector, session=session)
        return self._docker

    @contextlib.asynccontextmanager
    async def _raw(self, path: str, params: Mapping[str, str]) -> "AsyncGenerator[aiohttp.ClientResponse]":
        """An answer as it comes: aiodocker decodes logs to text, and takes archives into memory."""
        import aiohttp  # noqa: PLC0415 - comes with aiodocker
        from aiodocker import DockerError  # noqa: PLC0415 - an optional extra

        engine = self._engine()
        if engine.api_version == "auto":
            engine.api_version = f"v{(await engine.version())['ApiVersion']}"
        url = f"{engine.docker_host}/{engine.api_version}/{path}"
        async with engine.session.get(url, params=params, timeout=aiohttp.ClientTimeout()) as response:
            if response.status >= 400:
                raise DockerError(response.status, (await response.json())["message"])
            yield response

    def _name(self, run_id: str) -> str:
        return f"automagik-{self._instance[:8]}-{run_id}"

    def _filter(self, run_id: str | None, *labels: str) -> dict[str, list[str]]:
        ours = [f"{INSTANCE_LABEL}={self._instance}", *labels]
        if run_id is not None:
            ours.append(f"{RUN_LABEL}={run_id}")
        return {"label": ours}


def _container(container: str, labels: dict[str, str], state: str) -> Container:
    role = cast("Role", labels[ROLE_LABEL])
    return Container(container, labels[RUN_LABEL], role, state, int(labels[_OUTPUT_LABEL]))


@contextlib.asynccontextmanager
async def _meanings(
    what: str = "request", name: str | None = None, *, seconds: float | None = None
) -> AsyncGenerator[None]:
    """Turn what aiodocker raises into what it means here."""
    import aiohttp  # noqa: PLC0415 - comes with aiodocker
    from aiodocker import DockerError  # noqa: PLC0415 - an optional extra

    try:
        async with asyncio.timeout(seconds):
            yield
    except DockerError as error:
        message = error.message.strip()
        match error.status:
            case 404:
                raise NotFound(what, name or message) from error
            case 409:
                raise Conflict(f"The container engine refuses: {message}.", code="execution_alive") from error
            case 900 | 500 | 503 if _is_away(error.status, message):
                raise _away(message) from error
            case _:
                raise ConfigurationError(f"The container engine refuses the {what}: {message}.") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise _away(str(error) or type(error).__name__) from error


def _is_away(status: int, message: str) -> bool:
    return status in {900, 503} or "vendored tcp protocol" in message or "shutting down" in message


def _away(message: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"The container engine is away: {message}.", hint="Start it: dockerd, or its service.")
