"""Profile: the private file that keeps the command line's key, and which server it is for."""

import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from automagik.cli.failure import CliError, ExitCode
from automagik.cli.output import warn

__all__ = ["Profile", "load_profile", "origin", "profile_path", "save_profile"]


@dataclass(frozen=True, slots=True)
class Profile:
    """A key, its public id, and the one server that it is ever sent to."""

    url: str
    key: str
    key_id: str

    def __repr__(self) -> str:
        return f"Profile(url={self.url!r}, key_id={self.key_id!r})"


def profile_path(config_dir: Path) -> Path:
    """Where the profile is kept."""
    return config_dir / "profile.json"


def load_profile(config_dir: Path) -> Profile | None:
    """The profile, or None where there is none. A file that others can read is made private, with a warning.

    Raises:
        CliError: the file is another user's, or is no profile.
    """
    path = profile_path(config_dir)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            _check_owner(path, status)
            if stat.S_IMODE(status.st_mode) & 0o077:
                os.fchmod(file.fileno(), 0o600)
                warn(
                    f"{path} could be read by others; it is private now (mode 600). "
                    "If you share this machine, replace the key: `automagik keys revoke`, then `keys create --first`."
                )
            text = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CliError(
            f"The profile {path} can't be read: {error.strerror}.",
            exit_code=ExitCode.NOT_ALLOWED,
            hint="Move it away, then run `automagik keys create --first`, or set AUTOMAGIK_KEY.",
        ) from error
    return _parse(text, path)


def save_profile(config_dir: Path, profile: Profile) -> Path:
    """Keep the profile in a file of mode 600, in a folder of mode 700; returns its path. Replaces the old one at once."""
    try:
        _make_private_folder(config_dir)
        path = profile_path(config_dir)
        handle, temporary = tempfile.mkstemp(dir=config_dir, prefix=".profile-")  # mkstemp makes files of mode 600
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump({"url": profile.url, "key": profile.key, "key_id": profile.key_id}, file)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CliError(
            f"The profile can't be written to {config_dir}: {error.strerror}.",
            exit_code=ExitCode.FAILED,
            hint="Choose another folder with AUTOMAGIK_CONFIG_DIR.",
        ) from error
    return path


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what a key is bound to. `localhost` and `127.0.0.1` are two: others may listen on one of them."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme.lower(), (parts.hostname or "").lower(), port


def _make_private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    _check_owner(folder, status)
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise CliError(
            f"{path} belongs to another user, who could read or replace the key in it.",
            exit_code=ExitCode.NOT_ALLOWED,
            hint="Choose a folder of your own with AUTOMAGIK_CONFIG_DIR, or set AUTOMAGIK_KEY.",
        )


def _parse(text: str, path: Path) -> Profile:
    try:
        document: object = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict):
        fields = cast("dict[str, Any]", document)
        url, key, key_id = (fields.get(name) for name in ("url", "key", "key_id"))
        if isinstance(url, str) and isinstance(key, str) and isinstance(key_id, str):
            return Profile(url, key, key_id)
    raise CliError(
        f"{path} is no profile.",
        exit_code=ExitCode.USAGE,
        hint="Remove it, then run `automagik keys create --first`.",
    )
