"""What a container of a workflow is made of: the Claude CLI, a base image, and the build context that joins them."""

import asyncio
import hashlib
import importlib.util
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO

from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = [
    "BuildContext",
    "base_context",
    "claude_cli",
    "debootstrap_root",
    "derived_context",
    "host_root",
    "own_context",
]

_INSTALL = "pip install 'automagik-agents[claude]'"

_PROGRAMS = (
    *(
        "bash",
        "sh",
        "dash",
        "git",
        "perl",
        "tar",
        "gzip",
        "env",
        "grep",
        "sed",
        "awk",
        "find",
        "xargs",
        "diff",
        "patch",
        "cmp",
    ),
    *(
        "cat",
        "cp",
        "mv",
        "rm",
        "ln",
        "ls",
        "mkdir",
        "rmdir",
        "mktemp",
        "touch",
        "chmod",
        "chown",
        "stat",
        "du",
        "df",
        "dd",
        "install",
    ),
    *(
        "head",
        "tail",
        "sort",
        "uniq",
        "wc",
        "cut",
        "tr",
        "tee",
        "seq",
        "split",
        "od",
        "base64",
        "md5sum",
        "sha256sum",
        "printf",
    ),
    *(
        "echo",
        "test",
        "true",
        "false",
        "sleep",
        "timeout",
        "date",
        "id",
        "whoami",
        "hostname",
        "uname",
        "nproc",
        "pwd",
        "basename",
    ),
    *(
        "dirname",
        "readlink",
        "realpath",
        "yes",
        "expr",
        "ps",
        "kill",
        "nice",
        "nohup",
        "which",
        "less",
        "mknod",
        "sync",
        "getent",
    ),
    *("curl", "prlimit", "setsid", "chroot", "unshare", "mount"),
)
"""What a base made from this host has of its programs; those that it lacks are left out."""

_TREES = (
    *("/usr/lib/git-core", "/usr/libexec/git-core", "/usr/share/git-core", "/usr/share/perl", "/usr/share/perl5"),
    *(
        "/usr/share/zoneinfo/UTC",
        "/usr/share/zoneinfo/Etc/UTC",
        "/etc/ssl/certs",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
    ),
    *("/etc/ld.so.cache", "/usr/lib/locale/C.utf8"),
)
_TREE_PATTERNS = (
    "usr/lib/*/perl",
    "usr/lib/*/perl-base",
    "usr/lib/*/perl5",
    # The C library's own, and what nearly every other program needs.
    *(
        f"lib/*/{name}.so.[0-9]*"
        for name in ("libc", "libm", "libdl", "librt", "libpthread", "libresolv", "libutil", "libnss_*")
    ),
    "lib/*/libgcc_s.so.1",
    "lib/*/libstdc++.so.6",
)
_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_EMPTY_FOLDERS = ("tmp", "proc", "sys", "dev", "run", "var/tmp", "root", "home", "etc")
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
}
_LEFT_OUT = "CORE"
"""What compiles Perl's modules."""

_LIBRARY = re.compile(r"(/\S+)(?= \(0x)")


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a container engine builds an image from."""

    files: tuple[tuple[str, bytes | Path], ...]
    """Each by its name in the context; the Dockerfile is one of them."""
    arguments: tuple[tuple[str, str], ...] = ()

    def digest(self) -> str:
        """A name for what would be built: the same for the same contents. It reads all of them."""
        hasher = hashlib.sha256(repr(self.arguments).encode())
        for name, content in self.files:
            hasher.update(f"\0{name}\0".encode())
            hasher.update(_digest_of(content))
        return hasher.hexdigest()

    def write(self, target: IO[bytes]) -> None:
        """The context as an archive, which is then at its start."""
        with tarfile.open(fileobj=target, mode="w") as archive:
            for name, content in self.files:
                member = tarfile.TarInfo(name)
                member.mode = 0o755  # the CLI must be a program; it matters for nothing else
                if isinstance(content, Path):
                    member.size = content.stat().st_size
                    with content.open("rb") as source:
                        archive.addfile(member, source)
                else:
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        target.seek(0)


def claude_cli(settings: Settings) -> Path:
    """The Claude CLI's program: the one of the settings, else the one that the package `claude-agent-sdk` brings.

    Raises: ConfigurationError where there is none.
    """
    if settings.claude_cli is not None:
        if not os.access(settings.claude_cli, os.X_OK) or settings.claude_cli.is_dir():
            raise ConfigurationError(
                f"AUTOMAGIK_CLAUDE_CLI names no program: {settings.claude_cli}.",
                hint=f"Unset it and run {_INSTALL}, or name the CLI's program.",
            )
        return settings.claude_cli.resolve()
    spec = importlib.util.find_spec("claude_agent_sdk")
    bundled = None if spec is None or spec.origin is None else Path(spec.origin).parent / "_bundled" / "claude"
    if bundled is None or not bundled.exists():
        raise ConfigurationError("The Claude CLI is missing.", hint=f"Run: {_INSTALL}")
    return bundled.resolve()


def own_context(settings: Settings, *, base: str | None) -> BuildContext:
    """The platform's image upon a base image (None: the Dockerfile's own). Raises: ConfigurationError without a CLI."""
    dockerfile = files("automagik.claude_code").joinpath("container_image", "Dockerfile").read_bytes()
    arguments = () if base is None else (("BASE_IMAGE", base),)
    return BuildContext((("Dockerfile", dockerfile), ("claude", claude_cli(settings))), arguments)


def derived_context(dockerfile: str) -> BuildContext:
    """A workflow's own Dockerfile, which can copy nothing: its folder is not sent."""
    return BuildContext((("Dockerfile", dockerfile.encode()),))


