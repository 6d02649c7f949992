"""Packs that no git would make: written by hand, object by object, for what they become when they are unpacked."""

import hashlib
import struct
import zlib
from dataclasses import dataclass, field

__all__ = ["HandMadePack", "commit_of", "delta", "tree_of"]

_KINDS = {"commit": 1, "tree": 2, "blob": 3}
_REF_DELTA = 7
_COPY_BYTES = 0xFFFFFF


def name_of(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def tree_of(*entries: tuple[str, str, str]) -> bytes:
    """A tree of (mode, name, object)."""
    return b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(found) for mode, name, found in entries)


def commit_of(tree: str, *parents: str, message: str = "Hostile\n") -> bytes:
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    who = "Mallory <mallory@example.org> 1700000000 +0000"
    return "\n".join([*lines, f"author {who}", f"committer {who}", "", message]).encode()


def delta(source_bytes: int, result_bytes: int) -> bytes:
    """What makes so many bytes of the source's first ones, copied over and over."""
    made = bytearray(_varint(source_bytes) + _varint(result_bytes))
    left = result_bytes
    while left:
        piece = min(left, source_bytes, _COPY_BYTES)
        made += b"\xf0" + struct.pack("<I", piece)[:3]
        left -= piece
    return bytes(made)


@dataclass
class HandMadePack:
    """A bundle whose pack is made of what is added to it."""

    base: str
    _objects: list[bytes] = field(default_factory=list[bytes])

    def add(self, kind: str, content: bytes) -> str:
        """The object's name."""
        self._objects.append(_head(_KINDS[kind], len(content)) + zlib.compress(content, 1))
        return name_of(kind, content)

    def add_delta(self, source: str, change: bytes) -> None:
        """An object that is told by what it changes of another; what it is called only git finds out."""
        self._objects.append(_head(_REF_DELTA, len(change)) + bytes.fromhex(source) + zlib.compress(change, 9))

    def bundle(self, refs: dict[str, str], *, count: int | None = None) -> bytes:
        """The bundle; `count`: how many objects its pack claims to hold."""
        number = len(self._objects) if count is None else count
        pack = b"PACK" + struct.pack(">II", 2, number) + b"".join(self._objects)
        pack += hashlib.sha1(pack, usedforsecurity=False).digest()
        header = f"# v2 git bundle\n-{self.base}\n" + "".join(f"{tip} {name}\n" for name, tip in refs.items()) + "\n"
        return header.encode() + pack


def _head(kind: int, size: int) -> bytes:
    first, size = kind << 4 | size & 15, size >> 4
    found = bytearray()
    while size:
        found.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    found.append(first)
    return bytes(found)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
