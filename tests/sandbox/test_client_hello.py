"""The name in a TLS client's first bytes: of real hellos, whole, in pieces and damaged."""

import random

import pytest
from sites import hello

from automagik.sandbox.client_hello import server_name


def test_it_reads_the_name_of_a_real_client() -> None:
    assert server_name(hello("Example.COM")) == "example.com"


def test_a_client_that_names_nobody_has_no_name() -> None:
    assert server_name(hello(None)) is None


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x02\x00\x00\x01\x01", b"\x15\x03\x01\x00\x02\x01\x00"]
)
def test_what_is_no_tls_has_no_name(data: bytes) -> None:
    assert server_name(data) is None


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
