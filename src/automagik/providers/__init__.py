"""Which model: names to Pydantic AI models over one HTTP client, fallbacks, discovery on loopback, the demo, prices."""

from automagik.providers.demo import DEMO_MODEL, DEMO_NOTICE, DemoModel
from automagik.providers.discovery import Discovery, LocalServer
from automagik.providers.prices import cost
from automagik.providers.registry import DEFAULT_MODELS, ModelRegistry

__all__ = [
    "DEFAULT_MODELS",
    "DEMO_MODEL",
    "DEMO_NOTICE",
    "DemoModel",
    "Discovery",
    "LocalServer",
    "ModelRegistry",
    "cost",
]
