"""What happened in a run: stored events, live deltas, and who looks on."""

from automagik.events.bus import EventBus
from automagik.events.event import TRANSIENT, RunEvent
from automagik.events.stream import EventStream, Subscription

__all__ = ["TRANSIENT", "EventBus", "EventStream", "RunEvent", "Subscription"]
