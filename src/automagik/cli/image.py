"""`automagik image`: the container image that workflows run in."""

import time
from typing import Annotated

import typer

from automagik.cli.options import AsJson, complete, server_settings
from automagik.cli.output import note, print_json

__all__ = ["app"]

app = typer.Typer(help="Build the container image that workflows run in.", no_args_is_help=True)


@app.callback()
def _nouns() -> None:
    """What makes `build` a command of its own."""


@app.command()
def build(
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="IMAGE",
            help="What it is built upon: an image; `host` for one made of this machine's own git, shell and Perl, without a "
            "registry; `debootstrap` for a minimal Debian from this machine's mirror. Else a Debian image from a registry.",
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME", help="Its name; else AUTOMAGIK_SANDBOX_IMAGE.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the image with the Docker engine of this machine. It holds the Claude CLI: keep it to yourself."""
    from automagik.claude_code.images import build_image  # what only this command needs

    settings = server_settings()
    name = tag or settings.sandbox_image
    began = time.monotonic()
    image = complete(build_image(settings, base=base, tag=name, tell=None if as_json else note))
    seconds = time.monotonic() - began
    if as_json:
        print_json({"image": name, "id": image, "seconds": round(seconds, 1)})
        return
    note(f"{name} is built in {seconds:.0f} s ({image.removeprefix('sha256:')[:12]}).")
