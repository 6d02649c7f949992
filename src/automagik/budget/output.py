"""OutputCount: how many tokens an answer has, counted from its text while its provider says nothing of them.

The bound is from below, so that no answer within its limit is taken for one beyond it. No tokenizer gives it: Anthropic's is not
public, those of others are a table of megabytes for each family of models, to be fetched, and the model behind an address need
not be the one that its name says. A number of bytes for each token does not either: a token of English has four or five, one of
Hindi eleven, one of a table of dashes sixty; what is safe for the last is no bound for the first.

What the tokenizers of today share is how they cut a text before they look for tokens: a token has letters of one word, or a few
digits, or signs, never letters of two words. So there are at least as many tokens as such pieces, and seldom more than 1.3 times as
many in English or in a program. Where words are long, or the script sets no spaces, so many characters count as a piece as are more
than a token has on the average of a text, in the largest vocabulary known (o200k): by its published counts, a sentence of eighteen
languages has 1.0 to 1.9 times as many tokens. A model whose tokens span several words would be cut too early: none is known.
"""

import re
from typing import Final

__all__ = ["USUAL_TOKEN_BYTES", "OutputCount"]

_MOST_PENDING = 32 * 1024
"""Bytes that are kept until they are counted."""
_LONGEST_WORD = 256  # characters without a space of which the end may still come
_SLACK = 64
"""Tokens by which pieces of an answer that were joined, or cut in two, may be counted too many."""
USUAL_TOKEN_BYTES: Final = 4
"""Bytes of a token, on the average of texts and programs."""

_LATIN = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u036f\u1e00-\u1eff"
_PIECE = re.compile(
    "|".join(
        (
            rf"[{_LATIN}][{_LATIN}'\u2019]{{0,15}}",
            r"[0-9]{1,6}",
            # Signs; one right before a letter may be of its token.
            r"[!-/:-@\[-`{-~]{1,64}(?![^\W\d])",
            # Greek, Cyrillic, Armenian, Hebrew, Arabic: words with spaces, of which the longer ones are several tokens.
            r"[\u0370-\u08ff\u1f00-\u1fff\ufb1d-\ufdff\ufe70-\ufeff]{1,10}",
            # Chinese and Japanese.
            r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{1,3}",
            # Korean.
            r"[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]{1,4}",
            # Thai, Lao, Tibetan, Burmese, Khmer.
            r"[\u0e00-\u109f\u1780-\u17ff]{1,6}",
            # Tamil, Telugu, Kannada, Malayalam: long words.
            r"[\u0b80-\u0d7f]{1,8}",
            # Other scripts, whose vowels are characters of their own.
            r"[\u0900-\u0b7f\u0d80-\u0dff\u10a0-\u10ff\u1200-\u177f\u1800-\u1dff\u2c00-\u2dff\ua000-\ua95f\ua980-\uabff]{1,12}",
            # Emoji, alone and joined, as halves too where they were escaped.
            r"[\u2600-\u27bf\ufe0f\u200d\ud800-\udfff\U0001f000-\U0001faff]{1,8}",
            # Arrows, mathematics, boxes.
            r"[\u2100-\u25ff\u2900-\u2bff]{1,32}(?![^\W\d])",
        )
    )
)
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|["\\/bfnrt])')


class OutputCount:
    """The tokens of one answer, whose text, thinking and tools' arguments are added as they come."""

    __slots__ = ("_counted", "_pending", "_pieces", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        """How many bytes came, as UTF-8."""
        self._counted = 0
        self._pending = 0
        self._pieces: list[str] = []

    def add(self, text: str) -> None:
        """Take the next piece of the answer."""
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        self.bytes += size
        self._pending += size
        self._pieces.append(text)
        if self._pending > _MOST_PENDING:
            self._count()

    def exceeds(self, tokens: int) -> bool:
        """Whether the answer certainly has more than so many tokens. Counts only where its bytes, of which each token has one, are
        more."""
        if self._counted + self._pending <= tokens:
            return False
        self._count()
        return self._counted - _SLACK > tokens

    def fewest(self) -> int:
        """The fewest tokens that what came can be."""
        self._count()
        return max(0, self._counted - _SLACK)

    def usual(self) -> int:
        """As many tokens as what came usually is."""
        return max(self.bytes // USUAL_TOKEN_BYTES, self.fewest())

    def _count(self) -> None:
        """Count what came, but for a word at the end that may go on."""
        text = "".join(self._pieces)
        end = max(text.rfind(" "), text.rfind("\n")) + 1
        if len(text) - end > _LONGEST_WORD:
            end = len(text)
        if not end:
            self._pieces = [text]
            return
        rest = text[end:]
        self._counted += _pieces_of(text[:end])
        self._pieces = [rest]
        self._pending = len(rest.encode("utf-8", "replace"))


def _pieces_of(text: str) -> int:
    # A tool's arguments come as JSON, which the model need not have written itself: it counts what is escaped, not how.
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    return len(_PIECE.findall(text))


def _unescaped(escape: "re.Match[str]") -> str:
    code: str | None = escape.group(1)
    if code is not None:
        return chr(int(code, 16))
    char = escape.group()[1]
    return char if char in '"\\/' else "\n"
