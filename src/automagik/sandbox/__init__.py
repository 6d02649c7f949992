"""Sandboxes: bubblewrap, limits, the containment probe, egress."""

__all__: list[str] = []
