"""Pieces: what an instance that carries out a run tells another one whose readers look on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, cast

import orjson

__all__ = ["Piece", "PieceKind", "decode_piece", "encode_pieces"]

PieceKind = Literal["events", "text", "snapshot", "thinking"]

_KINDS: Final[dict[str, PieceKind]] = {"e": "events", "t": "text", "s": "snapshot", "k": "thinking"}
_LETTERS: Final = {kind: letter for letter, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that happened in a run, as it travels between instances: that events were stored, or a piece of text.

    Text under way is counted in characters, so that a reader can tell what it has, what it has twice and what it missed.
    """

    kind: PieceKind
    run_id: str
    seq: int
    """The last event that was stored and shown before this; for `events` the last of them."""
    attempt: int = 0
    """Which stream of the run it comes from: more with each attempt."""
    base: int = 0
    """The event after which the message under way began: tells one message from the next."""
    offset: int = 0
    """How many characters of the message come before `text`."""
    text: str = ""
    is_last: bool = True
    """Whether a `snapshot`, which may come in several pieces, is complete with this one."""


def encode_pieces(piece: Piece, largest: int) -> Iterator[str]:
    """The piece as messages of at most `largest` bytes; text that is too long for one is split."""
    message = _encode(piece)
    if len(message) <= largest:
        yield message.decode()
        return
    if len(piece.text) < 2:
        raise ValueError("the messages between instances are too short for one character")
    middle = len(piece.text) // 2
    yield from encode_pieces(_part(piece, 0, middle), largest)
    yield from encode_pieces(_part(piece, middle, len(piece.text)), largest)


def decode_piece(message: str) -> Piece | None:
    """The piece, or None for what another version of this program sent."""
    try:
        fields = cast("list[object]", orjson.loads(message))
        letter, run_id, seq, *more = fields
        if not more:
            return Piece(_KINDS[cast("str", letter)], cast("str", run_id), cast("int", seq))
        attempt, base, offset, text, is_last = more
    except (orjson.JSONDecodeError, ValueError, TypeError, KeyError):
        return None
    return Piece(
        _KINDS[cast("str", letter)],
        cast("str", run_id),
        cast("int", seq),
        cast("int", attempt),
        cast("int", base),
        cast("int", offset),
        cast("str", text),
        bool(is_last),
    )


def _part(piece: Piece, start: int, end: int) -> Piece:
    return Piece(
        piece.kind,
        piece.run_id,
        piece.seq,
        piece.attempt,
        piece.base,
        piece.offset + start,
        piece.text[start:end],
        piece.is_last and end == len(piece.text),
    )


def _encode(piece: Piece) -> bytes:
    fields: list[object] = [_LETTERS[piece.kind], piece.run_id, piece.seq]
    if piece.kind != "events":
        fields += [piece.attempt, piece.base, piece.offset, piece.text, piece.is_last]
    return orjson.dumps(fields)
