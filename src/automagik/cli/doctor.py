"""`automagik doctor`: what is missing on this machine, and how to mend it."""

import sys

import typer

from automagik.cli.failure import ExitCode
from automagik.cli.options import AsJson, Url, client_settings, complete, server_settings
from automagik.cli.output import print_json, print_text

__all__ = ["doctor"]

_MARKS = {"ok": ("ok  ", "32"), "warn": ("warn", "33"), "fail": ("FAIL", "31")}


def doctor(as_json: AsJson = False, url: Url = None) -> None:
    """Say what is missing on this machine and how to mend it. Exit code 1 when something that is needed is not there."""
    settings, client = server_settings(), client_settings()
    from rich.console import Console  # what only this command draws with

    from automagik.cli.examination import examine  # store, models and agents take over a second to load

    console = Console()
    failed = False
    findings = complete(examine(settings, client, url))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        failed = failed or finding.status == "fail"
        if as_json:
            print_json(finding.to_json())
            continue
        mark, color = _MARKS[finding.status]
        if console.is_terminal and not console.no_color:
            mark = f"\x1b[{color}m{mark}\x1b[0m"
            sys.stdout.write(mark)
            mark = ""
        print_text(f"{mark}  {finding.name:<{width}}  {finding.detail}")
        if finding.fix is not None:
            print_text(f"{'':{width + 6}}  -> {finding.fix}")
    if failed:
        raise typer.Exit(int(ExitCode.FAILED))
