"""PromptTemplate: a text with `{{name}}` places, parsed once and filled in one pass."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from automagik.errors import InvalidInput, nearest

__all__ = ["PromptTemplate", "is_name"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
_MAX_NAME = 128
_MAX_LISTED = 20
_MAX_FILLED = 4_000_000
_FIELD = ("template",)


def is_name(text: str) -> bool:
    """Whether `text` can stand in a `{{...}}` place: a letter or `_`, then letters, digits, `_`, `.` or `-`, 128 at most."""
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    r"""A text whose `{{name}}` places are filled with values. What a value holds is never expanded again.

    Spaces inside the braces don't count: `{{ name }}`. Single braces are plain text, so JSON needs no care. To write two
    braces literally, put a backslash before them: `\{{name}}` gives `{{name}}`, and `\\{{name}}` a backslash and the value.
    """

    text: str
    """The source, as it was written."""
    names: tuple[str, ...]
    """The names of its places, each once, in the order in which they come first."""
    pieces: tuple[str, ...]
    """Literal text and names in turns, beginning and ending with literal text."""

    @classmethod
    def parse(cls, text: str, *, field: Sequence[str | int] = _FIELD) -> Self:
        """The template that `text` spells, in time linear in its length.

        Raises: InvalidInput for an unclosed `{{` or for what is no name, with line and column, naming `field`.
        """
        if "{{" not in text:
            return cls(text, (), (text,))
        pieces: list[str] = []
        literal: list[str] = []
        position = 0
        while (opening := text.find("{{", position)) >= 0:
            slashes = opening
            while slashes > position and text[slashes - 1] == "\\":
                slashes -= 1
            count = opening - slashes
            literal.append(text[position:slashes])
            literal.append("\\" * (count // 2))
            if count % 2:
                literal.append("{{")
                position = opening + 2
                continue
            name, position = _place(text, opening, field)
            pieces.append("".join(literal))
            pieces.append(name)
            literal.clear()
        literal.append(text[position:])
        pieces.append("".join(literal))
        return cls(text, tuple(dict.fromkeys(pieces[1::2])), tuple(pieces))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with each place filled from `values`; a place without a value becomes empty.

        Raises: InvalidInput where that would be over 4 million characters: a long value in many places.
        """
        if not self.names:
            return self.pieces[0]
        filled = list(self.pieces)
        for index in range(1, len(filled), 2):
            filled[index] = values.get(filled[index], "")
        size = sum(map(len, filled))
        if size > _MAX_FILLED:
            raise InvalidInput(
                f"The filled prompt would have {size} characters; the limit is {_MAX_FILLED}.",
                field=_FIELD,
                code="prompt_too_long",
                hint="Shorten the values, or use them in fewer places.",
            )
        return "".join(filled)

    def check_names(self, known: Collection[str], *, field: Sequence[str | int] = _FIELD) -> None:
        """Refuse a name that is not among `known`.

        Raises: InvalidInput that names it, its line and column, and the nearest known name.
        """
        for name in self.names:
            if name not in known:
                raise InvalidInput(
                    f"The template uses '{name}' ({_where(self.text, self._find(name))}), which is not known.",
                    field=field,
                    code="unknown_variable",
                    hint=_suggestion(name, known),
                )

    def _find(self, name: str) -> int:
        found = re.search(r"\{\{[ \t]*" + re.escape(name) + r"[ \t]*\}\}", self.text)
        return found.start() if found else 0


def _place(text: str, opening: int, field: Sequence[str | int]) -> tuple[str, int]:
    """The name of the place that opens at `opening`, and the position after it."""
    closing = text.find("}}", opening + 2)
    inner = text[opening + 2 : closing] if closing >= 0 else ""
    if closing < 0 or "{{" in inner or "\n" in inner:
        raise InvalidInput(
            f"A '{{{{' is not closed ({_where(text, opening)}).",
            field=field,
            code="invalid_template",
            hint="Write {{name}} on one line, or \\{{ for two braces as they are.",
        )
    name = inner.strip(" \t")
    if not is_name(name):
        raise InvalidInput(
            f"{name[:60]!r} is no name of a variable ({_where(text, opening)})."
            if name
            else f"A place has no name ({_where(text, opening)}).",
            field=field,
            code="invalid_template",
            hint="A name has letters, digits, '_', '.' and '-' and begins with a letter or '_'; "
            "write \\{{ for two braces as they are.",
        )
    return name, closing + 2


def _where(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = nearest(name, names)
    if close is not None:
        return f"Did you mean '{close}'?"
    if not names:
        return "Declare it in the agent's variables, or store such a memory first."
    more = ", …" if len(names) > _MAX_LISTED else ""
    return f"Known are: {', '.join(names[:_MAX_LISTED])}{more}."
