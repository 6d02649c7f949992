"""From inside a sandbox through relay and proxy to a site: real clients, and that there is no other way."""

import asyncio
import hashlib
import os
import ssl
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rooms import Ran, Room
from sites import Heard, Way, certificate, serving, way

from automagik.sandbox.confinement import Confinement, Limits, Mount
from automagik.sandbox.relay import relay_environment, relayed
from automagik.testing.needs import need

pytestmark = pytest.mark.anyio

INSIDE = "/run/agent/egress.sock"


async def inside(place: Room, out: Way, command: Sequence[str], *, pem: Path | None = None) -> Ran:
    """Run a command with a relay beside it in a sandbox that has the proxy's socket."""
    out.socket.chmod(0o666)
    mounts = [Mount(place.folder, "/workspace", writable=True), Mount(out.socket.parent, "/run/agent")]
    env = relay_environment()
    if pem is not None:
        mounts.append(Mount(pem, "/opt/site.pem"))
        env |= {"CURL_CA_BUNDLE": "/opt/site.pem", "SSL_CERT_FILE": "/opt/site.pem"}
    confinement = Confinement(
        mounts=tuple(mounts), env=env, cwd="/workspace", command=relayed(command, INSIDE), limits=Limits()
    )

    def run() -> Ran:
        with place.start(confinement) as process:
            text, errors = process.communicate(timeout=60)
        return Ran(process.returncode, text, errors)

    return await asyncio.to_thread(run)


@pytest.fixture
def sockets(place: Room) -> Path:
    folder = place.folder.parent / "sockets"
    folder.mkdir()
    return folder


@asynccontextmanager
async def tls_site(folder: Path, heard: Heard) -> AsyncGenerator[tuple[int, Path]]:
    pem = certificate(folder, "site.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    public = folder / "public.pem"
    public.write_bytes(b"-----BEGIN CERT" + pem.read_bytes().split(b"-----BEGIN CERT")[1])
    public.chmod(0o644)
    async with serving(heard.answer, tls=server) as port:
        yield port, public


PYTHON = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@pytest.mark.parametrize("client", ["curl", "python"])
async def test_a_program_reaches_a_named_site_by_tls_and_without(place: Room, sockets: Path, client: str) -> None:
    need("curl")
    heard = Heard()
    command = ("curl", "-sS", "--max-time", "20") if client == "curl" else ("python3", "-c", PYTHON)
    async with (
        tls_site(place.folder.parent, heard) as (tls_port, pem),
        serving(heard.answer) as port,
        way(sockets, [f"site.test:{tls_port}", f"site.test:{port}"]) as out,
    ):
        for url in (f"https://site.test:{tls_port}/", f"http://site.test:{port}/"):
            ran = await inside(place, out, (*command, url), pem=pem)
            assert (ran.out.strip(), ran.err) == ("hello", "")
    assert len(heard.requests) == 2


async def test_nothing_else_is_reached(place: Room, sockets: Path) -> None:
    need("curl")
    heard = Heard()
    script = """
try() { curl -sS --max-time 10 "$@" 2>&1 | head -n 1 | cut -c1-60; }
try http://other.test:$1/
try -p http://other.test:$1/
try --noproxy '*' http://127.0.0.1:$1/
try --noproxy '*' http://192.0.2.1/
try --noproxy '' http://127.0.0.1:$1/
try --noproxy '*' --unix-socket /run/agent/egress.sock http://site.test/
"""
    async with serving(heard.answer) as port, way(sockets, ["site.test"]) as out:
        ran = await inside(place, out, ("bash", "-c", script, "x", str(port)))
    said = ran.out.splitlines()
    assert said[0].startswith(f"This sandbox may not reach other.test:{port}.")
    assert "403" in said[1]
    assert said[2].startswith("curl: (7)")
    assert said[3].startswith("curl: (7)")
    assert said[4].startswith(f"This sandbox may not reach 127.0.0.1:{port}.")
    assert said[5].startswith("The proxy takes CONNECT")
    assert heard.requests == []


async def test_it_carries_much_in_both_ways_at_once(place: Room, sockets: Path) -> None:
    """64 MB from many connections: nothing is lost, and a slow side holds the other back."""
    size = 4 * 1024**2

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    script = f"""
import hashlib, os, socket, sys, threading
def go():
    s = socket.create_connection(("127.0.0.1", 3128))
    s.sendall(b"CONNECT site.test:%d HTTP/1.1\\r\\n\\r\\n" % int(sys.argv[1]))
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n"): head += s.recv(1)
    data = b"\\r\\n\\r\\n" + os.urandom({size})
    threading.Thread(target=lambda: (s.sendall(data), s.shutdown(1))).start()
    got = hashlib.sha256()
    while piece := s.recv(65536): got.update(piece)
    print(got.digest() == hashlib.sha256(data[4:]).digest())
threads = [threading.Thread(target=go) for _ in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    async with serving(echo) as port, way(sockets, [f"site.test:{port}"]) as out:
        ran = await inside(place, out, ("python3", "-c", script, str(port)))
    assert ran.out.split() == ["True"] * 16


async def test_the_command_is_the_one_waited_for_and_the_relay_ends_with_it(place: Room, sockets: Path) -> None:
    async with way(sockets, ["site.test"]) as out:
        assert (await inside(place, out, ("bash", "-c", "echo $$; exit 5"))) == Ran(5, "2\n", "")
        assert (await inside(place, out, ("no-such-program",))).code == 127


async def test_it_listens_before_the_command_begins(place: Room, sockets: Path) -> None:
    script = "import socket; socket.create_connection(('127.0.0.1', 3128)); print('there')"
    async with way(sockets, ["site.test"]) as out:
        for _ in range(5):
            assert (await inside(place, out, ("python3", "-c", script))).out == "there\n"


async def test_a_proxy_that_is_away_is_a_connection_that_ends(place: Room, sockets: Path) -> None:
    need("curl")
    async with way(sockets, ["site.test"]) as out:
        pass
    out.socket.touch()
    ran = await inside(place, out, ("curl", "-sS", "--max-time", "10", "http://site.test/"))
    assert ran.code != 0


def test_a_relay_alone_ends_when_its_command_does(tmp_path: Path) -> None:
    """Without a sandbox around it, as in a container whose first process is another's."""
    command = relayed(("/bin/echo", "done"), str(tmp_path / "none.sock"), port=38641)
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env={"PATH": os.defpath}, check=False)
    assert done.stdout == "done\n"


def test_its_variables_are_in_both_cases() -> None:
    env = relay_environment(3128)
    assert env["HTTPS_PROXY"] == env["https_proxy"] == "http://127.0.0.1:3128"
    assert "127.0.0.1" in env["NO_PROXY"]
    assert hashlib.sha256(env["http_proxy"].encode()).digest() == hashlib.sha256(env["HTTP_PROXY"].encode()).digest()
