"""Requests to the egress proxy that no honest client makes: each is answered or refused, and breaks nothing."""

import asyncio
import time
from contextlib import suppress

import pytest

from automagik.sandbox.proxy_request import RequestRefused, read_request

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT example.com:\u00b2",
        "CONNECT example.com:99999",
        "CONNECT example.com:000000443",
        "CONNECT [::1]:443",
        "CONNECT example.com@other.com:443",
        "CONNECT exam\u00b2ple.com:443",
        "GET http://example.com:\u00b2/",
        "GET http://[::1/",
        "GET http://user@example.com/",
        "GET https://example.com/",
        "GET /",
        "CONNECT site.test:443:443",
        "CONNECT site.test%00.other:443",
        "CONNECT [::ffff:127.0.0.1]:443",
        "CONNECT site.t\u00e9st:443",
        "CONNECT :443",
        "CONNECT .:443",
        "GET http://site.test\\.other.test/",
        "GET http://site.test\\@other.test/",
        "GET http://:80/",
        "GET //site.test/",
    ],
)
async def test_a_target_that_is_no_host_and_port_is_refused(line: str) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(f"{line} HTTP/1.1\r\n\r\n".encode("latin-1"))
    reader.feed_eof()
    with pytest.raises(RequestRefused) as refused:
        await read_request(reader)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "fields", ["a:\r\n" * 8000, "a:\r\n" * 190 + "connection:" + "," * 30_000 + "\r\n"], ids=["headers", "tokens"]
)
async def test_a_head_of_many_parts_holds_nobody_up(fields: str) -> None:
    """32 kB of the shortest headers, each compared with each, took seconds, in which the platform did nothing else."""
    reader = asyncio.StreamReader()
    reader.feed_data(f"GET http://site.test/ HTTP/1.1\r\n{fields}\r\n".encode())
    began = time.process_time()
    with suppress(RequestRefused):
        await read_request(reader)
    assert time.process_time() - began < 0.3
