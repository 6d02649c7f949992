"""What `make start` runs: the platform, its first key, one question. Then the server stays up until Ctrl-C."""

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from platformdirs import user_data_path  # the same folder as the server's own default

BEGAN = time.monotonic()
AUTOMAGIK = Path(sys.executable).with_name("automagik")
QUESTION = "Hello! What can you do?"
READY_SECONDS = 60.0
LAST_LINES = 20


class Stop(Exception):
    """A signal asked this process to end."""


@dataclass(frozen=True)
class Place:
    """Where the server is, or is to be."""

    data_dir: Path
    host: str
    port: int

    @classmethod
    def from_environment(cls) -> "Place":
        """By the same variables as the server itself."""
        folder = os.environ.get("AUTOMAGIK_DATA_DIR")
        host = os.environ.get("AUTOMAGIK_HOST") or "127.0.0.1"
        port = os.environ.get("AUTOMAGIK_PORT") or "8881"
        if not port.isdigit() or int(port) > 65535:
            sys.exit(f"AUTOMAGIK_PORT is '{port}'; it must be a port's number.")
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return cls(Path(folder) if folder else user_data_path("automagik"), reached, int(port))

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        return self.data_dir / "server.log"


@dataclass(frozen=True)
class Listener:
    """Who listens on a port, as far as the system tells."""

    mine: bool
    name: str


def say(text: str) -> None:
    print(text, flush=True)


