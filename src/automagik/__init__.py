"""Automagik Agents: a platform that runs AI agents which can be trusted unattended."""

__version__ = "0.1.0"
__all__ = ["__version__"]
