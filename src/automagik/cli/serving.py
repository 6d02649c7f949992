"""`automagik serve`, `automagik worker` and `automagik version`."""

import platform
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from automagik import __version__
from automagik.cli.options import AsJson, server_settings
from automagik.cli.output import print_json, print_text

__all__ = ["serve", "version", "worker"]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; else AUTOMAGIK_HOST, else 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; else AUTOMAGIK_PORT.")
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when the code changes (development).")] = False,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="Leave queued work to `automagik worker` processes; needs PostgreSQL.")
    ] = False,
) -> None:
    """Serve the platform until Ctrl-C or SIGTERM; runs under way get AUTOMAGIK_SHUTDOWN_GRACE_SECONDS to finish."""
    if reload and api_only:
        raise typer.BadParameter("--reload serves for development, in one process: leave --api-only out.")
    settings = server_settings(host=host, port=port)
    from automagik import server  # the whole platform: over a second to load

    # uvicorn hands the signal on when it has stopped: a server that ended as it was asked to has done its work.
    signal.signal(signal.SIGTERM, _leave)
    try:
        server.serve(settings, reload=reload, api_only=api_only)
    except KeyboardInterrupt:
        return


def worker() -> None:
    """Carry out queued work until Ctrl-C or SIGTERM; any number of workers, on any host, may share one PostgreSQL."""
    settings = server_settings(host=None, port=None)
    from automagik import server  # the whole platform: over a second to load

    server.work(settings)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def version(as_json: AsJson = False) -> None:
    """Show the version of Automagik and of Python."""
    if as_json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        print_text(f"automagik {__version__} (Python {platform.python_version()})")
