"""The name in a TLS client's first bytes: of real hellos, whole, in pieces and damaged."""

import random
import time

import pytest
from sites import hello

from automagik.sandbox.client_hello import ClientHello, server_name


def test_it_reads_the_name_of_a_real_client() -> None:
    assert server_name(hello("Example.COM")) == "example.com"


def test_a_client_that_names_nobody_has_no_name() -> None:
    assert server_name(hello(None)) is None


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00\x00\x00\x08\x04\xd2\x16\x2f"])
def test_what_is_no_tls_has_no_name(data: bytes) -> None:
    assert server_name(data) is None


@pytest.mark.parametrize(
    "before",
    [
        b"\x15\x03\x01\x00\x02\x01\x64",
        b"\x15\x00\x00\x00\x02\x01\x64",
        b"\x14\x03\x01\x00\x01\x01",
        b"\x16\x03\x01\x00\x04\x00\x00\x00\x00",
        b"\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x01\x64",
        b"\x16\x03\x01\x00\x00",
    ],
    ids=["alert", "alert of no version", "cipher change", "another message", "alert within", "empty record"],
)
def test_tls_that_begins_with_anything_but_a_hello_is_refused(before: bytes) -> None:
    """Go's servers pass over warnings before the hello: taken for no TLS, the name behind them would not be heard."""
    with pytest.raises(ValueError, match=r"none of the hello's|before the hello"):
        server_name(before + hello("other.test"))


@pytest.mark.parametrize("version", [b"\x00\x00", b"\x02\x00", b"\x04\x01", b"\x0f\xff"])
def test_a_record_of_a_version_that_is_none_is_refused(version: bytes) -> None:
    """Go's servers take every version below 0x1000 in the first record."""
    whole = hello("other.test")
    with pytest.raises(ValueError, match="none of the hello's"):
        server_name(whole[:1] + version + whole[3:])


@pytest.mark.parametrize("extension", [0xFE0D, 0xFFCE])
def test_a_name_that_is_encrypted_is_refused(extension: int) -> None:
    content = b"\x00\x00\x01\x00\x01\x01\x00\x00\x00\x00"
    with pytest.raises(ValueError, match="encrypted"):
        server_name(_with_extension(hello("example.com"), extension, content))
    assert server_name(_with_extension(hello("example.com"), 0x1234, content)) == "example.com"


def test_a_hello_in_the_smallest_pieces_costs_no_more_than_its_length() -> None:
    """60 kB, a byte at a time, each byte in a record of its own: read anew for every byte they would take minutes."""
    message = b"\x01\x00\xff\xff" + bytes(10_000)
    client = ClientHello()
    began = time.process_time()
    for data in b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in message):
        assert client.hear(bytes([data])) == "incomplete"
    assert time.process_time() - began < 3


def test_every_beginning_is_incomplete() -> None:
    whole = hello("example.com")
    assert {server_name(whole[:length]) for length in range(len(whole))} == {"incomplete"}
    assert server_name(whole + b"more") == "example.com"


@pytest.mark.parametrize("size", [1, 3, 40, 200])
def test_a_hello_in_many_records_is_put_together(size: int) -> None:
    whole = hello("example.com")
    message = whole[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    spread = b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)
    assert server_name(spread) == "example.com"
    assert server_name(spread[:-1]) == "incomplete"


def test_two_names_are_refused() -> None:
    whole = hello("example.com")
    entry = b"\x00" + len(b"example.com").to_bytes(2, "big") + b"example.com"
    other = b"\x00" + len(b"a.test").to_bytes(2, "big") + b"a.test"
    at = whole.index(entry)
    extra = len(other)
    changed = bytearray(whole[: at + len(entry)] + other + whole[at + len(entry) :])

    def grow(offset: int, count: int) -> None:
        value = int.from_bytes(changed[offset : offset + count], "big") + extra
        changed[offset : offset + count] = value.to_bytes(count, "big")

    grow(at - 2, 2)  # the list of names
    grow(at - 4, 2)  # the extension
    reader = 5 + 4 + 34
    reader += 1 + changed[reader]
    reader += 2 + int.from_bytes(changed[reader : reader + 2], "big")
    reader += 1 + changed[reader]
    grow(reader, 2)  # all extensions
    grow(6, 3)  # the message
    grow(3, 2)  # the record
    with pytest.raises(ValueError, match="several"):
        server_name(bytes(changed))


def test_damaged_hellos_never_do_worse_than_being_refused() -> None:
    whole = hello("example.com")
    chance = random.Random(7)
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            server_name(bytes(damaged[: chance.randint(0, len(damaged))]))
        except ValueError:  # UnicodeDecodeError is one
            continue


def _with_extension(whole: bytes, kind: int, content: bytes) -> bytes:
    """The hello with one extension more at its end."""
    added = kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
    changed = bytearray(whole + added)
    at = 5 + 4 + 34
    at += 1 + changed[at]
    at += 2 + int.from_bytes(changed[at : at + 2], "big")
    at += 1 + changed[at]
    for offset, count in ((at, 2), (6, 3), (3, 2)):  # all extensions, the message, the record
        value = int.from_bytes(changed[offset : offset + count], "big") + len(added)
        changed[offset : offset + count] = value.to_bytes(count, "big")
    return bytes(changed)
