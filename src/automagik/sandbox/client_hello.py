"""The server name in the first bytes of a TLS connection (RFC 8446 section 4.1.2, RFC 6066 section 3), read without decrypting."""

from typing import Final, Literal

__all__ = ["MAX_HELLO_BYTES", "ClientHello", "Incomplete", "server_name"]

MAX_HELLO_BYTES: Final = 64 * 1024
"""More than any client sends before it is answered."""

Incomplete = Literal["incomplete"]
"""The bytes so far are the beginning of a ClientHello; more are needed."""

_CONTENT_TYPES = range(20, 25)
"""The first bytes of TLS records (https://www.iana.org/assignments/tls-parameters)."""
_HANDSHAKE = 22
_MAJOR_VERSION = 3
_CLIENT_HELLO = 1
_ENCRYPTED_HELLOS = (0xFE0D, 0xFFCE)
"""encrypted_client_hello (draft-ietf-tls-esni) and its forerunner encrypted_server_name: the server that is asked for is inside."""
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


class ClientHello:
    """The first bytes of a client, heard piece by piece: each byte is looked at once, however small the pieces are."""

    def __init__(self) -> None:
        self.heard = bytearray()
        """All bytes so far."""
        self._message = bytearray()
        self._at = 0
        self._left_in_record = 0

    def hear(self, data: bytes) -> str | Incomplete | None:
        """The name that the client asks for, in lower case; None where this is no TLS, or names nobody.

        A hello that is spread over several records is put together. Raises: ValueError for a hello that contradicts itself
        or hides whom it asks for, and for TLS that begins with anything but a hello.
        """
        self.heard += data
        # Some servers (Go's) pass over alerts before the hello, and look at no more of a record's version than that its
        # first byte is small. So whatever could be a record must be the hello's.
        if self.heard[:1] and self.heard[0] not in _CONTENT_TYPES:
            return None
        while True:
            if self._left_in_record == 0:
                if len(self.heard) < self._at + 5:
                    return "incomplete"
                self._left_in_record = self._record()
            piece = self.heard[self._at : self._at + self._left_in_record]
            self._message += piece
            self._at += len(piece)
            self._left_in_record -= len(piece)
            if self._message[:1] and self._message[0] != _CLIENT_HELLO:
                raise ValueError("another message before the hello")
            if len(self._message) >= 4:
                wanted = 4 + int.from_bytes(self._message[1:4], "big")
                if len(self._message) >= wanted:
                    return _name(bytes(self._message[4:wanted]))
            if self._left_in_record:
                return "incomplete"

    def _record(self) -> int:
        """How long the next record is, whose head is passed over."""
        kind, major = self.heard[self._at : self._at + 2]
        length = int.from_bytes(self.heard[self._at + 3 : self._at + 5], "big")
        self._at += 5
        if kind != _HANDSHAKE or major != _MAJOR_VERSION or length == 0:
            raise ValueError("a record that is none of the hello's")
        return length


def server_name(data: bytes) -> str | Incomplete | None:
    """The name that a client asks for by these bytes. Raises: ValueError. See `ClientHello.hear`."""
    return ClientHello().hear(data)


def _name(message: bytes) -> str | None:
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
        if kind in _ENCRYPTED_HELLOS:
            raise ValueError("the name is encrypted")
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
