"""Clients of the egress proxy that are up to no good: slow, many, silent, in two readings, or out for another server."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import pytest
from sites import Heard, hello, serving, way

from automagik.sandbox.egress import Patience

pytestmark = pytest.mark.anyio

QUICK = Patience(head_seconds=0.5, connect_seconds=2, idle_seconds=0.6)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e")


@pytest.fixture(scope="module", autouse=True)
def heap() -> None:
    """What the suite holds by now is walked once, and not before and after each test, at a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
async def nothing_escapes(heap: None) -> AsyncGenerator[None]:
    """No task of the proxy ends with an error that nobody takes."""
    escaped: list[object] = []
    loop = asyncio.get_running_loop()
    gc.collect()  # what other tests have left
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert escaped == []


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes what comes and says nothing."""
    await reader.read(-1)


async def test_tls_behind_an_alert_or_of_no_version_does_not_reach_the_server(short: Path) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(-1))

    other = hello("other.test")
    async with serving(listen) as port, way(short, [f"site.test:{port}"]) as out:
        for data in (b"\x15\x03\x01\x00\x02\x01\x64" + other, other[:1] + b"\x00\x00" + other[3:]):
            reader, writer = await out.connect(f"site.test:{port}")
            writer.write(data)
            assert await asyncio.wait_for(reader.read(-1), 5) == b""
            writer.close()
    assert b"".join(heard) == b""
    assert out.told[1:] == [("(a ClientHello that can't be judged)", port, False)]


async def test_a_name_that_is_none_is_told_without_its_signs(short: Path) -> None:
    """What a sandbox calls a server stands in the log and in the run's events: never with signs that steer a terminal."""
    async with serving(silent) as port, way(short, [f"site.test:{port}"]) as out:
        reader, writer = await out.connect(f"site.test:{port}")
        writer.write(hello("evil.test").replace(b"evil.test", b"\x1b[2J\x07.aaa"))
        assert await asyncio.wait_for(reader.read(-1), 5) == b""
        writer.close()
    assert out.told[1:] == [("(a ClientHello that can't be judged)", port, False)]


