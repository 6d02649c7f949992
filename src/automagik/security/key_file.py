"""KeyFile: the platform's key in the data folder, where no setting names one. Its owner may read it, and nobody else."""

import os
import stat
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from automagik.errors import ConfigurationError
from automagik.security.sealing import PlatformKey, parse_keys

__all__ = ["KeyFile"]

_MAX_BYTES = 4096
_ELSEWHERE = "Or set AUTOMAGIK_SECRET_KEY instead of the file."


class KeyFile:
    """A file of keys, one a line: the first is the newest. Every method raises ConfigurationError where it can't be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[PlatformKey, ...] | None:
        """The keys, or None where there is no file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._check(os.fstat(descriptor).st_mode)
            text = os.read(descriptor, _MAX_BYTES).decode("ascii", "replace")
        finally:
            os.close(descriptor)
        return parse_keys(text.splitlines(), f"The key file {self.path}")

    def make(self) -> PlatformKey | None:
        """A fresh key, which is in the file now; None where another process was faster."""
        key = PlatformKey.new()
        with self._written([key]) as part:
            try:
                os.link(part, self.path)  # whole or not at all, and never over another
            except FileExistsError:
                return None
            self._sync_folder()
        return key

    def replace(self, keys: Sequence[PlatformKey]) -> None:
        """Put these keys in the place of those that are there."""
        with self._written(keys) as part:
            part.replace(self.path)
            self._sync_folder()

    def remove(self) -> None:
        """Take away a key that this process made and that nothing was encrypted with."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _written(self, keys: Sequence[PlatformKey]) -> Generator[Path]:
        """A file with the keys beside the real one, on the disk and not only on its way; gone at the end, or renamed."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".secret.key-", dir=self.path.parent)  # mode 600
            part = Path(name)
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.writelines(f"{key.text}\n" for key in keys)
                    file.flush()
                    os.fsync(file.fileno())
                yield part
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _check(self, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise ConfigurationError(f"The key file {self.path} is no file.", hint=_ELSEWHERE)
        if mode & 0o077:
            raise ConfigurationError(
                f"The key file {self.path} is open to other users (mode {stat.S_IMODE(mode):04o}).",
                hint=f"Close it: chmod 600 {self.path}. If somebody may have read it, then `automagik secrets rotate`.",
            )

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"The key file {self.path} can't be used: {error.strerror}.",
            hint=f"Let this user read it and write to its folder. {_ELSEWHERE}",
        )
