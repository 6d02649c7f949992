"""What a git bundle says of itself, read by us before git reads it: it came from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from automagik.claude_code.git import GIT_COMMIT, is_ref_name
from automagik.errors import InvalidInput

__all__ = ["BundleHeader", "BundleRefused", "read_header"]

_MAX_HEADER_BYTES = 4 * 1024 * 1024
_MAX_LINE = 1024
_PACK_HEADER = 12
_SIGNATURES = (b"# v2 git bundle\n", b"# v3 git bundle\n")


class BundleRefused(InvalidInput):
    """The bundle is broken, or holds what it may not."""

    code = "bundle_refused"


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """The commits that whoever reads the bundle must have, and the refs that it gives, each with its commit or tag."""

    prerequisites: tuple[str, ...]
    refs: tuple[tuple[str, str], ...]
    """(name, object), as `("refs/heads/main", "1f3…")`; `HEAD` may be among them."""
    size: int
    """How many bytes it has; a pack of objects follows."""
    objects: int
    """How many objects the pack claims to hold. Git takes no pack that holds more."""


def read_header(path: Path, *, field: Sequence[str | int]) -> BundleHeader:
    """The header of the bundle in `path`. Blocks while it reads the file's beginning.

    Raises: BundleRefused for what is no bundle, for names that are no refs, for SHA-256 and for partial bundles.
    """
    prerequisites: list[str] = []
    refs: dict[str, str] = {}
    with path.open("rb") as file:
        if file.readline(_MAX_LINE) not in _SIGNATURES:
            raise BundleRefused(
                "This is no git bundle.", field=field, hint="Make one: git bundle create repository.bundle --all"
            )
        read = 0
        while (line := file.readline(_MAX_LINE)) != b"\n":
            read += len(line)
            if not line.endswith(b"\n") or read > _MAX_HEADER_BYTES:
                raise BundleRefused("The bundle's header is cut off or too long.", field=field, hint="Make it again.")
            if line.startswith(b"@"):
                if line != b"@object-format=sha1\n":
                    raise BundleRefused(
                        f"The bundle needs {line[1:60].strip().decode('ascii', 'replace')!r}, which is not supported.",
                        field=field,
                        hint="Only whole bundles of repositories with SHA-1 can be read.",
                    )
                continue
            if line.startswith(b"-"):
                prerequisites.append(_object(line[1:].split(b" ", 1)[0].strip(), field))
                continue
            digits, _, name = line.rstrip(b"\n").partition(b" ")
            refs[_ref(name, field)] = _object(digits, field)
        size, pack = file.tell(), file.read(_PACK_HEADER)
        objects = int.from_bytes(pack[8:]) if pack.startswith(b"PACK") else 0
        return BundleHeader(tuple(prerequisites), tuple(refs.items()), size, objects)


def _object(digits: bytes, field: Sequence[str | int]) -> str:
    text = digits.decode("ascii", "replace")
    if len(text) != GIT_COMMIT or not all(digit in "0123456789abcdef" for digit in text):
        raise BundleRefused("The bundle's header names what is no object.", field=field, hint="Make it again.")
    return text


def _ref(name: bytes, field: Sequence[str | int]) -> str:
    text = name.decode("utf-8", "replace")
    if text == "HEAD":
        return text
    kind, _, rest = text.partition("/")
    if kind != "refs" or "/" not in rest or not all(_is_plain(part) for part in rest.split("/")):
        raise BundleRefused(
            f"The bundle names {text[:80]!r}, which is no ref.",
            field=field,
            hint="Refs are named as `git check-ref-format` has it.",
        )
    return text


def _is_plain(part: str) -> bool:
    """A part of a ref's name may hold letters of any script; those that we use ourselves are ASCII."""
    return is_ref_name(part) or (
        not part.isascii() and part.isprintable() and is_ref_name("".join(c if c.isascii() else "x" for c in part))
    )
