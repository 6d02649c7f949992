"""`automagik artifacts`: the bytes that sessions and runs refer to."""

import contextlib
import hashlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, BinaryIO
from urllib.parse import quote

import typer

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.options import AsJson, Url, connect
from automagik.cli.output import note, print_json

__all__ = ["app"]

app = typer.Typer(help="Get the media and other bytes that sessions and runs refer to.", no_args_is_help=True)


@app.callback()
def _nouns() -> None:
    """What makes `get` a command of its own."""


@app.command()
def get(
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="Its SHA-256, as messages and runs name it.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the bytes go; - is standard output.", show_default=False
        ),
    ],
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Write an artefact to a file, checked against its digest. A file that is there is replaced when all has come."""
    to_stdout = str(output) == "-"
    if to_stdout and as_json:
        raise CliError("--json and -o - both want standard output.", exit_code=ExitCode.USAGE, hint="Name a file.")
    hasher = hashlib.sha256()
    part = output.with_name(f".{output.name}.part")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(url))
        path = f"/api/v1/artifacts/{quote(digest, safe='')}"
        media_type, chunks = stack.enter_context(client.download(path))
        target: BinaryIO = sys.stdout.buffer if to_stdout else stack.enter_context(_opened(part))
        size = 0
        for chunk in chunks:
            hasher.update(chunk)
            target.write(chunk)
            size += len(chunk)
        target.flush()
        if hasher.hexdigest() != digest:
            raise CliError("The bytes that came are not the artefact's.", hint="Try again.", exit_code=ExitCode.FAILED)
        if not to_stdout:
            part.replace(output)
    if as_json:
        print_json({"digest": digest, "size": size, "media_type": media_type, "file": str(output)})
    elif not to_stdout:
        note(f"{size} bytes of {media_type} in {output}.")


@contextlib.contextmanager
def _opened(part: Path) -> Generator[BinaryIO]:
    """A file beside the one that is meant, gone at the end unless it was renamed."""
    try:
        with part.open("wb") as file:
            yield file
    except OSError as error:
        raise CliError(f"{part.parent} can't be written to: {error.strerror}.", exit_code=ExitCode.USAGE) from error
    finally:
        part.unlink(missing_ok=True)
