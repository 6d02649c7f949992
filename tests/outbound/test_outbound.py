"""Fetching URLs: real servers on loopback that an administrator allows, and refusals by a resolver that lies as attackers do."""

import asyncio
import gzip
import socket
import ssl
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority

from automagik.errors import InvalidInput
from automagik.outbound import AddressRefused, FetchFailed, Outbound, Resolve
from automagik.settings import Settings

pytestmark = pytest.mark.anyio

Handle = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
PUBLIC = "93.184.215.14"


def settings(*allow: str, **values: Any) -> Settings:
    return Settings.model_validate({"outbound_allow": list(allow), "fetch_timeout_seconds": 5, **values})


class Resolver:
    """Answers from a table; where a host has several answers, one after the other."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {host.replace("_", "."): list(given) for host, given in answers.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        given = self._answers.get(host)
        if given is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return given.pop(0) if len(given) > 1 else given[0]


@asynccontextmanager
async def serving(handle: Handle, *, tls: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    """The port of a server on 127.0.0.1; `handle` gets each request's head."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def outbound(
    *allow: str, resolve: Resolve | None = None, ssl_context: ssl.SSLContext | None = None, **values: Any
) -> AsyncGenerator[Outbound]:
    async with Outbound(settings(*allow, **values), resolve=resolve, ssl_context=ssl_context) as door:
        yield door


def answering(body: bytes = b"hello", status: str = "200 OK", *headers: str) -> Handle:
    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = "".join(f"{line}\r\n" for line in headers)
        writer.write(f"HTTP/1.1 {status}\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)

    return handle


async def failure(door: Outbound, url: str, max_bytes: int = 1000) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await door.fetch(url, max_bytes=max_bytes, field=("body", "media_contents", 0, "media_url"))
    error = caught.value
    assert isinstance(error, InvalidInput)
    assert (error.field, error.status) == (("body", "media_contents", 0, "media_url"), 422)
    return error


async def test_a_url_gives_its_content_media_type_and_address() -> None:
    heads: list[bytes] = []

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        await answering(b"\x89PNG", "200 OK", "content-type: image/PNG; charset=x")(head, writer)

    async with serving(handle) as port, outbound("127.0.0.1") as door:
        fetched = await door.fetch(f"http://127.0.0.1:{port}/a%20b.png?x=1#part", max_bytes=4)
    assert (fetched.content, fetched.media_type) == (b"\x89PNG", "image/png")
    assert fetched.url == f"http://127.0.0.1:{port}/a%20b.png?x=1"
    head = heads[0].lower()
    assert head.startswith(b"get /a%20b.png?x=1 http/1.1\r\n")
    assert f"host: 127.0.0.1:{port}\r\n".encode() in head
    assert b"cookie" not in head
    assert b"authorization" not in head


@pytest.mark.parametrize("claimed", ["", "content-type: nonsense", "content-type: a/b/c", "content-type: text/<x>"])
async def test_a_strange_media_type_is_no_media_type(claimed: str) -> None:
    headers = [claimed] if claimed else []
    async with serving(answering(b"x", "200 OK", *headers)) as port, outbound("127.0.0.1") as door:
        fetched = await door.fetch(f"http://127.0.0.1:{port}/", max_bytes=10)
    assert fetched.media_type == "application/octet-stream"


REFUSED = [
    "127.0.0.1",
    "127.255.0.3",
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:5db8:d70e::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "not an address",
]


@pytest.mark.parametrize("address", REFUSED)
async def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    async with outbound(resolve=Resolver(inside_test=[[address]])) as door:
        error = await failure(door, "http://inside.test/")
        with pytest.raises(AddressRefused):
            await door.check_url("https://inside.test/", field=("body", "url"))
    assert isinstance(error, AddressRefused)


@pytest.mark.parametrize("address", REFUSED[:-1])
async def test_the_same_addresses_written_in_the_url_are_refused(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    async with outbound() as door:
        assert (await failure(door, f"http://{host}/")).code in {"address_refused", "fetch_failed"}


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::]", "0"]
)
async def test_other_spellings_of_this_machine_are_refused(host: str) -> None:
    async with serving(answering()) as port, outbound() as door:
        await failure(door, f"http://{host}:{port}/")
        await failure(door, f"http://{host}/")


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "172.32.0.1", "192.0.1.1"]
)
async def test_public_addresses_pass_the_check(address: str) -> None:
    async with outbound(resolve=Resolver(outside_test=[[address]])) as door:
        await door.check_url("https://outside.test/hook")


