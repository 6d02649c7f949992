"""The shapes on the wire: what requests are checked against, and what answers are documented as."""
