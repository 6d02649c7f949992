"""Tar streams: how files go in and out of a sandbox, wherever that is."""

import asyncio
import contextlib
import io
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from automagik.errors import InvalidInput, NotFound
from automagik.sandbox.confinement import AGENT_UID

__all__ = ["collected", "file_in", "pack", "pieces", "reowned"]

_CHUNK_BYTES = 256 * 1024
_IN_MEMORY_BYTES = 4 * 1024**2
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)


async def pack(files: Mapping[str, bytes | Path], *, mode: int = 0o644) -> AsyncIterator[bytes]:
    """An archive of these files by their names in it, for `Executor.put`: contents, or files of this host."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        await asyncio.to_thread(_write, spool, files, mode)
        async for piece in pieces(spool):
            yield piece


async def file_in(tar: AsyncIterable[bytes], *, max_bytes: int) -> bytes:
    """The content of the one file in an archive, as `Executor.get` gives it for the path of a file.

    Raises: InvalidInput where it is larger; NotFound where the archive holds no file.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        await collected(tar, spool, max_bytes=max_bytes + 64 * 1024)
        return await asyncio.to_thread(_only_file, spool, max_bytes)


@contextlib.asynccontextmanager
async def reowned(tar: AsyncIterable[bytes]) -> AsyncGenerator[IO[bytes]]:
    """The same archive with the agent as the owner of all that is in it, and nothing but files, folders and links.

    Raises: InvalidInput when it is no archive.
    """
    with (
        tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as came,
        tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as goes,
    ):
        await collected(tar, came)
        await asyncio.to_thread(_reown, came, goes)
        yield goes


async def collected(stream: AsyncIterable[bytes], spool: IO[bytes], *, max_bytes: int | None = None) -> int:
    """How many bytes of a stream went into the spool, which is then at its start. Raises: InvalidInput for too many."""
    size = 0
    async for piece in stream:
        size += len(piece)
        if max_bytes is not None and size > max_bytes:
            raise InvalidInput(f"The archive has over {max_bytes} bytes.", field=("archive",))
        await asyncio.to_thread(spool.write, piece)
    spool.seek(0)
    return size


async def pieces(spool: IO[bytes]) -> AsyncIterator[bytes]:
    """What is in a file from here on."""
    while piece := await asyncio.to_thread(spool.read, _CHUNK_BYTES):
        yield piece


def _write(spool: IO[bytes], files: Mapping[str, bytes | Path], mode: int) -> None:
    with tarfile.open(fileobj=spool, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.uid = member.gid = AGENT_UID
            member.mode = mode
            with contextlib.ExitStack() as stack:
                source: IO[bytes]
                if isinstance(content, Path):
                    source = stack.enter_context(content.open("rb"))
                    member.size = content.stat().st_size
                else:
                    source = io.BytesIO(content)
                    member.size = len(content)
                archive.addfile(member, source)
    spool.seek(0)


def _reown(came: IO[bytes], goes: IO[bytes]) -> None:
    try:
        with tarfile.open(fileobj=came, mode="r:") as archive, tarfile.open(fileobj=goes, mode="w") as copy:
            known: set[str] = set()
            for member in archive:
                if member.type not in _KINDS:
                    continue
                for folder in _unnamed_parents(member.name, known):  # whoever unpacks would make them its own
                    copy.addfile(folder)
                known.add(member.name.strip("/"))
                member.uid = member.gid = AGENT_UID
                member.uname = member.gname = ""
                member.mode &= 0o777
                copy.addfile(member, archive.extractfile(member) if member.isreg() else None)
    except tarfile.TarError as error:
        raise InvalidInput(f"This is no archive that can be unpacked: {error}.", field=("archive",)) from error
    goes.seek(0)


def _unnamed_parents(name: str, known: set[str]) -> Iterator[tarfile.TarInfo]:
    """The folders above a file that no member has stood for."""
    for parent in reversed(PurePosixPath(name).parents):
        text = str(parent).strip("/")
        if text not in {"", "."} and text not in known:
            known.add(text)
            made = tarfile.TarInfo(text)
            made.type, made.mode = tarfile.DIRTYPE, 0o755
            made.uid = made.gid = AGENT_UID
            yield made


def _only_file(spool: IO[bytes], max_bytes: int) -> bytes:
    try:
        with tarfile.open(fileobj=spool, mode="r:") as archive:
            member = next((member for member in archive if member.isreg()), None)
            opened = None if member is None else archive.extractfile(member)
            if member is None or opened is None:
                raise NotFound("file", "in the archive")
            if member.size > max_bytes:
                raise InvalidInput(f"The file has over {max_bytes} bytes.", field=("archive",))
            return opened.read()
    except tarfile.TarError as error:
        raise InvalidInput(f"This is no archive: {error}.", field=("archive",)) from error
