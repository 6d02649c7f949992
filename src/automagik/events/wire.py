"""Pieces: what an instance that carries out a run tells another one whose readers look on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, cast

import orjson

from automagik.events.event import RunEvent
from automagik.types import JsonObject

__all__ = ["Piece", "PieceKind", "decode_piece", "encode_pieces"]

PieceKind = Literal["event", "text", "snapshot", "thinking"]

_KINDS: Final[dict[str, PieceKind]] = {"e": "event", "t": "text", "s": "snapshot", "k": "thinking"}
_LETTERS: Final = {kind: letter for letter, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that happened in a run, as it travels between instances: an event that was stored, or a piece of text.

    Text under way is counted in characters, so that a reader can tell what it has, what it has twice and what it missed.
    """

    kind: PieceKind
    run_id: str
    seq: int
    """The last event that was stored and shown before this; for `event` the one that it is about."""
    event: RunEvent | None = None
    """The stored event itself, where it is not too long for a message; else the store has it."""
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
    """The piece as messages of at most `largest` bytes; text that is too long for one is split, an event left to the store."""
    message = _encode(piece)
    if len(message) <= largest:
        yield message.decode()
        return
    if piece.event is not None:
        yield _encode(replace(piece, event=None)).decode()
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
        kind, run_id, seq = _KINDS[cast("str", fields[0])], cast("str", fields[1]), cast("int", fields[2])
        if kind == "event":
            return Piece(kind, run_id, seq, _event(run_id, seq, *fields[3:]) if len(fields) > 3 else None)
        attempt, base, offset, text, is_last = fields[3:]
    except (ValueError, TypeError, LookupError):
        return None
    return Piece(
        kind,
        run_id,
        seq,
        attempt=cast("int", attempt),
        base=cast("int", base),
        offset=cast("int", offset),
        text=cast("str", text),
        is_last=bool(is_last),
    )


def _event(run_id: str, seq: int, kind: object, at: object, data: object) -> RunEvent:
    return RunEvent(run_id, seq, cast("str", kind), datetime.fromisoformat(cast("str", at)), cast("JsonObject", data))


def _part(piece: Piece, start: int, end: int) -> Piece:
    is_last = piece.is_last and end == len(piece.text)
    return replace(piece, offset=piece.offset + start, text=piece.text[start:end], is_last=is_last)


def _encode(piece: Piece) -> bytes:
    fields: list[object] = [_LETTERS[piece.kind], piece.run_id, piece.seq]
    if piece.event is not None:
        fields += [piece.event.type, piece.event.at, piece.event.data]
    elif piece.kind != "event":
        fields += [piece.attempt, piece.base, piece.offset, piece.text, piece.is_last]
    return orjson.dumps(fields)
