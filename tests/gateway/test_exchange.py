"""How an answer is sent: in as few pieces as it can be, and none of them late."""

import asyncio

import pytest

from automagik.gateway.allowance import Allowance
from automagik.gateway.connection import Answer, Connection, Exchange, Head

pytestmark = pytest.mark.anyio


class Everybody:
    """A handler that lets everybody in and answers nobody."""

    def admit(self, head: Head) -> Answer | None:
        del head

    def spoiled(self, head: Head | None, status: int, text: str) -> Answer:
        del head
        return Answer(status, text.encode())

    async def handle(self, exchange: Exchange) -> None:
        del exchange


class Line(asyncio.Transport):
    """A transport that keeps what is sent, one entry each time."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return False


def asked(line: Line) -> Exchange:
    """A request on the line, which waits for its answer."""
    exchanges: list[Exchange] = []
    allowance = Allowance(8, 1000, 1000)
    connection = Connection(
        Everybody(), allowance, opened=lambda _: None, closed=lambda _: None, spawn=exchanges.append
    )
    connection.connection_made(line)
    connection.data_received(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
    return exchanges[0]


async def test_a_head_is_sent_with_the_piece_that_came_right_behind_it_and_the_end_with_the_last() -> None:
    line = Line()
    exchange = asked(line)
    exchange.start(200, [(b"a", b"b")], follows=lambda: True)
    await asyncio.sleep(0.01)
    assert line.sent == []
    await exchange.write(b"one")
    exchange.write_last(b"three")
    await exchange.drained()
    exchange.end()
    head = b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n"
    assert line.sent == [head + b"3\r\none\r\n", b"5\r\nthree\r\n0\r\n\r\n"]


async def test_a_head_that_nothing_follows_is_sent_at_once() -> None:
    line = Line()
    exchange = asked(line)
    exchange.start(200, [], length=3, follows=lambda: False)
    await asyncio.sleep(0.01)
    assert line.sent == [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"]
    exchange.write_last(b"one")
    exchange.end()
    assert line.sent[1:] == [b"one"]
