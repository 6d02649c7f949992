"""`automagik image`: the container images that workflows run in."""

import time
from typing import Annotated

import typer

from automagik.cli.options import AsJson, complete, server_settings
from automagik.cli.output import note, print_json

__all__ = ["app"]

app = typer.Typer(
    help="Build the container image that workflows run in, and remove what of it is not used.", no_args_is_help=True
)


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


@app.command()
def prune(
    unused_days: Annotated[
        float, typer.Option("--unused-days", min=0, metavar="DAYS", help="How long no run has begun with them.")
    ] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove images that were made for runs of workflows and are not used any more. A run that needs one again makes it again.

    Servers and workers do so themselves after 30 days. The platform's own image, and images that were fetched, stay.
    """
    from automagik.claude_code.images import prune_images  # what only this command needs

    settings = server_settings()
    removed = complete(prune_images(settings, unused_seconds=unused_days * 86_400, only_look=dry_run))
    if as_json:
        print_json({"removed": [*removed], "dry_run": dry_run})
        return
    for name in removed:
        note(name)
    word = "would be" if dry_run else "are"
    note(f"{len(removed)} images {word} removed.")
