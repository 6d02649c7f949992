"""A provider whose host vanishes without a word, in a network of this process's own: run by `unshare --net`.

Prints what came of a call that was under way, and after how many seconds.
"""

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import time

from automagik.gateway.pool import BrokeOff, Pool

SILENT_SECONDS = 2
_SET_FLAGS = 0x8914  # SIOCSIFFLAGS


def loopback(*, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, _SET_FLAGS, struct.pack("16sh14x", b"lo", 1 if up else 0))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
    with contextlib.suppress(asyncio.CancelledError):
        await reader.read()


async def vanish() -> None:
    loopback(up=True)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool(ssl.create_default_context(), silent_seconds=SILENT_SECONDS)
    reply = await pool.send(("http", "127.0.0.1", server.sockets[0].getsockname()[1]), "GET", "/", (), None)
    pieces = reply.pieces()
    assert await anext(pieces) == b"hello"
    waiting = asyncio.ensure_future(anext(pieces))
    await asyncio.wait([waiting], timeout=1.5 * SILENT_SECONDS)  # the model says nothing, but its host is there
    assert not waiting.done()
    loopback(up=False)
    began = time.monotonic()
    try:
        async with asyncio.timeout(20):
            await waiting
    except (BrokeOff, TimeoutError) as error:
        print(type(error).__name__, time.monotonic() - began)
    await reply.close()
    await pool.close()


asyncio.run(vanish())
