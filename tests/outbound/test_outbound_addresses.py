"""Which addresses are reached: refusals by a resolver that lies as attackers do, and what an administrator allows."""

import asyncio
import socket
import sys
import threading
from collections.abc import Sequence

import pytest
from webservers import PUBLIC, Resolver, answering, failure, outbound, serving

from automagik.outbound import AddressRefused

pytestmark = pytest.mark.anyio

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


async def test_names_that_nobody_answers_for_keep_no_thread_of_the_platform_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lookup can't be ended, and takes half a minute where the name server is silent: whoever asks much waits alone."""
    answer = threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        answer.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    async with outbound() as door:
        asking = [asyncio.create_task(door.addresses("slow.test", 443)) for _ in range(100)]
        try:
            await asyncio.sleep(0.1)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 10) == "done"
        finally:
            answer.set()
            await asyncio.gather(*asking, return_exceptions=True)


SHORT_OF_DESCRIPTORS = """
import asyncio, os, resource
from automagik.outbound import AddressRefused, Outbound
from automagik.settings import Settings

async def resolve(host, port):
    return ["93.184.215.14"]

async def main():
    async with Outbound(Settings(), resolve=resolve) as door:
        print(await door.addresses("public.test", 443))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True: held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError: pass
        try: said = await door.addresses("public.test", 443)
        except AddressRefused: said = "refused"
        for fd in held: os.close(fd)
        print(said)
asyncio.run(main())
"""


async def test_an_address_that_can_not_be_judged_for_want_of_descriptors_is_refused() -> None:
    """It takes a socket to ask whether an address is this machine's own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SHORT_OF_DESCRIPTORS, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert out.decode().split() == ["['93.184.215.14']", "refused"]