def fetch(place: Place, path: str, *, timeout: float = 2.0) -> tuple[int, bytes] | None:
    """Status and body, or None where nothing that speaks HTTP answers."""
    connection = http.client.HTTPConnection(place.host, place.port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(65536)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def is_open(place: Place) -> bool:
    """Whether something accepts connections there."""
    connection = http.client.HTTPConnection(place.host, place.port, timeout=2.0)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def listener_of(port: int) -> Listener:
    """Who listens on the port. Without /proc (macOS) it is taken for this user's."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not tables[0].exists():
        return Listener(mine=True, name="another program")
    for table in tables:
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    mine = int(fields[7]) == os.getuid()
                    return Listener(
                        mine, holder_of(fields[9]) if mine else f"a program of the user with id {fields[7]}"
                    )
    return Listener(mine=False, name="another program")


def holder_of(inode: str) -> str:
    """The process of this user that holds the socket."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    return f"'{command[:120]}' (process {process.name})"
    return "another program"


def is_automagik(place: Place) -> bool:
    """Whether what answers at /health and /ready does so as our server."""
    answer = fetch(place, "/ready")
    if answer is None:
        return False
    with contextlib.suppress(ValueError):
        document = json.loads(answer[1])
        return isinstance(document, dict) and "checks" in document
    return False


def is_embedded() -> bool:
    """Whether the database is the one in the data folder."""
    return not os.environ.get("AUTOMAGIK_DATABASE_URL")


def is_served(place: Place) -> bool:
    """Whether a server uses the SQLite database of the data folder: it holds the lock there as long as it lives."""
    with contextlib.suppress(OSError):
        lock = os.open(place.data_dir / "server.lock", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
    return False


def environment_for(place: Place) -> dict[str, str]:
    """What the command line gets: this server, and the profile's key, whatever the caller's shell has set."""
    kept = {name: value for name, value in os.environ.items() if name != "AUTOMAGIK_KEY"}
    return {**kept, "AUTOMAGIK_URL": place.url}


def command(place: Place, *arguments: str) -> int:
    """The exit code of `automagik ARGUMENTS`, which speaks to the terminal itself."""
    return subprocess.run([AUTOMAGIK, *arguments], env=environment_for(place), check=False).returncode


def ask(place: Place) -> int:
    """Make sure of a key, ask the question; the exit code of the command that failed, else 0."""
    code = command(place, "keys", "create", "--first")
    if code != 0:
        return code
    say(f'\n$ automagik run simple "{QUESTION}"')
    return command(place, "run", "simple", QUESTION)


def use_running(place: Place) -> int:
    """Ask the server that is there already, if it is ours."""
    listener = listener_of(place.port)
    choose = f"Choose another port: AUTOMAGIK_PORT={place.port + 1 if place.port < 65535 else 8881} make start"
    # A key is sent only to a server of this user: anybody may listen on a port and answer like ours.
    if not listener.mine or not is_automagik(place):
        say(f"Port {place.port} is taken by {listener.name}.\n{choose}")
        return 1
    other = f"The server at {place.url} works on another data folder than {place.data_dir}.\n{choose}"
    # Known before a key is made: it would take the place of the one in the profile, which that server knows.
    if is_embedded() and not is_served(place):
        say(other)
        return 1
    say(f"Automagik is running already at {place.url}; asking it.")
    code = ask(place)
    if code == 4:
        say(other)
    return 1 if code else 0


def start(place: Place) -> "subprocess.Popen[bytes]":
    """The server as a process of its own; what it says goes to its log, so that it can't garble the answer."""
    try:
        place.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.log.exists():
            place.log.replace(place.log.with_suffix(".log.1"))
        log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        sys.exit(
            f"The data folder {place.data_dir} can't be used: {error.strerror}. Choose another: AUTOMAGIK_DATA_DIR."
        )
    try:
        # A group of its own: Ctrl-C reaches this script alone, which then stops the server in order.
        return subprocess.Popen([AUTOMAGIK, "serve"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
    finally:
        os.close(log)


def wait_until_ready(place: Place, server: "subprocess.Popen[bytes]") -> Place | None:
    """Where it is ready, or None where it died or did not become so in time."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if place.port == 0:
            found = re.search(rb"https?://[^\s\"]*:(\d+)", place.log.read_bytes())
            if found is not None:
                place = Place(place.data_dir, place.host, int(found[1]))
        else:
            answer = fetch(place, "/ready")
            if answer is not None and answer[0] == 200:
                return place
        time.sleep(0.02)
    return None


def stop(server: "subprocess.Popen[bytes]") -> None:
    """Let the server finish its runs; a second signal ends it at once."""
    if server.poll() is not None:
        return
    server.terminate()
    try:
        server.wait()
    except Stop:
        server.kill()
        server.wait()


def show_log(place: Place) -> None:
    lines = place.log.read_text(encoding="utf-8", errors="replace").splitlines()
    say("\n".join(lines[-LAST_LINES:]))
    say(f"The whole log: {place.log}")


def run(place: Place) -> int:
    """Start, ask, and stay until a signal comes."""
    if is_embedded() and is_served(place):  # told before its log is moved away
        say(
            f"A server uses the data folder {place.data_dir} already, on another port than {place.port}.\n"
            "Ask that one, stop it, or choose another folder with AUTOMAGIK_DATA_DIR."
        )
        return 1
    say(f"Starting Automagik (log: {place.log}) ...")
    server = start(place)
    try:
        ready = wait_until_ready(place, server)
        if ready is None:
            died = server.poll() is not None
            stop(server)
            say("The server stopped before it was ready:" if died else "The server did not become ready in a minute:")
            show_log(place)
            return 1
        say(f"Ready at {ready.url} after {time.monotonic() - BEGAN:.2f} s.")
        if ask(ready) != 0:
            say(
                "The question was not answered; the server is up all the same. `automagik doctor` says what is missing."
            )
        say(f"\nThe API is at {ready.url}/api/v1, its documentation at {ready.url}/docs.")
        say('In a second terminal: source .venv/bin/activate && automagik run simple "..."\nCtrl-C stops the server.')
        server.wait()
        say("The server stopped by itself:")
        show_log(ready)
        return 1
    except Stop:
        say("\nStopping ...")
        with contextlib.suppress(Stop):
            stop(server)
        return 0
    finally:
        if server.poll() is None:
            server.kill()


def on_signal(signum: int, frame: FrameType | None) -> None:
    raise Stop


def main() -> int:
    """0 when it was stopped by a signal, or a running server answered; 1 when the server could not be started."""
    if not AUTOMAGIK.exists():
        say(f"{AUTOMAGIK} is missing; `make start` sets everything up.")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    place = Place.from_environment()
    try:
        if place.port != 0 and is_open(place):
            return use_running(place)
        return run(place)
    except Stop:
        return 0


if __name__ == "__main__":
    sys.exit(main())
