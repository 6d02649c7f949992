"""EventLines: JSON objects out of a stream of lines that anybody in the sandbox can write into."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import cast

import orjson

from automagik.types import JsonObject

__all__ = ["MAX_LINE_BYTES", "EventLines"]

MAX_LINE_BYTES = 32 * 1024**2
"""A longer line is passed over, to its end. Results of tools reach some hundred KB."""
_TRIES = 16
"""At how many places from a broken line's beginning an event is tried; more `{"` than this are written to hide one."""
_MAX_SEARCHED_BYTES = 64 * 1024
"""How far from such a line's end it is looked for then: up to 1 s a MB, and a hostile tool may write many such lines."""
_MAX_SEARCHED_IN_ALL = 1024**2
"""How much is searched so in one stream. A count and no clock, so that a replay finds the same."""
_MAX_REPAIRED_BYTES = 4 * 1024**2
"""Up to which length a line with halves of characters is read: by the slower of two parsers."""
_TOKEN = re.compile(rb'["{}]')


class EventLines:
    """Splits bytes of any chunking into lines and reads each; what is no JSON object is passed over.

    A tool can write to the CLI's output. What it forges whole can't be told from what the CLI said; but half a line without an
    end, glued to the CLI's next event, does not take that event away: it is looked for at the line's end.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._overlong = False
        self._searched = 0
        self.number = 0
        """The number of the newest line that ended, from 1."""
        self.broken = 0
        """How many lines held something else than one JSON object."""

    def feed(self, chunk: bytes) -> Iterator[tuple[int, JsonObject]]:
        """The objects of the lines that end in `chunk`, each with its line's number."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._add(chunk[start:end])
            start = end + 1
            yield from self._line()
        self._add(chunk[start:])

    def finish(self) -> Iterator[tuple[int, JsonObject]]:
        """The object of a last line that has no end."""
        if self._size or self._overlong:
            yield from self._line()

    def _add(self, part: bytes) -> None:
        if not part or self._overlong:
            return
        self._size += len(part)
        if self._size > MAX_LINE_BYTES:
            self._overlong = True
            self._parts.clear()
        else:
            self._parts.append(part)

    def _line(self) -> Iterator[tuple[int, JsonObject]]:
        line, overlong = b"".join(self._parts).strip(), self._overlong
        self._parts, self._size, self._overlong = [], 0, False
        self.number += 1
        if overlong:
            self.broken += 1
        elif line:
            found = _parse(line)
            if found is None:
                self.broken += 1
                found = self._recover(line)
            if found is not None:
                yield self.number, found

    def _recover(self, line: bytes) -> JsonObject | None:
        """The object that a broken line ends with, whatever stands before it."""
        if not line.endswith(b"}"):
            return None
        at = 0
        for _ in range(_TRIES):
            at = line.find(b'{"', at)
            if at < 0:
                break
            with contextlib.suppress(orjson.JSONDecodeError):
                return cast("JsonObject", orjson.loads(memoryview(line)[at:]))
            at += 1
        if self._searched > _MAX_SEARCHED_IN_ALL:
            return None
        start, searched = _opening(line)
        self._searched += searched
        return _parse(line[start:]) if start is not None else None


def _parse(line: bytes) -> JsonObject | None:
    """The object that `line` is. The CLI writes halves of characters (lone surrogates) as JSON can escape them."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        if len(line) > _MAX_REPAIRED_BYTES or (b"\\ud" not in line and b"\\uD" not in line and line.isascii()):
            return None
        try:
            value = json.loads(line.decode(errors="replace"), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
    return cast("JsonObject", value) if isinstance(value, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _opening(line: bytes) -> tuple[int | None, int]:
    """Where the brace stands that the last byte of `line` closes, and how many bytes were looked at.

    Read backwards, so that what stands before the object can't confuse it.
    """
    depth, quoted = 0, False
    floor = max(len(line) - _MAX_SEARCHED_BYTES, 0)
    for match in reversed(list(_TOKEN.finditer(line, floor))):
        at = match.start()
        token = line[at]
        if token == 0x22:  # a quotation mark, unless an odd number of backslashes stands before it
            quoted ^= not _is_escaped(line, at)
        elif not quoted:
            depth += 1 if token == 0x7D else -1
            if depth == 0:
                return at, len(line) - at
    return None, len(line) - floor


def _is_escaped(line: bytes, at: int) -> bool:
    before = at
    while before > 0 and line[before - 1] == 0x5C:
        before -= 1
    return bool((at - before) % 2)