async def test_one_inside_address_among_public_ones_refuses_the_host() -> None:
    async with outbound(resolve=Resolver(mixed_test=[[PUBLIC, "10.0.0.1"]])) as door:
        assert isinstance(await failure(door, "http://mixed.test/"), AddressRefused)


async def test_every_refusal_reads_the_same() -> None:
    resolver = Resolver(open_test=[["127.0.0.1"]], closed_test=[["10.0.0.1"]], empty_test=[[]], outside_test=[[PUBLIC]])
    async with serving(answering()) as port, outbound(resolve=resolver) as door:
        errors = [
            await failure(door, url)
            for url in (
                f"http://open.test:{port}/",
                "http://open.test/",
                "http://closed.test/",
                "http://empty.test/",
                "http://no.such.host/",
                "http://outside.test:22/",
                "http://" + "a" * 300 + ".test/",
            )
        ]
    assert len({(type(error), error.code, error.detail, error.hint) for error in errors}) == 1
    assert "AUTOMAGIK_OUTBOUND_ALLOW" in (errors[0].hint or "")


@pytest.mark.parametrize(("port", "passes"), [(80, True), (443, True), (22, False), (8080, False), (6379, False)])
async def test_public_hosts_are_reached_on_the_ports_of_the_web_only(port: int, passes: bool) -> None:
    async with outbound(resolve=Resolver(outside_test=[[PUBLIC]])) as door:
        if passes:
            await door.check_url(f"http://outside.test:{port}/")
        else:
            with pytest.raises(AddressRefused):
                await door.check_url(f"http://outside.test:{port}/")


