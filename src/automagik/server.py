"""The ASGI application and the process that serves it; and the process that only carries out queued work."""

import asyncio
import gc
import resource
import signal
import socket
from contextlib import AsyncExitStack
from types import FrameType

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from automagik.api import create_api
from automagik.app import Platform, Role
from automagik.errors import AutomagikError, ConfigurationError
from automagik.settings import Settings
from automagik.telemetry import configure_logging

__all__ = ["Application", "create_app", "serve", "settle_heap", "work"]

_log = structlog.stdlib.get_logger(__name__)

_OPEN_FILES = 65_536
"""What many streams need, a socket in and a socket out each; asked of the system as far as its hard limit goes."""

_BACKLOG = 4096
"""Connections that may wait to be accepted: bursts of hundreds of streams are normal."""

_COLLECT_AFTER = (5000, 20, 10)
"""Objects made, and collections of the younger generation, before a generation is collected. With Python's own 700, 10, 10 a
run took a sixth more CPU (`benchmarks micro`)."""


class Application:
    """The ASGI application over one Platform, which its lifespan opens and closes.

    `failure` is why the lifespan could not open it, for the process that serves.
    """

    def __init__(self, settings: Settings, *, role: Role = "all") -> None:
        """`role`: `api` where other processes carry out the queued work."""
        self.failure: AutomagikError | None = None
        self._settings = settings
        self._role: Role = role
        self._api: ASGIApp | None = None
        self._platform: Platform | None = None

    def drain(self) -> None:
        """Begin the end, while requests under way are still answered."""
        if self._platform is not None:
            self._platform.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif self._api is not None:
            await self._api(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncExitStack() as stack:
            try:
                platform = await stack.enter_async_context(Platform.open(self._settings, role=self._role))
            except AutomagikError as error:
                self.failure = error
                await send({"type": "lifespan.startup.failed", "message": error.detail})
                return
            self._platform = platform
            self._api = create_api(platform)
            model = await platform.models.default_model_name()
            settle_heap()
            _log.info(
                "server_ready",
                database=platform.store.dialect,
                model=model,
                role=self._role,
                executor_id=platform.runs.executor_id,
            )
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def create_app() -> Application:
    """The application by the environment's settings, for any ASGI server (`automagik.server:create_app`, a factory)."""
    settings = Settings()
    configure_logging(settings)
    return Application(settings)


def serve(settings: Settings, *, reload: bool = False, api_only: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. With `reload` the server starts anew when the code changes; with `api_only` it leaves
    queued work to the workers.

    Raises:
        ConfigurationError: the port is taken, or a setting, the database or the data folder is not as it must be.
    """
    if api_only:
        _check_shared(settings, "A server that only answers requests")
    _raise_open_files()
    grace = int(settings.shutdown_grace_seconds) + 5
    if reload:
        uvicorn.run(
            "automagik.server:create_app",
            factory=True,
            reload=True,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=grace,
        )
        return
    configure_logging(settings)
    application = Application(settings, role="api" if api_only else "all")
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=grace,
    )
    with _listen(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        _log.info("server_starting", url=f"http://{host}:{port}")
        try:
            _Server(config, application).run(sockets=[listening])
        except SystemExit:  # uvicorn's way to say that the lifespan failed
            if application.failure is None:
                raise
    if application.failure is not None:
        raise application.failure


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the application at the signal, and not only when all requests are answered."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application
        self._serving: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._serving = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._serving is not None:
            self._serving.call_soon_threadsafe(self._application.drain)


def work(settings: Settings) -> None:
    """Carry out queued work until SIGINT or SIGTERM, then let runs finish within the grace time and hand back the rest.

    Raises:
        ConfigurationError: there is no PostgreSQL to share with a server, or something is not as it must be.
    """
    _check_shared(settings, "A worker")
    configure_logging(settings)
    uvloop.run(_work(settings))


async def _work(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(wanted, stopping.set)
    async with Platform.open(settings, role="worker") as platform:
        settle_heap()
        _log.info(
            "worker_ready",
            database=platform.store.dialect,
            places=settings.max_concurrent_background_runs,
            executor_id=platform.runs.executor_id,
        )
        await stopping.wait()
        _log.info("worker_stopping", runs=platform.runs.live_runs)


def _check_shared(settings: Settings, what: str) -> None:
    if settings.database_url is None:
        raise ConfigurationError(
            f"{what} needs a PostgreSQL that it shares with others; SQLite serves one process.",
            hint="Set AUTOMAGIK_DATABASE_URL, or run `automagik serve`, which does both.",
        )


def settle_heap() -> None:
    """Keep what the start has built out of full garbage collections, which took 135 ms in the midst of requests; and collect
    less often what is new: a run makes thousands of objects that its end frees by itself."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)  # who comes while the server starts waits, instead of being refused
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"The server can't listen on {host}:{port}: {error.strerror}.",
            hint="Stop what listens there, or choose another with AUTOMAGIK_PORT or `--port`.",
        ) from error
    return listening


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
