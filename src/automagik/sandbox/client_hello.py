"""The server name in the first bytes of a TLS connection (RFC 8446 section 4.1.2, RFC 6066 section 3), read without decrypting."""

from typing import Final, Literal

__all__ = ["MAX_HELLO_BYTES", "Incomplete", "server_name"]

MAX_HELLO_BYTES: Final = 64 * 1024
"""More than any client sends before it is answered."""

Incomplete = Literal["incomplete"]
"""The bytes so far are the beginning of a ClientHello; more are needed."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0


class _Reader:
    """Takes numbers and pieces off the front; ValueError where there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("too short")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def piece(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))


def server_name(data: bytes) -> str | Incomplete | None:
    """The name that a client asks for, in lower case; None where this is no TLS, or names nobody.

    A hello that is spread over several records is put together. Raises: ValueError for a hello that contradicts itself.
    """
    message = _message(data)
    if message is None:
        return None
    if isinstance(message, str):
        return message
    reader = _Reader(message)
    reader.take(2 + 32)  # version and random
    reader.piece(1)  # session
    reader.piece(2)  # cipher suites
    reader.piece(1)  # compression
    if not reader.left:
        return None
    names: list[str] = []
    extensions = _Reader(reader.piece(2))
    while extensions.left:
        kind, content = extensions.number(2), _Reader(extensions.piece(2))
        if kind != _SERVER_NAME:
            continue
        entries = _Reader(content.piece(2))
        while entries.left:
            entry, name = entries.number(1), entries.piece(2)
            if entry == _HOST_NAME:
                names.append(name.decode("ascii").lower().rstrip("."))
    if len(set(names)) > 1:
        raise ValueError("several server names")
    return names[0] if names else None


def _message(data: bytes) -> bytes | Incomplete | None:
    """The ClientHello's body, out of its records."""
    if data and data[0] != _HANDSHAKE:
        return None
    collected = b""
    at = 0
    while True:
        if len(data) < at + 5:
            return "incomplete"
        if data[at] != _HANDSHAKE or data[at + 1] != 3:
            if at == 0:
                return None
            raise ValueError("another record within the hello")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if length == 0:
            raise ValueError("an empty record")
        collected += data[at + 5 : at + 5 + length]
        if collected[:1] and collected[0] != _CLIENT_HELLO:
            return None
        if len(collected) >= 4:
            wanted = int.from_bytes(collected[1:4], "big")
            if len(collected) >= 4 + wanted:
                return collected[4 : 4 + wanted]
        if len(data) < at + 5 + length:
            return "incomplete"
        at += 5 + length