@pytest.mark.parametrize(
    "body",
    [b"5\r\n12345\n15\r\nabcde\r\n0\r\n\r\n", b"5\r\n12345XX0\r\n\r\n", b"5\r\n12345\r0\r\n\r\n"],
    ids=["bare line end", "no line end", "half a line end"],
)
async def test_a_chunk_that_does_not_end_where_it_says_goes_no_further(short: Path, body: bytes) -> None:
    """A server that is content with a bare LF would read `15` where the proxy reads `5`, and then another request."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                heard.append(data)

    async with serving(listen) as port, way(short, [f"site.test:{port}"]) as out:
        head = f"POST http://site.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert await out.say(head.encode() + body) == b""
    assert b"".join(heard).partition(b"\r\n\r\n")[2] in (b"", b"5\r\n12345")


async def test_a_chunks_head_without_end_is_an_end_of_the_connection(short: Path) -> None:
    async with serving(silent) as port, way(short, [f"site.test:{port}"]) as out:
        head = f"POST http://site.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;"
        assert await out.say(head.encode() + b"x" * 80_000) == b""
        assert await out.say(head.encode() + b"x" * 80_000 + b"\r\n") == b""


async def test_chunks_of_one_byte_leave_others_their_turn(short: Path) -> None:
    async with serving(silent) as port, way(short, [f"site.test:{port}"]) as out:
        _, writer = await asyncio.open_unix_connection(str(out.socket))
        writer.write(f"POST http://site.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(4):
            writer.write(b"1\r\nx\r\n" * 20_000)
        turns = 0
        began = time.process_time()
        while time.process_time() - began < 0.5:
            await asyncio.sleep(0)
            turns += 1
        writer.close()
    assert turns > 500


@pytest.mark.parametrize(
    "target",
    ["0x7f.1", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1.", "1.1.1.1", "localhost", "xn--ste-9la.test", "site.test.other.test"],
)  # fmt: skip
async def test_a_tunnel_to_what_is_not_named_is_refused_however_it_is_spelled(short: Path, target: str) -> None:
    async with way(short, ["site.test", "*.site.test"]) as out:
        assert b" 403 " in await out.say(f"CONNECT {target}:443 HTTP/1.1\r\n\r\n".encode())


async def test_a_named_host_is_the_same_in_capitals_and_with_a_dot_at_its_end(short: Path) -> None:
    async with serving(silent) as port, way(short, [f"site.test:{port}"]) as out:
        for target in ("SITE.Test", "site.test.", "site.test.."):
            _, writer = await out.connect(f"{target}:{port}")
            writer.close()
    assert out.told == [("site.test", port, True)]


@pytest.mark.parametrize(
    "answer",
    [
        "93.184.215.14 127.0.0.1",
        "10.0.0.1 93.184.215.14",
        "2606:2800:21f:cb07::1 ::1",
        "93.184.215.14 ::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::1",
        "::127.0.0.1",
        "fe80::1%lo",
        "100.100.100.200",
        "168.63.129.16",
    ],
)
async def test_one_address_of_the_inside_among_a_hosts_answers_is_one_too_many(short: Path, answer: str) -> None:
    async with way(short, ["site.test"], allow=(), site_test=[answer]) as out:
        assert b" 403 " in await out.say(b"CONNECT site.test:443 HTTP/1.1\r\n\r\n")
    assert out.told == [("site.test", 443, False)]


async def test_a_host_that_is_unknown_or_has_no_route_is_an_answer(short: Path) -> None:
    allow, far = ("255.255.255.255/32",), ["255.255.255.255"]
    async with way(short, ["gone.test", "far.test"], allow=allow, gone_test=[""], far_test=far) as out:
        assert b" 403 " in await out.say(b"CONNECT gone.test:443 HTTP/1.1\r\n\r\n")
        assert b" 502 " in await out.say(b"CONNECT far.test:443 HTTP/1.1\r\n\r\n")


async def test_a_second_address_is_tried_where_the_first_does_not_answer(short: Path) -> None:
    async with (
        serving(Heard().answer) as port,
        way(short, [f"site.test:{port}"], site_test=["127.0.0.2 127.0.0.1"]) as out,
    ):
        assert b" 200 " in await out.say(f"GET http://site.test:{port}/ HTTP/1.1\r\n\r\n".encode())


async def test_a_head_or_a_hello_that_comes_byte_by_byte_is_waited_for_only_so_long(short: Path) -> None:
    async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
        with suppress(ConnectionError):
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

    async with serving(silent) as port, way(short, [f"site.test:{port}"], patience=QUICK) as out:
        slow_head = await asyncio.open_unix_connection(str(out.socket))
        slow_hello = await out.connect(f"site.test:{port}")
        began = time.monotonic()
        data = f"CONNECT site.test:{port} HTTP/1.1\r\n".encode() + b"A: 1\r\n" * 100, hello("site.test")
        dripping = [asyncio.create_task(drip(w, d)) for (_, w), d in zip((slow_head, slow_hello), data, strict=True)]
        for reader, _ in (slow_head, slow_hello):
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(-1), 10) == b""
        assert time.monotonic() - began < 10 < len(data[1]) * 0.05
        for task in dripping:
            task.cancel()
        await asyncio.gather(*dripping, return_exceptions=True)
        for _, writer in (slow_head, slow_hello):
            writer.close()


async def test_a_long_answer_is_no_silence_and_a_silence_ends_the_connection(short: Path) -> None:
    """A client that downloads says nothing for as long as that takes."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(15):
            writer.write(b"more ")
            await asyncio.sleep(0.1)
        await reader.read(-1)

    async with serving(slowly) as port, way(short, [f"site.test:{port}"], patience=QUICK) as out:
        reader, writer = await out.connect(f"site.test:{port}")
        assert await asyncio.wait_for(reader.read(-1), 10) == b"more " * 15
        writer.close()


