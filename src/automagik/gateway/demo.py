"""play: an answer of the labelled demo script, which is no language model, costs nothing and needs no key."""

import asyncio

from automagik.gateway.connection import Answer, Exchange
from automagik.gateway.metering import MessagesMeter, Meter
from automagik.providers.scripted_messages import DEMO_SCRIPT
from automagik.types import JsonObject

__all__ = ["play"]


async def play(exchange: Exchange, document: JsonObject) -> Meter:
    """What was said to be used of an answer, streamed where that was asked for. Raises ClientGone."""
    answer = DEMO_SCRIPT.answer(document)
    meter = MessagesMeter(streams=answer.is_streamed)
    headers = tuple((name.lower().encode(), value.encode()) for name, value in answer.headers.items())
    async with exchange.while_present():
        await asyncio.sleep(answer.delay)
        if not answer.is_streamed:
            meter.feed(answer.body)
            exchange.answer(Answer(answer.status, answer.body, ((b"content-type", b"application/json"), *headers)))
        else:
            exchange.start(answer.status, ((b"content-type", b"text/event-stream"), *headers))
            for piece in answer.stream():
                meter.feed(piece)
                await exchange.write(piece)
                await asyncio.sleep(answer.chunk_delay)
            exchange.end()
    meter.finish()
    return meter
