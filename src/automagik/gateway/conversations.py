"""Conversations: the most tokens that a request can be counted as input, from its bytes and what was reported before.

A token has at least one byte of text, so bytes are a bound; a poor one, four times too high, which a long conversation would
meet again at every turn. But a request mostly repeats the one before it: what both begin with is counted by the tokens
that the provider reported for it, and only what is new by its bytes.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from automagik.budget import Tokens
from automagik.gateway.wire import Ask, Wire, as_list, as_object
from automagik.types import Json, JsonObject

__all__ = ["Bound", "Conversations"]

_KEPT = 64
"""Conversations side by side: a run's own, and those of its sub-agents."""
_LARGEST_KEPT_HEAD = 1024 * 1024
_OWN_WORDS = 1_500  # what a provider adds of its own where tools are offered
_TYPED_TOOL_WORDS = 1_000  # what it writes of a tool that it knows by its type
_LARGEST_CONTEXT = 2_000_000
_BESIDE = frozenset(
    {
        *("instructions", "system", "tool_choice", "tools"),
        *("max_completion_tokens", "max_output_tokens", "max_tokens", "stop", "stop_sequences"),
        *("temperature", "top_k", "top_p"),
        *(
            "metadata",
            "prompt_cache_key",
            "safety_identifier",
            "service_tier",
            "store",
            "stream",
            "stream_options",
            "user",
        ),
    }
)
"""Fields that say nothing of how the turns are counted. Any other may (`context_management` leaves turns out, `thinking` decides
whether earlier thoughts are read again), so what was reported with another value of it says nothing."""
_REFERENCE = b'"tool_reference"'


@dataclass(frozen=True, slots=True)
class Bound:
    """The most input tokens of a request, and what it is known by when its tokens were reported."""

    tokens: int
    mark: bytes
    head: bytes


@dataclass(frozen=True, slots=True)
class _Head:
    """What is known of a request without its turns. Turns that follow the same `ways` are counted alike."""

    written: bytes
    mark: bytes
    ways: bytes
    added_words: int


class Conversations:
    """What a run's last requests were counted as."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._last = _Head(b"", b"", b"", 0)

    def bound(self, wire: Wire, ask: Ask) -> Bound:
        """The most tokens that the request can be counted as input."""
        document = ask.document
        head = self._head_of({name: value for name, value in document.items() if name != wire.turns})
        mark = head.ways
        given = document.get(wire.turns)
        turns: Sequence[Json] = given if isinstance(given, list) else [given]
        unknown = len(head.written) + head.added_words
        for turn in turns:
            written = _written(turn)
            mark = hashlib.blake2b(mark + _unmarked(written), digest_size=16).digest()
            known = self._known.get(mark)
            if known is not None:
                tokens, its_head = known
                unknown = tokens + (0 if its_head == head.mark else len(head.written) + head.added_words)
            else:
                unknown += len(written) + sum(medium.tokens - medium.size for medium in wire.media(turn, ask.model))
                if _REFERENCE in written:  # in its place a tool stands whole, which was not read so far
                    unknown += written.count(_REFERENCE) * _largest_tool(document)
        return Bound(min(unknown, _LARGEST_CONTEXT), mark, head.mark)

    def _head_of(self, document: JsonObject) -> "_Head":
        """What is to be known of a request without its turns. Mostly it is the last one's, and large: comparing takes a hundredth
        of reading it."""
        written = _written(document)
        if written == self._last.written:
            return self._last
        mark = hashlib.blake2b(_unmarked(written), digest_size=16).digest()
        ways = {name: value for name, value in document.items() if name not in _BESIDE}
        head = _Head(written, mark, hashlib.blake2b(_written(ways), digest_size=16).digest(), _added_words(document))
        if len(written) <= _LARGEST_KEPT_HEAD:
            self._last = head
        return head

    def remember(self, bound: Bound, reported: Tokens) -> None:
        """Keep what the provider counted for the request of this bound."""
        self._known[bound.mark] = (reported.input + reported.cache_read + reported.cache_write, bound.head)
        self._known.move_to_end(bound.mark)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)


def _added_words(document: JsonObject) -> int:
    tools = as_list(document.get("tools"))
    typed = sum(as_object(tool).get("type", "custom") not in ("custom", "function") for tool in tools)
    return _OWN_WORDS + typed * _TYPED_TOOL_WORDS


def _largest_tool(document: JsonObject) -> int:
    return max((len(_written(tool)) for tool in as_list(document.get("tools"))), default=0) + _TYPED_TOOL_WORDS


def _written(value: Json) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # a number of more than 64 bits, or half a surrogate pair
        return json.dumps(value).encode()


def _unmarked(written: bytes) -> bytes:
    """What a turn is known by: where the cache is asked to end moves from one request to the next, its words stay."""
    if b'"cache_control"' not in written:
        return written
    return _written(_without(_read(written)))


def _read(written: bytes) -> Json:
    try:
        return orjson.loads(written)
    except orjson.JSONDecodeError:  # half a surrogate pair
        return json.loads(written)


def _without(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name != "cache_control"}
    return [_without(inner) for inner in value] if isinstance(value, list) else value
