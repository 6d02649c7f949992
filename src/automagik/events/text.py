"""TextUnderWay: what a reader has of a message that is written on another instance, from pieces that may be lost or come twice."""

from automagik.events.wire import Piece

__all__ = ["TextUnderWay"]


class TextUnderWay:
    """Turns pieces into what a reader is shown: no character missed, none twice. What was missed is asked for."""

    __slots__ = ("_chunks", "_key", "_length", "_replaces", "_taken", "lacks")

    def __init__(self) -> None:
        self._key = (-1, -1)
        self._length = 0
        self._replaces = False
        self._chunks: list[str] = []
        self._taken = 0
        self.lacks = False
        """Whether a piece was missed, so that a snapshot must be asked for."""

    def complete(self) -> None:
        """The message is complete: what comes belongs to the next one."""
        self._length, self._replaces = 0, False
        self._drop_chunks()

    def take(self, piece: Piece) -> tuple[str, str] | None:
        """The type of event and the text that the reader is shown for a piece; None where it shows nothing new."""
        key = (piece.attempt, piece.base)
        if key < self._key:
            return None
        if piece.kind == "thinking":
            return "thinking_delta", piece.text
        if key > self._key:
            self._begin(key)
        if piece.kind == "snapshot" and (self._replaces or not self._length):
            return self._take_snapshot(piece)
        if piece.offset > self._length:
            self.lacks = True
            return None
        new = piece.text[self._length - piece.offset :]
        if not new:
            return None
        kind = "text_snapshot" if self._replaces else "text_delta"
        self._length += len(new)
        self._replaces = False
        return kind, new

    def _begin(self, key: tuple[int, int]) -> None:
        """Another message, or another attempt at one that the reader has seen a part of, which its text then replaces."""
        self._replaces = self._replaces or bool(self._length)
        self._key, self._length = key, 0
        self._drop_chunks()

    def _take_snapshot(self, piece: Piece) -> tuple[str, str] | None:
        """Gather a snapshot's pieces; its text when it is whole."""
        if piece.offset == 0:
            self._drop_chunks()
        if piece.offset != self._taken:
            self.lacks = True
            return None
        self._chunks.append(piece.text)
        self._taken += len(piece.text)
        if not piece.is_last:
            return None
        text = "".join(self._chunks)
        self._length, self._replaces = len(text), False
        self._drop_chunks()
        return "text_snapshot", text

    def _drop_chunks(self) -> None:
        self._chunks, self._taken = [], 0
