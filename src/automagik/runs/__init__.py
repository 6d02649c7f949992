"""One lifecycle for every kind of work."""

from automagik.runs.document import run_document, usage_document
from automagik.runs.request import RunRequest
from automagik.runs.service import RunService
from automagik.runs.stream import RunStream

__all__ = ["RunRequest", "RunService", "RunStream", "run_document", "usage_document"]
