"""Writes the generated references (command line, settings, errors, HTTP API) into docs/reference; `--check` compares them."""

import asyncio
import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer
from pydantic import AliasChoices, SecretStr

from automagik import errors
from automagik.api import create_api
from automagik.app import Platform
from automagik.cli import app as cli_app
from automagik.settings import ClientSettings, Settings

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py (`make docs`); change the code, not this page. -->\n"


def settings_page() -> str:
    """A table of all settings, from the settings classes themselves."""
    lines = [NOTE, "# Settings", "", "All settings are environment variables.", ""]
    for title, model in (("Server, worker and database commands", Settings), ("Command line", ClientSettings)):
        lines += [f"## {title}", "", "| variable | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            alias = field.validation_alias
            variables = alias.choices if isinstance(alias, AliasChoices) else [f"AUTOMAGIK_{name.upper()}"]
            shown = " or ".join(f"`{variable}`" for variable in variables)
            lines.append(f"| {shown} | {_default(field)} | {' '.join((field.description or '').split())} |")
        lines.append("")
    return "\n".join(lines)


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "the user's folder (XDG)"
    if field.default is None or isinstance(field.default, SecretStr) or field.default == []:
        return ""
    return f"`{field.default}`"


def errors_page() -> str:
    """The tree of errors with codes and statuses."""
    lines = [NOTE, "# Errors", "", "Every error is `application/problem+json` (RFC 9457); `code` is stable.", ""]
    lines += ["| code | status | when |", "|---|---|---|"]
    for name in sorted(errors.__all__):
        cls = getattr(errors, name)
        if not inspect.isclass(cls) or cls is errors.AutomagikError:
            continue
        code = {"NotFound": "…_not_found", "RunFailed": "the run's outcome"}.get(name, cls.code)
        status = {"RunFailed": "502, 504, 409, 403, 500, 503"}.get(name, cls.status)
        lines.append(f"| `{code}` | {status} | {(inspect.getdoc(cls) or '').splitlines()[0]} |")
    return "\n".join([*lines, ""])


def cli_page() -> str:
    """The help of every command, as the command line prints it."""
    root = typer.main.get_command(cli_app)
    lines = [NOTE, "# Command line", ""]
    _commands(root, "automagik", lines)
    return "\n".join(lines)


def _commands(command: Any, name: str, lines: list[str]) -> None:
    lines += [f"## `{name}`", "", (inspect.cleandoc(command.help or "")), ""]
    context = command.context_class(command, info_name=name)
    rows = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    if rows:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [
            f"| `{' '.join(left.split())}` | {' '.join(right.split())} |".replace("||", "\\|") for left, right in rows
        ]
        lines.append("")
    for child_name, child in sorted(getattr(command, "commands", {}).items()):
        if not child.hidden:
            _commands(child, f"{name} {child_name}", lines)


async def openapi() -> dict[str, Any]:
    """The OpenAPI document of a platform with nothing in it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_validate({"data_dir": folder, "model": "demo"})
        async with Platform.open(settings) as platform:
            return create_api(platform).openapi()


def api_page(document: dict[str, Any]) -> str:
    """A table of operations; the whole document stands beside it."""
    lines = [
        NOTE,
        "# HTTP API",
        "",
        "The whole document is [openapi.json](openapi.json); a server shows it at `/docs`.",
        "",
    ]
    lines += ["| method | path | what it does |", "|---|---|---|"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines.append(f"| {method.upper()} | `{path}` | {operation.get('summary', '')} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """0 when the pages are written, or are as they should be; 1 when `--check` finds one that differs."""
    document = asyncio.run(openapi())
    pages = {
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "cli.md": cli_page(),
        "api.md": api_page(document),
        "openapi.json": json.dumps(document, indent=1, sort_keys=True) + "\n",
    }
    stale = [name for name, text in pages.items() if not _same(REFERENCE / name, text)]
    if "--check" in sys.argv:
        for name in stale:
            print(f"docs/reference/{name} is stale: run `make docs` and commit it")
        return 1 if stale else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (REFERENCE / name).write_text(pages[name], encoding="utf-8")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
