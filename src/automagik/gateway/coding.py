"""Unpacking: what is in an answer that a provider compressed, although it was asked not to, read beside its bytes."""

import zlib
from collections.abc import Iterator

__all__ = ["Unpacking"]

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_BARE = -zlib.MAX_WBITS  # some servers mean this by `deflate`
_PART_BYTES = 64 * 1024
_MOST_TIMES = 100
"""How many times as many bytes as came may be unpacked, besides the first part: streams of events have up to forty."""
_FIRST_BYTES = 1024 * 1024
_MOST_BYTES = 64 * 1024 * 1024


class Unpacking:
    """Unpacks one answer of this coding (`gzip`, `deflate`) as it comes, in bounded parts.

    `is_lost` says that it can't be read any more, so that nothing can be said of what it used: another coding (`br` and `zstd` need
    libraries that the platform does not have), bytes that are not what they are said to be, or far more in them than came.
    """

    def __init__(self, coding: bytes) -> None:
        coding = coding.strip().lower()
        self.is_lost = coding not in {b"gzip", b"x-gzip", b"deflate"}
        self._may_be_bare = coding == b"deflate"
        self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begin: bytes = b""
        self._came, self._made = 0, 0

    def parts(self, data: bytes) -> Iterator[bytes]:
        """What is in the next bytes."""
        self._came += len(data)
        if self._may_be_bare:  # two bytes tell
            data, self._begin = self._begin + data, b""
            if len(data) < 2:
                self._begin = data
                return
        while data and not self.is_lost:
            try:
                part: bytes = self._inflater.decompress(data, _PART_BYTES)
            except zlib.error:
                self.is_lost = not self._may_be_bare
                self._inflater, self._may_be_bare = zlib.decompressobj(_BARE), False
                continue
            self._may_be_bare = False
            data = self._inflater.unconsumed_tail
            if self._inflater.eof and (data := self._inflater.unused_data):  # gzip may come in several members
                self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            self._made += len(part)
            self.is_lost = self._made > min(_MOST_BYTES, _FIRST_BYTES + _MOST_TIMES * self._came)
            if not self.is_lost:
                yield part
