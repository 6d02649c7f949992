"""The proxy of a sandbox: what it lets out, what it refuses and says of that, and what can't be smuggled past it."""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from sites import Heard, certificate, hello, serving, way

from automagik.errors import InvalidInput
from automagik.sandbox.egress import EgressPolicy

pytestmark = pytest.mark.anyio


def get(url: str, *headers: str, body: str = "") -> bytes:
    return "\r\n".join((f"GET {url} HTTP/1.1", *headers, "", body)).encode()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e")


@pytest.mark.parametrize(
    ("egress", "host", "port", "allowed"),
    [
        (["none"], "example.com", 443, False),
        ([], "example.com", 443, False),
        (["example.com"], "example.com", 443, True),
        (["Example.COM."], "example.com", 80, True),
        (["example.com"], "example.com", 8443, False),
        (["example.com"], "www.example.com", 443, False),
        (["example.com"], "badexample.com", 443, False),
        (["*.example.com"], "www.example.com", 443, True),
        (["*.example.com"], "a.b.example.com", 443, True),
        (["*.example.com"], "example.com", 443, False),
        (["*.example.com"], "badexample.com", 443, False),
        (["example.com:8443"], "example.com", 8443, True),
        (["example.com:8443"], "example.com", 443, False),
        (["registries"], "packages.test", 443, True),
        (["registries"], "mirror.test", 8081, True),
        (["registries"], "other.test", 443, False),
    ],
)
def test_a_policy_allows_what_it_names(egress: Sequence[str], host: str, port: int, allowed: bool) -> None:
    policy = EgressPolicy.of(egress, ["packages.test", "mirror.test:8081"])
    assert policy.allows(host, port) == allowed


@pytest.mark.parametrize(
    "name",
    [
        "",
        "*",
        "*.",
        "a b",
        "http://example.com",
        "example.com:0",
        "example.com:x",
        "a..b",
        "ex*mple.com",
        "-a.com",
        "[::1]",
        "a:1:2",
    ],
)
def test_what_names_no_host_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        EgressPolicy.of([name])


async def test_a_page_of_a_named_host_is_fetched(short: Path) -> None:
    heard = Heard()
    async with serving(heard.answer) as port, way(short, [f"site.test:{port}"]) as out:
        answer = await out.say(
            get(f"http://site.test:{port}/a?b", "Host: site.test", "X-A: 1", "Proxy-Authorization: x")
        )
    assert answer.endswith(b"\r\n\r\nhello")
    assert heard.requests == [
        f"GET /a?b HTTP/1.1\r\nHost: site.test:{port}\r\nX-A: 1\r\nConnection: close\r\n\r\n".encode()
    ]
    assert out.told == [("site.test", port, True)]


async def test_a_body_is_carried_as_it_is_framed(short: Path) -> None:
    heard = Heard()
    async with serving(heard.answer) as port, way(short, [f"site.test:{port}"]) as out:
        url = f"http://site.test:{port}/"
        await out.say(get(url, "Content-Length: 5", body="12345"))
        await out.say(get(url, "Transfer-Encoding: chunked"), more=b"5;x=y\r\n12345\r\n0\r\nTrailer: 1\r\n\r\n")
    assert heard.requests[0].endswith(b"\r\n\r\n12345")
    assert heard.requests[1].endswith(b"\r\n\r\n5\r\n12345\r\n0\r\n\r\n")


