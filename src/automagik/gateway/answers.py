"""What of a request's head goes to a provider, and what of the provider's answer comes back: by lists, nothing else."""

import re

from automagik.gateway.connection import Head, Header
from automagik.gateway.pool import Reply

__all__ = ["KeyLeaked", "KeyWatch", "answer_headers", "forwarded_headers", "scrubbed", "whole_body"]

_FORWARDED = frozenset({b"accept", b"anthropic-beta", b"anthropic-version", b"openai-beta"})
_BACK = frozenset(
    {
        b"content-encoding",
        b"content-type",
        b"request-id",
        b"retry-after",
        b"retry-after-ms",
        b"x-request-id",
        b"x-should-retry",
    }
)
_BACK_PREFIXES = (b"anthropic-ratelimit-", b"x-ratelimit-")
_PLAIN = re.compile(rb"[\x20-\x7e]{1,2048}")
_OWN: tuple[Header, ...] = (
    # What was read as JSON in UTF-8 must not be read as something else.
    (b"content-type", b"application/json"),
    # Compressed, an answer costs more to be metered as it passes, or can't be at all.
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"automagik-agents"),
)


def forwarded_headers(head: Head) -> tuple[Header, ...]:
    """The headers that a request goes out with, but for the key."""
    given = {name: value for name, value in head.headers if name in _FORWARDED and _PLAIN.fullmatch(value)}
    return (*given.items(), *_OWN)


def answer_headers(reply: Reply, secret: str) -> tuple[tuple[Header, ...], int | None]:
    """The headers that an answer comes back with, none that repeats the platform's key, and its length where that is known."""
    key = secret.encode()
    headers = tuple(
        (name, value)
        for name, value in reply.headers
        if (name in _BACK or name.startswith(_BACK_PREFIXES)) and not (key and key in value)
    )
    length = reply.value(b"content-length")
    return headers, int(length) if length.isdigit() and len(length) < 16 else None


async def whole_body(reply: Reply, max_bytes: int) -> bytes:
    """The body of a short answer, cut at `max_bytes`."""
    content = bytearray()
    async for piece in reply.pieces():
        content += piece
        if len(content) > max_bytes:
            break
    return bytes(content[:max_bytes])


def scrubbed(content: bytes, secret: str) -> bytes:
    """The content without the platform's key, should a provider repeat it."""
    return content.replace(secret.encode(), b"***") if secret else content


class KeyLeaked(Exception):
    """The provider repeats the platform's key in its answer."""


class KeyWatch:
    """Lets an answer pass as long as the platform's key isn't in it, also not in two pieces."""

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()
        self._held = b""

    def passed(self, piece: bytes) -> bytes:
        """What may go on of this piece and the one before it. Raises KeyLeaked."""
        key = self._key
        if not key:
            return piece
        if self._held:
            piece = self._held + piece
            self._held = b""
        if key in piece:
            raise KeyLeaked
        begin = piece.find(key[:1], max(0, len(piece) - len(key) + 1))
        while begin >= 0:
            if key.startswith(piece[begin:]):
                self._held = piece[begin:]
                return piece[:begin]
            begin = piece.find(key[:1], begin + 1)
        return piece

    def rest(self) -> bytes:
        """What was held back of an answer that has ended."""
        held, self._held = self._held, b""
        return held
