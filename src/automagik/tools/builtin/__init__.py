"""Tools that come with the platform, one module for each group."""

from automagik.tools.builtin.datetime import datetime_tools
from automagik.tools.builtin.memory import memory_tools

__all__ = ["datetime_tools", "memory_tools"]
