"""What a run cost, in US dollars.

Pydantic AI prices each response of an agent run as it arrives (by genai-prices, its table loaded where the model was
resolved, off the event loop) and keeps a cost that a gateway reports. So this only adds up: under 1 µs a response.
"""

from collections.abc import Sequence
from decimal import Decimal

from pydantic_ai.messages import ModelResponse

from automagik.budget import is_loopback

__all__ = ["cost"]


def cost(responses: Sequence[ModelResponse]) -> Decimal | None:
    """The sum over `responses`; None where the price of one is unknown. What a server on loopback answers costs nothing."""
    total = Decimal(0)
    for response in responses:
        if response.provider_url is not None and is_loopback(response.provider_url):
            continue
        usage = response.usage
        if usage.cost is None or usage.unmeasured_requests:
            return None
        total += usage.cost
    return total