async def test_a_client_that_never_reads_holds_its_place_only_so_long(short: Path) -> None:
    async def blast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    before = len(os.listdir("/proc/self/fd"))
    async with serving(blast) as port, way(short, [f"site.test:{port}"], patience=QUICK) as out:
        # Their readers' buffers fill, and no more is read.
        held = [await out.connect(f"site.test:{port}") for _ in range(64)]
        async with asyncio.timeout(20):
            while b" 503 " in (said := await out.say(b"x\r\n\r\n")):
                await asyncio.sleep(0.2)
        assert b" 400 " in said
        for _, writer in held:
            writer.transport.abort()
    assert len(os.listdir("/proc/self/fd")) <= before + 4


@pytest.mark.parametrize("stays", [False, True])
async def test_a_client_of_plain_http_that_has_gone_does_not_keep_its_place_while_the_server_is_silent(
    short: Path, stays: bool
) -> None:
    ended = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2 if stays else 20):
                await reader.read(-1)
                ended.set()
        writer.write(b"hello")

    patience = Patience(head_seconds=0.5, idle_seconds=30)
    async with serving(slow) as port, way(short, [f"site.test:{port}"], patience=patience) as out:
        reader, writer = await asyncio.open_unix_connection(str(out.socket))
        writer.write(b"GET http://site.test:%d/ HTTP/1.1\r\nHost: site.test\r\n\r\n" % port)
        if stays:  # and only says that it has no more to say
            writer.write_eof()
            assert (await asyncio.wait_for(reader.read(-1), 5)).endswith(b"hello")
        else:
            await reader.readline()
            writer.close()
            await asyncio.wait_for(ended.wait(), 5)
        writer.close()


async def test_a_client_that_takes_its_time_gets_all_to_the_last_byte(short: Path) -> None:
    """Of some of these sizes the last part does not fit into the client's queue when the server has said all."""

    async def much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(int(await reader.readline())))
        await writer.drain()

    sizes = range(200_000, 600_000, 20_000)
    async with serving(much) as port, way(short, [f"site.test:{port}"]) as out:
        clients = [await out.connect(f"site.test:{port}") for _ in sizes]
        for size, (_, writer) in zip(sizes, clients, strict=True):
            writer.write(b"%d\n" % size)
            writer.write_eof()
        await asyncio.sleep(1)
        for size, (reader, writer) in zip(sizes, clients, strict=True):
            assert len(await asyncio.wait_for(reader.read(-1), 10)) == size
            writer.close()


async def test_a_flood_of_connections_is_taken_at_a_pace_and_hurts_no_other_run(
    short: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The flood waits in the kernel's queue. Another run's proxy in the same process answers all the while."""
    flood = """
import socket, sys, time
count, end = 0, time.monotonic() + 3
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1)
        try: s.connect(sys.argv[1]); count += 1
        except OSError: pass
print(count)
"""
    async with way(short, ["site.test"]) as out, way(tmp_path_factory.mktemp("o"), ["site.test"]) as other:
        flooding = await asyncio.create_subprocess_exec(
            sys.executable, "-c", flood, str(out.socket), stdout=asyncio.subprocess.PIPE
        )
        answered = 0
        while flooding.returncode is None:
            assert b" 400 " in await other.say(b"x\r\n\r\n")
            answered += 1
            await asyncio.sleep(0.1)
        said, _ = await flooding.communicate()
    assert 128 <= int(said) <= 128 + 64 + 3.5 * 100
    assert answered > 5


SHORT_OF_DESCRIPTORS = """
import asyncio, os, resource, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sites import way

async def main():
    async with way(Path(sys.argv[1]), ["site.test"]) as out:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        held = []
        try:
            while True: held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError: pass
        for client in clients: client.connect(str(out.socket))
        before = os.times()
        await asyncio.sleep(2)
        after = os.times()
        for fd in held: os.close(fd)
        said = await out.say(b"x\\r\\n\\r\\n")
        for client in clients: client.close()
        print("used", after.user + after.system - before.user - before.system, "said", said[:12].decode())
asyncio.run(main())
"""


async def test_a_process_short_of_descriptors_waits_for_one_and_goes_on(short: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SHORT_OF_DESCRIPTORS, str(short), str(Path(__file__).parent)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    words = out.decode().splitlines()[-1].split()
    assert float(words[1]) < 0.2
    assert words[3:] == ["HTTP/1.1", "400"]
    assert out.count(b"sandbox_connection_waits") == 1
