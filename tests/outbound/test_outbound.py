"""Fetching URLs from real servers on loopback, which an administrator allows."""

import asyncio
import gzip
import ssl
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from certificates import Authority
from webservers import PUBLIC, Handle, Resolver, answering, failure, outbound, serving

from automagik.outbound import AddressRefused, FetchFailed

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "gzip,identity"])
async def test_a_bomb_is_not_unfolded(encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(128)) + packer.flush()
    async with (
        serving(answering(bomb, "200 OK", f"content-encoding: {encoding}")) as port,
        outbound("127.0.0.1") as door,
    ):
        tracemalloc.start()
        try:
            await failure(door, f"http://127.0.0.1:{port}/", max_bytes=1024 * 1024)
            # 128 MiB are packed in it: the limit, a piece and what lies about are a few.
            assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
        finally:
            tracemalloc.stop()


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
