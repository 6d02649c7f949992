"""What a run asks of a provider besides calls: the models that there are, and how many tokens a request has."""

import asyncio
import json
from typing import cast

from automagik.gateway.access import RunAccess
from automagik.gateway.answers import answer_headers, forwarded_headers, scrubbed, whole_body
from automagik.gateway.call import Services
from automagik.gateway.connection import Answer, ClientGone, Exchange
from automagik.gateway.pool import BrokeOff, Unreachable
from automagik.gateway.upstream import Account
from automagik.gateway.wire import Refusal, as_list, as_object
from automagik.types import Json

__all__ = ["count_tokens", "list_models"]

_MAX_BYTES = 4 * 1024 * 1024
_SECONDS = 60.0
_CHARS_PER_TOKEN = 4


async def count_tokens(services: Services, access: RunAccess, exchange: Exchange) -> None:
    """Pass a question for the count of tokens on; it costs nothing. Raises Refusal."""
    if access.upstream == "demo":
        exchange.answer(_json(200, {"input_tokens": len(exchange.body) // _CHARS_PER_TOKEN}))
        return
    account = await services.upstream.account("anthropic")
    await _pass(services, account, exchange, "POST", "/v1/messages/count_tokens", exchange.body)


async def list_models(services: Services, access: RunAccess, exchange: Exchange) -> None:
    """List those of the provider's models that the run may use. Raises Refusal."""
    if access.upstream == "demo":
        exchange.answer(_json(200, {"data": [{"id": "demo", "type": "model", "object": "model"}], "has_more": False}))
        return
    anthropic = bool(exchange.head.values(b"anthropic-version"))
    account = await services.upstream.account("anthropic" if anthropic else "openai")
    path = "/v1/models?limit=1000" if anthropic else "/models"
    await _pass(services, account, exchange, "GET", path, None, only=access)


async def _pass(
    services: Services,
    account: Account,
    exchange: Exchange,
    method: str,
    path: str,
    body: bytes | None,
    *,
    only: RunAccess | None = None,
) -> None:
    """The provider's short answer. With `only` it is a list, of which those models are left that the run may use."""
    try:
        async with exchange.while_present(), asyncio.timeout(_SECONDS):
            reply = await services.upstream.send(method, account, path, forwarded_headers(exchange.head), body)
            try:
                content = scrubbed(await whole_body(reply, _MAX_BYTES), account.secret)
            finally:
                await reply.close()
    except ClientGone:
        return
    except (TimeoutError, Unreachable, BrokeOff):
        raise Refusal(502, "The model's API can't be reached.") from None
    if reply.status == 401 or reply.status // 100 not in {2, 4, 5}:
        raise Refusal(502, "The model's API refuses the platform's key, or its address is wrong.", may_retry=False)
    if only is not None and reply.status == 200:
        exchange.answer(_json(200, _allowed(content, only)))
    else:
        exchange.answer(Answer(reply.status, content, answer_headers(reply, account.secret)[0]))


def _allowed(content: bytes, access: RunAccess) -> Json:
    try:
        listing = as_object(cast("Json", json.loads(content)))
    except ValueError:
        raise Refusal(502, "The model's API gave a list that can't be read.") from None
    kept = [entry for entry in as_list(listing.get("data")) if access.allows(str(as_object(entry).get("id", "")))]
    return {**listing, "data": kept}


def _json(status: int, document: Json) -> Answer:
    return Answer(status, json.dumps(document).encode())
