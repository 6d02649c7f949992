"""Measuring: how much of a disk a run's folders take, whatever it makes of them: in a process apart, by descriptors, within a time.

The same small program measures on the host and in a container. It is Perl for the reasons of `courier`; a walk by it takes a third
of Python's time, and none of this process's.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from automagik.errors import ConfigurationError

__all__ = ["MEASURE_SECONDS", "NO_LIMIT", "Size", "Unknown", "disk_used", "measure", "measure_command", "size_said"]

MEASURE_SECONDS: Final = 60
"""How long one measuring may take."""
NO_LIMIT: Final = 2**62
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_SECONDS = 5.0
_INODE_BYTES = 4096

Unknown = Literal["time", "many", "unreadable", "device", "moved", "failed"]
"""Why a size is not known."""
_WHY: dict[Unknown, str] = {
    "time": f"it could not be measured within {MEASURE_SECONDS} seconds, it holds too many files",
    "many": "its folders are too many in one place, or too deep, to be measured",
    "unreadable": "a folder in it can't be looked into",
    "device": "a part of it is on a file system of its own",
    "moved": "its folders were moved while it was measured, again and again",
    "failed": "the program that measures it was ended",
}

_PROGRAM: Final = r"""
use strict; use warnings; use Fcntl; use Errno;
my ($limit, $seconds, @tops) = @ARGV;
my ($total, $waiting, $links, %seen) = (0, 0, 0);
sub end { print "$total $_[0]\n"; exit 0 }
$SIG{ALRM} = sub { end("time") };
alarm $seconds;
sub hold {    # what has to be remembered is bounded
    $waiting += $_[0];
    end("many") if $waiting > 64 * 1024 * 1024;
}
sub give_back {    # the right to look into a folder, which its owner took from itself; by a descriptor, for the name may be a link by now
    my ($folder) = @_;
    chmod(((stat $folder)[2] & 07777) | 0700, "/proc/self/fd/" . fileno $folder);
}
sub go_to {
    my ($folder) = @_;
    chdir $folder or ($!{EACCES} and give_back($folder) and chdir $folder) or end("unreadable");
}
sub enter {    # the folder of this name, which is the current one then; nothing where there is none any more
    my ($name) = @_;
    for my $try (1, 2) {
        if (sysopen my $folder, $name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW) { go_to($folder); return $folder }
        return if $!{ENOENT} || $!{ENOTDIR} || $!{ELOOP};
        end("unreadable") unless $!{EACCES} && $try == 1;
        sysopen my $place, $name, 010000000 | O_DIRECTORY | O_NOFOLLOW or end("unreadable");    # O_PATH
        give_back($place) or end("unreadable");
    }
}
sub look {    # counts what is in the current folder, and returns the names of the folders in it
    my @folders;
    opendir my $entries, "." or end("unreadable");
    while (1) {
        $! = 0;
        my $name = readdir $entries;
        last unless defined $name;
        next if $name eq "." || $name eq "..";
        my ($dev, $ino, $mode, $names, $blocks) = (lstat $name)[0 .. 3, 12];
        if (!defined $dev) { next if $!{ENOENT}; end("unreadable") }
        my $is_folder = ($mode & 0170000) == 0040000;
        if ($names > 1 && !$is_folder) {
            my $id = pack "QQ", $dev, $ino;
            next if $seen{$id};
            # Of more than these each name counts in full.
            if ($links < 250_000) { $seen{$id} = 1; $links++ }
        }
        $total += $blocks > 8 ? $blocks * 512 : 4096;    # an empty file takes a place on the disk, too
        end("") if $total > $limit;
        if ($is_folder) { hold(64 + length $name); push @folders, $name }
    }
    end("unreadable") if $! && !$!{ENOENT};
    return \@folders;
}
for my $top (@tops) {
    my $folder = enter($top) or next;
    my ($device, $id) = stat $folder;
    my @above = ([$folder, "$device $id", look()]);
    while (@above) {
        my $name = pop @{ $above[-1][2] };
        if (defined $name) {
            hold(-64 - length $name);
            my $inner = enter($name) or next;
            my ($dev, $ino) = stat $inner;
            end("device") if $dev != $device;
            hold(512);
            push @above, [$inner, "$dev $ino", look()];
            $above[-32][0] = undef if @above >= 32;    # so many descriptors, however deep it is
            next;
        }
        hold(-512) if @above > 1;
        pop @above;
        last unless @above;
        my $up = $above[-1];
        if ($up->[0]) { go_to($up->[0]); next }
        $up->[0] = enter("..") or end("moved");
        end("moved") if join(" ", (stat $up->[0])[0, 1]) ne $up->[1];
    }
}
end("");
"""


@dataclass(frozen=True, slots=True)
class Size:
    """What folders take of a disk."""

    bytes: int
    """At least: more than the limit, where the measuring stopped there."""
    unknown: Unknown | None = None
    """Why they could not be measured to the end."""

    def is_over(self, limit: int) -> bool:
        """Whether it is more than so many bytes. What can't be measured is more than any limit."""
        return self.unknown is not None or self.bytes > limit

    @property
    def why(self) -> str:
        """Why it is not known, as words within a sentence; nothing where it is known."""
        return "" if self.unknown is None else _WHY[self.unknown]


def measure_command(folders: Iterable[str], *, limit: int, seconds: float) -> tuple[str, ...]:
    """The command that measures folders, and writes what `size_said` reads. It ends by itself after so many seconds."""
    return ("perl", "-e", _PROGRAM, "--", str(limit), str(max(1, round(seconds))), *folders)


def size_said(output: bytes) -> Size:
    """The size that `measure_command` has written."""
    used, _, unknown = output.decode(errors="replace").strip().partition(" ")
    if not used.isdigit() or unknown not in {"", *get_args(Unknown)}:
        return Size(0, "failed")
    return Size(int(used), cast("Unknown", unknown) if unknown else None)


async def measure(folders: Iterable[Path], *, limit: int = NO_LIMIT, seconds: float = MEASURE_SECONDS) -> Size:
    """What folders of this host take of their disk, without themselves; it is not looked further than to the limit.

    Each file counts once, however many names it has, as 4 KiB at least, for its place on the disk. No link is followed. A folder that
    its owner may not look into is given that right back. One that is not there takes nothing.

    It has this process's priority: with a lower one whatever keeps all cores busy would keep it from its end.

    Raises: ConfigurationError where the program can't be started.
    """
    command = measure_command(map(str, folders), limit=limit, seconds=seconds)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd="/",
            env={"PATH": _PATH, "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        raise ConfigurationError(
            "The program perl is missing, which measures workspaces.", hint="apt-get install -y perl"
        ) from missing
    except OSError as error:
        raise ConfigurationError(f"The program that measures workspaces can't be started: {error.strerror}.") from error
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        return Size(0, "time")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):  # one that waits for a disk is not waited for
                await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    return size_said(said)


def disk_used(folder: Path) -> int | None:
    """How much is taken of the disk on which a folder is, by anybody, in bytes; each file counts 4 KiB besides what it holds.

    It takes no walk: what a run takes more, this has grown by at least. None where the folder can't be seen.
    """
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize + (disk.f_files - disk.f_ffree) * _INODE_BYTES
