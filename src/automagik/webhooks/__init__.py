"""Who is told over HTTP that a run ended: signed, retried, visible deliveries."""

from automagik.webhooks.registry import EVENTS, TrackedDelivery, Webhooks
from automagik.webhooks.sender import RETRY_DELAYS, DeliveryObserver, WebhookSender

__all__ = ["EVENTS", "RETRY_DELAYS", "DeliveryObserver", "TrackedDelivery", "WebhookSender", "Webhooks"]