async def test_a_tunnel_carries_tls_both_ways(short: Path) -> None:
    heard = Heard()
    pem = certificate(short, "site.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    async with serving(heard.answer, tls=server) as port, way(short, [f"site.test:{port}"]) as out:
        reader, writer = await out.connect(f"site.test:{port}")
        await writer.start_tls(ssl.create_default_context(cafile=str(pem)), server_hostname="site.test")
        writer.write(b"GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n")
        assert (await reader.read(-1)).endswith(b"hello")
        writer.close()
    assert len(heard.requests) == 1


async def test_a_server_that_speaks_first_is_heard_and_ends_are_passed_on(short: Path) -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\n")
        rest = await reader.read(-1)
        writer.write(b"heard " + rest)
        await writer.drain()

    async with serving(banner) as port, way(short, [f"site.test:{port}"]) as out:
        reader, writer = await out.connect(f"site.test:{port}")
        assert await reader.readline() == b"220 ready\n"
        writer.write(b"something")
        writer.write_eof()
        assert await reader.read(-1) == b"heard something"
        writer.close()


@pytest.mark.parametrize("request_line", ["CONNECT other.test:443", "GET http://other.test/"])
async def test_a_host_that_is_not_named_is_refused_in_clear_words_and_told_once(short: Path, request_line: str) -> None:
    async with way(short, ["site.test"]) as out:
        answers = [await out.say(f"{request_line} HTTP/1.1\r\n\r\n".encode()) for _ in range(3)]
    assert answers[0].startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"It may reach: site.test." in answers[0]
    assert b"egress" in answers[0]
    assert len(out.told) == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "::1", "::ffff:127.0.0.1", "fd00:ec2::254", "0.0.0.0"],
)
async def test_a_named_host_with_an_address_of_the_inside_is_refused(short: Path, address: str) -> None:
    async with way(short, ["site.test"], allow=(), site_test=[address]) as out:
        answer = await out.say(b"CONNECT site.test:443 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert out.told == [("site.test", 443, False)]


async def test_a_name_that_changes_its_answer_gains_nothing(short: Path) -> None:
    """The address that was judged is the one connected to: the name is asked for once."""
    answers = ["127.0.0.1", "10.0.0.1"]
    async with (
        serving(Heard().answer) as port,
        way(short, [f"site.test:{port}"], allow=("127.0.0.1/32",), site_test=answers) as out,
    ):
        url = f"http://site.test:{port}/"
        assert [(await out.say(get(url)))[:12] for _ in range(2)] == [b"HTTP/1.1 200", b"HTTP/1.1 403"]


async def test_an_address_is_reached_only_where_it_is_named_and_allowed(short: Path) -> None:
    async with serving(Heard().answer) as port:
        async with way(short, [f"127.0.0.1:{port}"]) as out:
            assert b" 200 " in await out.say(get(f"http://127.0.0.1:{port}/"))
        async with way(short, [f"site.test:{port}"]) as out:
            assert b" 403 " in await out.say(get(f"http://127.0.0.1:{port}/"))
            for other in ("2130706433", "0x7f000001", "127.1", "017700000001"):
                assert b" 403 " in await out.say(get(f"http://{other}:{port}/"))


async def test_a_host_that_does_not_answer_is_told_as_such(short: Path) -> None:
    async with serving(Heard().answer) as port:
        pass
    async with way(short, [f"site.test:{port}"]) as out:
        assert (await out.say(get(f"http://site.test:{port}/"))).startswith(b"HTTP/1.1 502 ")


async def test_a_tls_client_that_wants_another_server_is_cut_off(short: Path) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(-1))

    async with serving(listen) as port, way(short, [f"site.test:{port}"]) as out:
        damaged = bytearray(hello("other.test"))
        ciphers = 5 + 4 + 34 + 1 + damaged[5 + 4 + 34]
        damaged[ciphers : ciphers + 2] = b"\xff\xff"
        for data in (hello("other.test"), bytes(damaged)):
            reader, writer = await out.connect(f"site.test:{port}")
            writer.write(data)
            assert await asyncio.wait_for(reader.read(-1), 5) == b""
            writer.close()
        reader, writer = await out.connect(f"site.test:{port}")
        whole = hello("site.test")
        for part in (whole[:20], whole[20:100], whole[100:]):
            writer.write(part)
            await asyncio.sleep(0.02)
        writer.write_eof()
        await reader.read(-1)
        writer.close()
    assert heard[-1] == hello("site.test") or len(heard[-1]) > 100
    assert [data for data in heard if b"other.test" in data] == []
    assert ("other.test", port, False) in out.told


async def test_one_request_is_carried_and_nothing_behind_it(short: Path) -> None:
    heard = Heard()
    async with serving(heard.answer) as port, way(short, [f"site.test:{port}"]) as out:
        first = get(f"http://site.test:{port}/one")
        second = get(f"http://other.test:{port}/two", "Host: other.test")
        await out.say(first + second, more=second)
        await out.say(get(f"http://site.test:{port}/three", "Content-Length: 3", body="abc") + second)
    assert len(heard.requests) == 2
    assert not any(b"other.test" in request for request in heard.requests)


@pytest.mark.parametrize(
    "request_text",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: site.test\r\n\r\n",
        b"GET https://site.test/ HTTP/1.1\r\n\r\n",
        b"GET ftp://site.test/ HTTP/1.1\r\n\r\n",
        b"GET http://user:password@site.test/ HTTP/1.1\r\n\r\n",
        b"GET http://site.test:99999/ HTTP/1.1\r\n\r\n",
        b"GET http://[::1]/ HTTP/1.1\r\n\r\n",
        b"GET http://site.test/ HTTP/2.0\r\n\r\n",
        b"CONNECT site.test HTTP/1.1\r\n\r\n",
        b"CONNECT site.test:x HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
        b"CONNECT site.test:443@other:443 HTTP/1.1\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nBad Name: 1\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nA: 1\nHost: other.test\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nA: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET http://site.test/ HTTP/1.1\r\nA: " + b"x" * 70_000,
    ],
    ids=range(22),
)
async def test_a_request_that_is_none_or_has_two_readings_is_refused(short: Path, request_text: bytes) -> None:
    async with way(short, ["site.test"], allow=()) as out:
        assert (await out.say(request_text)).startswith(b"HTTP/1.1 400 ")
    assert out.told == []


async def test_connections_are_limited_in_number(short: Path) -> None:
    async with way(short, ["site.test"]) as out:
        waiting = [await asyncio.open_unix_connection(str(out.socket)) for _ in range(64)]
        await asyncio.sleep(0.1)
        assert (await out.say(b"")).startswith(b"HTTP/1.1 503 ")
        for _, writer in waiting:
            writer.close()
        await asyncio.sleep(0.1)
        assert (await out.say(b"x\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_the_door_opens_again_where_a_process_that_died_left_a_socket(short: Path) -> None:
    async with way(short, ["site.test"]) as out:
        pass
    assert not out.socket.exists()
    out.socket.touch()
    async with way(short, ["site.test"]) as again:
        assert (await again.say(b"x\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert again.socket.stat().st_mode & 0o777 == 0o600


async def test_a_door_that_closes_ends_every_connection_also_those_just_made(short: Path) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with serving(hold) as port:
        async with way(short, [f"site.test:{port}"]) as out:
            tunnel, holder = await out.connect(f"site.test:{port}")
            late = [await asyncio.open_unix_connection(str(out.socket)) for _ in range(5)]
        assert await asyncio.wait_for(tunnel.read(-1), 5) == b""
        for reader, writer in late:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(-1), 5) == b""
            writer.close()
        holder.close()
