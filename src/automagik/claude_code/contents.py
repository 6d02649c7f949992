"""Contents: what of a repository is not in its own commits, and so in no workspace: submodules, files of Git LFS."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from automagik.claude_code.git import Git
from automagik.memory import clean_text
from automagik.types import JsonObject

__all__ = ["Contents"]

_LFS: Final = b"version https://git-lfs.github.com/spec/"
"""What a pointer to a file of Git LFS begins with (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
_POINTER_BYTES = 1024
"""A pointer is smaller, by the same source."""
_MAX_ATTRIBUTES = 200
_MAX_POINTERS = 20_000
_MAX_NAMED = 5


class Contents:
    """What a commit refers to and does not hold."""

    def __init__(self, submodules: Sequence[str], pointers: Sequence[str]) -> None:
        """The paths of submodules, and of files that are pointers of Git LFS."""
        self.submodules = tuple(submodules)
        self.pointers = tuple(pointers)

    @classmethod
    async def of(cls, git: Git, repository: Path, commit: str) -> "Contents":
        """Those of a commit in a bare repository of ours. Raises: GitFailed; TooLarge for a tree of a million files."""
        listed = await git.run("ls-tree", "-r", "-z", commit, repository=repository)
        submodules: list[str] = []
        blobs: list[tuple[str, str]] = []
        for entry in listed.decode("utf-8", "replace").split("\0"):
            meta, _, name = entry.partition("\t")
            mode, _, rest = meta.partition(" ")
            if mode == "160000":
                submodules.append(name)
            elif mode.startswith("100"):
                blobs.append((rest.partition(" ")[2], name))
        attributes = [blob for blob, name in blobs if name.rpartition("/")[2] == ".gitattributes"][:_MAX_ATTRIBUTES]
        small = await _small(git, repository, attributes, max_bytes=64 * 1024)
        if not any(b"filter=lfs" in content for content in (await _read(git, repository, small)).values()):
            return cls(submodules, [])
        found = await _read(git, repository, await _small(git, repository, [blob for blob, _ in blobs]))
        return cls(submodules, [name for blob, name in blobs if found.get(blob, b"").startswith(_LFS)])

    def warnings(self) -> list[JsonObject]:
        """What a run says of them, an event `warning` each."""
        said: list[JsonObject] = []
        if self.submodules:
            detail = (
                f"The workspace is without {_counted(self.submodules, 'submodule')}: only the repository's own files are in "
                "it, and a submodule's folder is empty."
            )
            said.append({"code": "submodules_left_out", "detail": detail})
        if self.pointers:
            detail = (
                f"The workspace has {_counted(self.pointers, 'file')} of Git LFS as pointers, without their contents: what "
                "the run writes there is committed as it is."
            )
            said.append({"code": "lfs_left_out", "detail": detail})
        return said

    def instructions(self) -> str:
        """What the agent is told of them; empty where there is nothing to tell. Names are the repository's, and not in it."""
        lines: list[str] = []
        if self.submodules:
            lines.append("- Its submodules are not here: their folders are empty. Leave them as they are.")
        if self.pointers:
            lines.append("- Files of Git LFS are here as pointers, without their contents. Leave them as they are.")
        return "\n".join(["# What the workspace is without", "", *lines, ""]) if lines else ""


async def _small(git: Git, repository: Path, blobs: Sequence[str], *, max_bytes: int = _POINTER_BYTES) -> list[str]:
    """Those blobs that are smaller, at most so many as are worth looking at."""
    if not blobs:
        return []
    asked = "".join(f"{blob}\n" for blob in dict.fromkeys(blobs)).encode()
    told = await git.run(
        "cat-file", "--batch-check=%(objectname) %(objectsize)", "--buffer", repository=repository, stdin=asked
    )
    sizes = (line.split(" ") for line in told.decode().splitlines())
    return [blob for blob, size in sizes if size.isdecimal() and int(size) < max_bytes][:_MAX_POINTERS]


async def _read(git: Git, repository: Path, blobs: Sequence[str]) -> dict[str, bytes]:
    """The blobs' contents."""
    found: dict[str, bytes] = {}
    if not blobs:
        return found
    told = await git.run(
        *("cat-file", "--batch=%(objectname) %(objectsize)", "--buffer"),
        repository=repository,
        stdin="".join(f"{blob}\n" for blob in blobs).encode(),
    )
    place = 0
    while place < len(told):
        end = told.index(b"\n", place)
        blob, size = told[place:end].split(b" ")
        place = end + 1 + int(size)
        found[blob.decode()] = told[end + 1 : place]
        place += 1
    return found


def _counted(names: Sequence[str], what: str) -> str:
    """How many they are, and the first of their names, as text and no more."""
    shown = [
        clean_text("".join(sign if sign.isprintable() else "\ufffd" for sign in name))[:100]
        for name in names[:_MAX_NAMED]
    ]
    more = ", …" if len(names) > _MAX_NAMED else ""
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({', '.join(shown)}{more})"
