"""Requests to the egress proxy that no honest client makes: each is answered or refused, and breaks nothing."""

import asyncio

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
    ],
)
async def test_a_target_that_is_no_host_and_port_is_refused(line: str) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(f"{line} HTTP/1.1\r\n\r\n".encode("latin-1"))
    reader.feed_eof()
    with pytest.raises(RequestRefused) as refused:
        await read_request(reader)
    assert refused.value.status == 400
