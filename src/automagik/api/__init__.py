"""The HTTP API: FastAPI over one Platform."""

from automagik.api.application import create_api

__all__ = ["create_api"]