@pytest.mark.parametrize("allow", ["127.0.0.1", "127.0.0.0/8", "Inside.Test"])
@pytest.mark.parametrize("host", ["inside.test", "INSIDE.TEST", "inside.test."])
async def test_what_an_administrator_allows_is_reached(allow: str, host: str) -> None:
    async def resolve(name: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with serving(answering()) as port, outbound(allow, resolve=resolve) as door:
        assert (await door.fetch(f"http://{host}:{port}/", max_bytes=10)).content == b"hello"


async def test_an_allowed_name_opens_no_other_name() -> None:
    resolver = Resolver(inside_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    async with outbound("inside.test", resolve=resolver) as door:
        assert isinstance(await failure(door, "http://other.test/"), AddressRefused)
        assert isinstance(await failure(door, "http://not.inside.test/"), AddressRefused)


async def test_a_name_that_changes_its_answer_gains_nothing() -> None:
    resolver = Resolver(rebind_test=[[PUBLIC], ["127.0.0.1"]])
    async with outbound(resolve=resolver) as door:
        await door.check_url("http://rebind.test/")
        assert isinstance(await failure(door, "http://rebind.test/"), AddressRefused)


async def test_the_checked_address_is_the_one_connected_to() -> None:
    resolver = Resolver(media_test=[["127.0.0.1"], ["10.0.0.1"]])
    async with serving(answering()) as port, outbound("127.0.0.1", resolve=resolver) as door:
        assert (await door.fetch(f"http://media.test:{port}/", max_bytes=10)).content == b"hello"
        assert resolver.asked == [("media.test", port)]
        # The next fetch asks and checks anew: no connection is kept.
        assert isinstance(await failure(door, f"http://media.test:{port}/"), AddressRefused)


async def test_the_next_address_is_tried_where_one_is_dead() -> None:
    resolver = Resolver(media_test=[["127.0.0.9", "127.0.0.1"]])
    async with serving(answering()) as port, outbound("127.0.0.0/8", resolve=resolver) as door:
        assert (await door.fetch(f"http://media.test:{port}/", max_bytes=10)).content == b"hello"


async def test_tls_asks_for_and_checks_the_hosts_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    names: list[str] = []

    def note(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        names.append(name or "")

    tls = authority.server("media.test")
    tls.sni_callback = note
    resolver = Resolver(media_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    async with (
        serving(answering(), tls=tls) as port,
        outbound("127.0.0.1", resolve=resolver, ssl_context=authority.client()) as door,
        outbound("127.0.0.1", resolve=resolver) as strict,
    ):
        assert (await door.fetch(f"https://media.test:{port}/", max_bytes=10)).content == b"hello"
        assert names == ["media.test"]
        assert (await failure(door, f"https://other.test:{port}/")).code == "fetch_failed"
        assert (await failure(strict, f"https://media.test:{port}/")).code == "fetch_failed"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "/relative",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:text/plain,hello",
        "javascript:alert(1)",
        "unix:///run/docker.sock",
        "http+unix://%2Frun%2Fdocker.sock/",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://:@example.com/",
        "http://example.com:99999/",
        "http://example.com:abc/",
        "http://[::1/",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: inside",
        "http://example.com/\x00",
        "http://example.com/\ud800",
        "http://example.com/" + "x" * 10_000,
        "http://\u2028example.com/",
        "http://xn--/",
    ],
)
async def test_what_is_no_web_address_is_refused_before_anything_is_sent(url: str) -> None:
    resolver = Resolver(example_com=[[PUBLIC]])
    async with outbound(resolve=resolver) as door:
        error = await failure(door, url)
        with pytest.raises(FetchFailed):
            await door.check_url(url)
    assert "secret" not in error.detail
    assert ("example.com", 80) not in resolver.asked


def redirecting(to: str, status: str = "302 Found") -> Handle:
    return answering(b"ignored", status, f"location: {to}")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_followed(status: str) -> None:
    async with (
        serving(answering()) as target,
        serving(redirecting(f"http://127.0.0.1:{target}/there", status)) as start,
        outbound("127.0.0.1") as door,
    ):
        fetched = await door.fetch(f"http://127.0.0.1:{start}/", max_bytes=10)
    assert fetched.content == b"hello"
    assert fetched.url == f"http://127.0.0.1:{target}/there"


async def test_relative_redirects_are_followed_five_times_and_no_more() -> None:
    count = 0

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await redirecting(f"/{count}")(head, writer) if b"GET /5 " not in head else await answering()(head, writer)

    async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
        await redirecting("/again")(head, writer)

    async with serving(handle) as port, serving(endless) as loop, outbound("127.0.0.1") as door:
        assert (await door.fetch(f"http://127.0.0.1:{port}/", max_bytes=10)).url.endswith("/5")
        assert "redirects more than 5 times" in (await failure(door, f"http://127.0.0.1:{loop}/")).detail


@pytest.mark.parametrize(
    "to", ["http://127.0.0.2/", "http://169.254.169.254/latest/meta-data/", "http://inside.test/", "//10.0.0.1/"]
)
async def test_a_redirect_to_the_inside_is_refused(to: str) -> None:
    resolver = Resolver(inside_test=[["10.0.0.1"]], start_test=[["127.0.0.1"]])
    resolver_for_all = Resolver(**{"127_0_0_2": [["127.0.0.2"]], "169_254_169_254": [["169.254.169.254"]]})

    async def resolve(host: str, port: int) -> Sequence[str]:
        return await (resolver if host.endswith(".test") else resolver_for_all)(host, port)

    async with serving(redirecting(to)) as port, outbound("127.0.0.1", resolve=resolve) as door:
        assert isinstance(await failure(door, f"http://start.test:{port}/"), AddressRefused)


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://user:secret@127.0.0.1/", "http://[", "http://127.0.0.1:x/"]
)
async def test_a_redirect_to_what_is_no_web_address_is_refused(to: str) -> None:
    async with serving(redirecting(to)) as port, outbound("127.0.0.1") as door:
        assert "secret" not in (await failure(door, f"http://127.0.0.1:{port}/")).detail


async def test_a_redirect_without_location_fails() -> None:
    async with serving(answering(b"", "302 Found")) as port, outbound("127.0.0.1") as door:
        assert "no location" in (await failure(door, f"http://127.0.0.1:{port}/")).detail


async def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    resolver = Resolver(media_test=[["127.0.0.1"]])
    async with (
        serving(answering()) as plain,
        serving(redirecting(f"http://media.test:{plain}/"), tls=authority.server("media.test")) as port,
        outbound("127.0.0.1", resolve=resolver, ssl_context=authority.client()) as door,
    ):
        assert "from https to http" in (await failure(door, f"https://media.test:{port}/")).detail


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "206 Partial Content", "304 Same"])
async def test_another_status_than_200_fails(status: str) -> None:
    async with serving(answering(b"", status)) as port, outbound("127.0.0.1") as door:
        assert f"status {status[:3]}" in (await failure(door, f"http://127.0.0.1:{port}/")).detail


