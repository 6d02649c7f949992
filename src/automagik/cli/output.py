"""What a command prints: JSON for programs, tables and text for people, nothing that could steer their terminal."""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Container, Iterable, Sequence

from automagik.types import Json, JsonObject

__all__ = [
    "fitted",
    "note",
    "note_width",
    "print_fields",
    "print_json",
    "print_table",
    "print_text",
    "printable",
    "tell_done",
    "to_the_second",
    "warn",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that turn the direction of writing."""

_FRACTION = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+Z$")
_CELL_CHARS = 80
_ROOMY_CHARS = 80


def printable(text: str) -> str:
    """The text with every control character shown as a mark: what a model or a user wrote must not steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def print_json(document: Json) -> None:
    """One line of JSON on standard output; what would steer a terminal is escaped in it, which changes no value."""
    line = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    _write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n")


def print_text(text: str, *, end: str = "\n") -> None:
    """A text on standard output, at once."""
    _write((printable(text) if sys.stdout.isatty() else text) + end)


def note(text: str) -> None:
    """A remark on standard error, where it disturbs no pipe."""
    print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning on standard error."""
    note(f"warning: {text}")


def note_width() -> int | None:
    """How many cells a line of standard error has; None where it is no terminal."""
    if not sys.stderr.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except OSError:
        return None


def fitted(line: str, cells: int) -> str:
    """The line, cut where it takes more than `cells` of a terminal (a wide character takes two, a combining one none)."""
    taken, kept = 0, 0
    for count, char in enumerate(line, 1):
        taken += _cells(char)
        if taken > cells:
            return f"{line[:kept]}…"
        if taken < cells:  # there is room for the mark
            kept = count
    return line


def tell_done(text: str, document: JsonObject, *, as_json: bool) -> None:
    """What was done to a thing of which nothing is left to show: `text` for people, `document` where JSON is asked for."""
    if as_json:
        print_json(document)
    else:
        note(text)


def print_table(
    rows: Iterable[JsonObject],
    columns: Sequence[tuple[str, str]],
    *,
    optional: Sequence[str] = (),
    whole: Container[str] = (),
) -> None:
    """Rows in columns of (title, field). A terminal gets a table; a pipe gets tabs, whole values and no titles.

    In the table long values are cut, save those of the `whole` fields; on a terminal that is too narrow for it the
    `optional` columns are left out, as many as needed in their order.
    """
    if not sys.stdout.isatty():
        for row in rows:
            _write("\t".join(re.sub(r"[\t\n]", " ", _cell(row.get(field))) for _, field in columns) + "\n")
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [{field: _shown(row.get(field), whole=field in whole) for _, field in columns} for row in rows]
    if not cells:
        note("(none)")
        return
    kept = list(columns)
    for name in optional:
        widths = [max(len(title), *(cell_len(row[field]) for row in cells)) for title, field in kept]
        if sum(widths) + 2 * (len(kept) - 1) > console.width:
            kept = [column for column in kept if column[1] != name]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, field in kept:  # what names the thing is meant to be copied: it is kept in one piece where there is room
        table.add_column(title, overflow="fold", no_wrap=field == columns[0][1] and console.width >= _ROOMY_CHARS)
    for row in cells:
        table.add_row(*(Text(row[field]) for _, field in kept))
    console.print(table)


def print_fields(document: JsonObject) -> None:
    """A resource, one field a line; longer texts and nested values follow indented."""
    width = max((len(name) for name in document), default=0)
    for name, value in document.items():
        nested = isinstance(value, dict | list) and value
        text = json.dumps(value, ensure_ascii=False, indent=2) if nested else _cell(value)
        if "\n" in text:
            indented = "\n".join(f"    {line}" for line in text.split("\n"))
            print_text(f"{name}:\n{indented}")
        else:
            print_text(f"{name:<{width}}  {text}".rstrip())


def _cell(value: Json) -> str:
    match value:
        case None | {} | []:
            return ""
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case list() if all(isinstance(item, str) for item in value):
            return " ".join(str(item) for item in value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def to_the_second(moment: str) -> str:
    """A time of the API without its fraction; any other text as it is."""
    return _FRACTION.sub(r"\1Z", moment)


def _shown(value: Json, *, whole: bool) -> str:
    """The value in one line of a table: times to the second, long texts cut."""
    line = to_the_second(printable(_cell(value)).replace("\n", " "))
    return line if whole or len(line) <= _CELL_CHARS else f"{line[: _CELL_CHARS - 1]}…"


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:  # a lone surrogate, or a terminal that is not UTF-8
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
