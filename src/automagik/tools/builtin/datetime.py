"""The group `datetime`: what day and what time it is."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic_ai import ModelRetry, Tool

from automagik.types import Clock

__all__ = ["datetime_tools"]


def datetime_tools(clock: Clock) -> list[Tool[Any]]:
    """The tools of the group, reading `clock`."""

    async def get_current_date(time_zone: str = "UTC") -> str:
        """The current date, as in `2026-11-24 (Tuesday)`.

        Args:
            time_zone: An IANA time zone such as `Europe/Berlin`.
        """
        return _local(clock, time_zone).strftime("%Y-%m-%d (%A)")

    async def get_current_time(time_zone: str = "UTC") -> str:
        """The current date and time with its offset from UTC, as in `2026-11-24T10:30:00+01:00`.

        Args:
            time_zone: An IANA time zone such as `Europe/Berlin`.
        """
        return _local(clock, time_zone).isoformat(timespec="seconds")

    return [Tool(tool, metadata={"read_only": True}) for tool in (get_current_date, get_current_time)]


def _local(clock: Clock, time_zone: str) -> datetime:
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ModelRetry(f"There is no time zone '{time_zone}'. Use an IANA name such as 'Europe/Berlin'.") from None
    return clock.now().astimezone(zone)
