"""The model gateway: a run's one way to a model, which puts the key in, meters and enforces the budget."""

from automagik.gateway.access import RunAccess
from automagik.gateway.door import Door
from automagik.gateway.gateway import Gateway

__all__ = ["Door", "Gateway", "RunAccess"]
