"""The platform that an application serves, as its routes get it."""

from typing import Annotated, cast

from fastapi import Depends, Request

from automagik.app import Platform

__all__ = ["PlatformOf", "platform_of"]


def platform_of(request: Request) -> Platform:
    """The platform behind a request's application."""
    return cast("Platform", request.scope["app"].state.platform)


async def _depend(request: Request) -> Platform:
    return platform_of(request)


PlatformOf = Annotated[Platform, Depends(_depend)]
"""The platform."""
