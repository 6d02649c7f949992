"""What happened in a run: stored events, live deltas, and who looks on, here or on another instance."""

from automagik.events.bus import EventBus
from automagik.events.event import TRANSIENT, RunEvent
from automagik.events.stream import EventStream, Subscription
from automagik.events.watcher import Look, Looked

__all__ = ["TRANSIENT", "EventBus", "EventStream", "Look", "Looked", "RunEvent", "Subscription"]