async def test_content_of_exactly_the_limit_is_fetched_and_one_byte_more_is_not() -> None:
    async with serving(answering(b"x" * 1000)) as port, outbound("127.0.0.1") as door:
        assert len((await door.fetch(f"http://127.0.0.1:{port}/", max_bytes=1000)).content) == 1000
        error = await failure(door, f"http://127.0.0.1:{port}/", max_bytes=999)
    assert error.code == "too_large"


async def test_compressed_content_is_unfolded_and_counted_unfolded() -> None:
    small = answering(gzip.compress(b"x" * 1000), "200 OK", "content-encoding: gzip")
    async with serving(small) as port, outbound("127.0.0.1") as door:
        assert (await door.fetch(f"http://127.0.0.1:{port}/", max_bytes=1000)).content == b"x" * 1000
        assert (await failure(door, f"http://127.0.0.1:{port}/", max_bytes=999)).code == "too_large"


async def test_a_bomb_is_not_unfolded() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(512)) + packer.flush()
    assert len(bomb) < 1024 * 1024
    for encoding in ("gzip", "gzip, gzip", "gzip,identity"):
        async with (
            serving(answering(bomb, "200 OK", f"content-encoding: {encoding}")) as port,
            outbound("127.0.0.1") as door,
        ):
            start = time.process_time()
            await failure(door, f"http://127.0.0.1:{port}/", max_bytes=1024 * 1024)
            # All of it would take about a second; the limit, some milliseconds.
            assert time.process_time() - start < 0.5


async def test_broken_compression_fails() -> None:
    async with (
        serving(answering(b"not gzip", "200 OK", "content-encoding: gzip")) as port,
        outbound("127.0.0.1") as door,
    ):
        assert "can't be read" in (await failure(door, f"http://127.0.0.1:{port}/")).detail


async def test_an_endless_body_ends_at_the_limit() -> None:
    async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with serving(endless) as port, outbound("127.0.0.1") as door:
        assert (await failure(door, f"http://127.0.0.1:{port}/", max_bytes=1_000_000)).code == "too_large"


async def test_a_length_that_lies_is_not_believed() -> None:
    async with (
        serving(answering(b"", "200 OK", "content-length: 99999999999999999999999")) as port,
        outbound("127.0.0.1") as door,
    ):
        await failure(door, f"http://127.0.0.1:{port}/")


async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def dripping(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def dripping_head(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("handle", [silent, dripping, dripping_head])
async def test_all_of_it_must_come_in_time(handle: Handle) -> None:
    async with serving(handle) as port, outbound("127.0.0.1", fetch_timeout_seconds=0.3) as door:
        assert "within 0.3 seconds" in (await failure(door, f"http://127.0.0.1:{port}/", max_bytes=10**9)).detail


async def test_a_resolver_that_hangs_is_given_up() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    async with outbound(resolve=hang, fetch_timeout_seconds=0.2) as door:
        await failure(door, "http://slow.test/")
        with pytest.raises(AddressRefused):
            await door.check_url("http://slow.test/")


async def babbling(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"what is HTTP?\r\n\r\n")


async def cutting(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")


async def huge_head(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 1_000_000)


async def nothing(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("handle", [babbling, cutting, huge_head, nothing])
async def test_servers_that_speak_badly_are_told_of(handle: Handle) -> None:
    async with serving(handle) as port, outbound("127.0.0.1") as door:
        assert (await failure(door, f"http://127.0.0.1:{port}/")).code == "fetch_failed"


async def test_a_closed_port_that_is_allowed_is_told_of() -> None:
    async with serving(answering()) as port:
        pass
    async with outbound("127.0.0.1") as door:
        assert "can't be reached" in (await failure(door, f"http://127.0.0.1:{port}/")).detail


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    heads: list[bytes] = []

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head.lower())
        await answering(b"x", "200 OK", "set-cookie: id=1; path=/")(head, writer)

    async with serving(handle) as port, outbound("127.0.0.1") as door:
        for _ in range(2):
            await door.fetch(f"http://127.0.0.1:{port}/", max_bytes=10)
    assert len(heads) == 2
    assert not any(b"authorization" in head or b"cookie" in head for head in heads)


async def test_a_cancelled_fetch_leaves_the_door_usable() -> None:
    async with serving(dripping) as slow, serving(answering()) as port, outbound("127.0.0.1") as door:
        task = asyncio.create_task(door.fetch(f"http://127.0.0.1:{slow}/", max_bytes=10**9))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await door.fetch(f"http://127.0.0.1:{port}/", max_bytes=10)).content == b"hello"
