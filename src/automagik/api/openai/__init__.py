"""The OpenAI-compatible door: agents are models, so OpenAI's own clients work unchanged."""

from automagik.api.openai import chat, models, responses

__all__ = ["ROUTERS"]

ROUTERS = (chat.router, responses.router, models.router)
