"""Who is told over HTTP that a run ended: signed, retried, visible deliveries."""