def base_context(root: Path) -> BuildContext:
    """A base image out of an archive of a root file system."""
    return BuildContext((("Dockerfile", b"FROM scratch\nADD root.tar /\nLABEL automagik.base=1\n"), ("root.tar", root)))


async def host_root(target: Path) -> None:
    """Write an archive of a small root file system out of this host's own programs: git, a shell, perl and what they need.

    Raises: ConfigurationError where git, the shell or perl are missing.
    """
    for needed in ("git", "sh", "perl", "ldd"):
        if shutil.which(needed) is None:
            raise ConfigurationError(
                f"A base image of this host needs {needed}.", hint=f"Run: apt-get install {needed}"
            )
    wanted, programs = await asyncio.to_thread(_wanted)
    wanted += await _libraries(programs)
    await asyncio.to_thread(_write_root, target, wanted)


async def debootstrap_root(target: Path) -> None:
    """Write an archive of a minimal Debian with git, from the mirror that this host's apt uses. It takes about a minute.

    Raises: ConfigurationError where debootstrap is missing or fails.
    """
    if shutil.which("debootstrap") is None:
        raise ConfigurationError("debootstrap is missing.", hint="Run: apt-get install debootstrap")
    suite, mirror = await asyncio.to_thread(_suite), await _mirror()
    root = target.with_suffix(".root")
    packages = "--include=git,ca-certificates,perl-base,procps"
    code, said = await _run("debootstrap", "--variant=minbase", packages, suite, str(root), *mirror)
    try:
        if code != 0:
            raise ConfigurationError(f"debootstrap failed: {said.strip()[-500:]}", hint="See /debootstrap.log there.")
        code, said = await _run(
            "tar", "-c", "--one-file-system", "--numeric-owner", "-C", str(root), "-f", str(target), "."
        )
        if code != 0:
            raise ConfigurationError(f"The root file system can't be packed: {said.strip()[-500:]}")
    finally:
        await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)


def _digest_of(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _wanted() -> tuple[list[Path], list[Path]]:
    """What the base has of this host, and which of it are programs."""
    programs = [Path(found) for name in _PROGRAMS if (found := shutil.which(name)) is not None]
    trees = [Path(tree) for tree in _TREES] + [found for pattern in _TREE_PATTERNS for found in Path("/").glob(pattern)]
    wanted = [path for path in (*programs, *trees) if path.exists()]
    return wanted, sorted({path.resolve() for path in _files_in(wanted) if _is_binary(path)})


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _files_in(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (found for found in path.rglob("*") if found.is_file() and _LEFT_OUT not in found.parts)
        else:
            yield path


async def _libraries(programs: list[Path]) -> list[Path]:
    """The shared libraries that programs load, and their loader."""
    found: set[Path] = set()
    shared = [str(path) for path in programs]
    for start in range(0, len(shared), 200):
        _, said = await _run("ldd", *shared[start : start + 200])  # scripts among them are no failure
        found.update(Path(match) for match in _LIBRARY.findall(said))
    return sorted(found)


def _write_root(target: Path, wanted: list[Path]) -> None:
    """The archive: each path with what its links lead to, the merged folders of /usr, and a minimal /etc."""
    with tarfile.open(target, "w") as archive:
        done: set[str] = set()
        for name in _ROOT_LINKS:
            if Path("/", name).is_symlink():
                _add(archive, Path("/", name), done)
        for name in _EMPTY_FOLDERS:
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777 if name in {"tmp", "var/tmp"} else 0o755
            archive.addfile(member)
        for name, content in _FILES.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
            done.add(name)
        for path in wanted:
            _add(archive, path, done)


def _add(archive: tarfile.TarFile, path: Path, done: set[str]) -> None:
    """Add a path where its folders really are, then what is in it or what it leads to."""
    place = path.parent.resolve() / path.name
    name = str(place).lstrip("/")
    if name in done or not os.path.lexists(place):
        return
    done.add(name)
    if place.is_symlink():
        archive.add(place, arcname=name, recursive=False)
        # Of the merged folders only the link: the folder itself would be all of the host's programs.
        if name not in _ROOT_LINKS:
            _add(archive, place.parent / os.readlink(place), done)
    elif place.is_dir():
        archive.add(place, arcname=name, recursive=False)
        for inner in sorted(place.iterdir()):
            if inner.name != _LEFT_OUT:
                _add(archive, inner, done)
    elif place.is_file():
        archive.add(place, arcname=name, recursive=False)


def _suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return "stable"


async def _mirror() -> tuple[str, ...]:
    """Where this host's apt takes its packages from; nothing where that is not said."""
    if shutil.which("apt-get") is None:
        return ()
    code, said = await _run("apt-get", "indextargets", "--format", "$(SITE)")
    sites = said.split()
    return (sites[0],) if code == 0 and sites else ()


async def _run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.defpath + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"},
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")
