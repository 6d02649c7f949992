"""One lifecycle for every kind of work."""

from automagik.runs.document import run_document, usage_document
from automagik.runs.request import RunRequest
from automagik.runs.scheduler import Scheduler
from automagik.runs.schedules import ScheduleEdit, Schedules
from automagik.runs.service import RunService
from automagik.runs.stream import RunStream

__all__ = [
    "RunRequest",
    "RunService",
    "RunStream",
    "ScheduleEdit",
    "Scheduler",
    "Schedules",
    "run_document",
    "usage_document",
]
