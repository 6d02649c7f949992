"""What a run cost, in US dollars.

Pydantic AI prices each response of an agent run as it arrives (by genai-prices, its table loaded where the model was
resolved, off the event loop) and keeps a cost that a gateway reports. So this only adds up: under 1 µs a response.
"""

import ipaddress
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from urllib.parse import urlsplit

from pydantic_ai.messages import ModelResponse

__all__ = ["cost"]


def cost(responses: Sequence[ModelResponse]) -> Decimal | None:
    """The sum over `responses`; None where the price of one is unknown. What a server on loopback answers costs nothing."""
    total = Decimal(0)
    for response in responses:
        if response.provider_url is not None and _is_loopback(response.provider_url):
            continue
        usage = response.usage
        if usage.cost is None or usage.unmeasured_requests:
            return None
        total += usage.cost
    return total


@lru_cache(maxsize=256)
def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
