"""The parameters of the hot path's statements on PostgreSQL: one array for each column of a batch."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Row

from automagik.store import schema
from automagik.store.columns import clean
from automagik.store.hot import DEFAULT_ORIGIN, BeginRun, FinishRun, NewEvent, StartRun
from automagik.store.rows import ClaimedRun
from automagik.store.runs import claimed_of

__all__ = [
    "claimed_of_values",
    "claimed_with_end",
    "may_make",
    "of_append",
    "of_begin",
    "of_begin_without_context",
    "of_claimed",
    "of_finish",
    "of_start",
    "session_keys",
]

Columns = list[list[Any]]

_SEPARATOR = "\x1f"
_NEXT = [(name, f"next_{name}") for name in ("last_seq", *schema.runs.c.keys())]


def may_make(begin: BeginRun) -> bool:
    """Whether the run may be stored though its session is not there."""
    return not begin.has_session or (begin.create_session and begin.session_id is not None)


def session_keys(begin: BeginRun) -> tuple[Hashable, ...]:
    """By what two runs of one batch would make one session twice, or take its turns together."""
    if begin.session_id is None:
        return () if begin.session_name is None else ((begin.user_id, begin.session_name),)
    if begin.session_name is None:
        return (begin.session_id,)
    return (begin.session_id, (begin.user_id, begin.session_name))


def of_begin(batch: Sequence[BeginRun]) -> Columns:
    """The parameters of BEGIN."""
    return [*_begin(batch), [b.message_limit for b in batch], [_joined(b.variable_names) for b in batch]]


def of_begin_without_context(batch: Sequence[BeginRun]) -> Columns:
    """The parameters of ACCEPT, which reads neither messages nor variables."""
    return [*_begin(batch), [0 for _ in batch], ["" for _ in batch]]


def of_start(batch: Sequence[StartRun]) -> Columns:
    """The parameters of START."""
    return [
        [s.run_id for s in batch],
        [s.started_at for s in batch],
        [s.owner for s in batch],
        [s.message_limit for s in batch],
        [_joined(s.variable_names) for s in batch],
        *_of_runs(batch),
    ]


def of_finish(batch: Sequence[FinishRun]) -> Columns:
    """The parameters of FINISH."""
    messages = [(f.run_id, message) for f in batch for message in f.messages]
    return [
        [f.run_id for f in batch],
        [f.owner for f in batch],
        [f.claims_next for f in batch],
        [f.status for f in batch],
        [f.outcome for f in batch],
        [f.output_json for f in batch],
        [f.error_json for f in batch],
        [f.usage.requests for f in batch],
        [f.usage.tool_calls for f in batch],
        [f.usage.input_tokens for f in batch],
        [f.usage.output_tokens for f in batch],
        [f.usage.cache_read_tokens for f in batch],
        [f.usage.cache_write_tokens for f in batch],
        [f.usage.cost_usd for f in batch],
        [clean(f.instructions) if f.instructions is not None else None for f in batch],
        [f.model for f in batch],
        [f.finished_at for f in batch],
        [f.session_key for f in batch],
        [len(f.messages) if f.session_key is not None else 0 for f in batch],
        [message.message_id for _, message in messages],
        [run_id for run_id, _ in messages],
        [message.role for _, message in messages],
        [clean(message.content) for _, message in messages],
        [message.raw_payload for _, message in messages],
        *_of_runs(batch),
    ]


def of_append(batch: Sequence[tuple[str, str, Sequence[NewEvent]]]) -> Columns:
    """The parameters of APPEND: run, owner and events."""
    return [
        [run_id for run_id, _, _ in batch],
        [owner for _, owner, _ in batch],
        *_events((run_id, event) for run_id, _, events in batch for event in events),
    ]


def of_claimed(batch: Sequence[tuple[str, str]]) -> Columns:
    """The parameters of CLAIMED: run and owner."""
    return [[run_id for run_id, _ in batch], [owner for _, owner in batch]]


def claimed_of_values(values: Mapping[str, Any]) -> ClaimedRun:
    """What CLAIMED gives of a run, with the driver's own types: JSON is text."""
    read = dict(values)
    for name in ("labels", "input", "output", "error", "waiting_for", "details"):
        if read[name] is not None:
            read[name] = json.loads(read[name])
    return claimed_of(cast("Row[Any]", SimpleNamespace(**read)))


def claimed_with_end(record: Mapping[str, Any]) -> ClaimedRun:
    """What FINISH gives of the run whose turn has come."""
    return claimed_of_values({name: record[given] for name, given in _NEXT})


def _begin(batch: Sequence[BeginRun]) -> Columns:
    return [
        [b.run_id for b in batch],
        [b.kind for b in batch],
        [b.name for b in batch],
        [b.agent_id for b in batch],
        [b.session_id for b in batch],
        [b.session_name for b in batch],
        [b.session_origin or DEFAULT_ORIGIN for b in batch],
        [may_make(b) for b in batch],
        [b.user_id for b in batch],
        [b.visible_to for b in batch],
        [b.key_id for b in batch],
        [b.parent_id for b in batch],
        [b.requeue_of for b in batch],
        [b.labels_json for b in batch],
        [b.input_json for b in batch],
        [b.priority for b in batch],
        [b.deadline_at for b in batch],
        [b.queue_until for b in batch],
        [b.host for b in batch],
        [b.background for b in batch],
        [b.owner for b in batch],
        [b.created_at for b in batch],
        [b.idempotency.key_id if b.idempotency is not None else None for b in batch],
        [b.idempotency.key if b.idempotency is not None else None for b in batch],
        [b.idempotency.body_hash if b.idempotency is not None else None for b in batch],
    ]


def _of_runs(batch: Sequence[StartRun] | Sequence[FinishRun]) -> Columns:
    return _events((run.run_id, event) for run in batch for event in run.events)


def _events(pairs: Iterable[tuple[str, NewEvent]]) -> Columns:
    events = list(pairs)
    return [
        [run_id for run_id, _ in events],
        [event.seq for _, event in events],
        [event.type for _, event in events],
        [event.at for _, event in events],
        [event.data_json for _, event in events],
    ]


def _joined(names: Sequence[str] | None) -> str | None:
    return None if names is None else _SEPARATOR.join(names)
