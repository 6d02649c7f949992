"""RunRequest: what a caller asks an agent, and how it is kept with the run so that it can be carried out later."""

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from pydantic_ai import BinaryContent
from pydantic_ai.messages import ModelMessage

from automagik.memory import DEFAULT_STATUS_KEY
from automagik.store.rows import RunRow
from automagik.types import Json, JsonObject

__all__ = ["WORKFLOW_AGENT", "RunRequest"]

WORKFLOW_AGENT = "claude_code"
"""The agent that carries out the runs of workflows."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One question to an agent. Texts, media and names are checked by the door that they came in by."""

    agent_name: str
    text: str
    media: tuple[BinaryContent, ...] = ()
    session_id: uuid.UUID | None = None
    """The session to go on with; an unknown one is made with this id."""
    session_name: str | None = None
    """The session's name; an unknown one is made. Names are unique for each user."""
    user_id: uuid.UUID | None = None
    message_limit: int | None = None
    """How many messages of the session the model sees at the most; None: the agent's config says."""
    context: JsonObject = field(default_factory=dict[str, Json])
    system_prompt: str | None = None
    model: str | None = None
    prompt_status_key: str = DEFAULT_STATUS_KEY
    """Which of the agent's active prompts is used."""
    prompt_variables: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout_seconds: float | None = None
    priority: int = 0
    """In the queue: smaller numbers go first."""
    queue_timeout_seconds: float | None = None
    """How long the run may wait in the queue; None: the platform's setting says."""
    metadata: JsonObject = field(default_factory=dict[str, Json])
    """Fields without effect that the caller sent: kept and shown."""
    session_origin: str | None = None
    history: Sequence[ModelMessage] | None = None
    """The conversation so far, where the caller keeps it; the run then belongs to no session."""

    work: JsonObject | None = None
    """What the run of a workflow is asked besides: `workflow`, its name, `repository` and what else its agent takes."""

    stored_media: Sequence[Json] = ()
    """The media of a request that was stored, as `media_contents` in its run's input; they are read when the run begins."""

    @property
    def has_session(self) -> bool:
        """Whether the turn is kept in a session."""
        return self.history is None

    @property
    def kind(self) -> str:
        """What kind of run it is: `agent` or `workflow`."""
        return "agent" if self.work is None else "workflow"

    @property
    def name(self) -> str:
        """The run's name: its agent's or its workflow's."""
        return self.agent_name if self.work is None else str(self.work["workflow"])

    def to_input(self, *, media: Sequence[Json] | None = None) -> JsonObject:
        """What is stored as the run's `input`: the request's own words, all that is needed to carry it out later.

        `media` stands for the request's media; without it they stand there whole.
        """
        stored: JsonObject = {"message_content": self.text}
        if media is None:
            media = self.stored_media or [
                {"mime_type": item.media_type, "data": base64.b64encode(item.data).decode()} for item in self.media
            ]
        if media:
            stored["media_contents"] = list(media)
        optional: dict[str, Json] = {
            "session_name": self.session_name,
            "message_limit": self.message_limit,
            "system_prompt": self.system_prompt,
            "model": self.model,
            "timeout_seconds": self.timeout_seconds,
            "priority": self.priority or None,
            "queue_timeout_seconds": self.queue_timeout_seconds,
            "session_origin": self.session_origin,
            "prompt_status_key": None if self.prompt_status_key == DEFAULT_STATUS_KEY else self.prompt_status_key,
            "context": self.context or None,
            "prompt_variables": cast("JsonObject", dict(self.prompt_variables)) or None,
            "metadata": self.metadata or None,
            "has_session": None if self.has_session else False,
            "work": self.work,
        }
        stored.update({name: value for name, value in optional.items() if value is not None})
        return stored

    @classmethod
    def from_row(cls, row: RunRow) -> "RunRequest":
        """The request that the run was accepted with."""
        labels = cast("dict[str, str]", row.labels)
        stored = row.input or {}
        agent_name = row.name if row.kind == "agent" else WORKFLOW_AGENT
        return cls.from_input(agent_name, stored, session_id=row.session_id, user_id=row.user_id, labels=labels)

    @classmethod
    def from_input(
        cls,
        agent_name: str,
        stored: JsonObject,
        *,
        session_id: uuid.UUID | None = None,
        user_id: uuid.UUID | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> "RunRequest":
        """The request that `to_input` stored, with what it leaves to columns of its own."""
        return cls(
            agent_name=agent_name,
            text=cast("str", stored["message_content"]),
            stored_media=cast("list[Json]", stored.get("media_contents") or []),
            session_id=session_id,
            session_name=cast("str | None", stored.get("session_name")) if session_id is None else None,
            user_id=user_id,
            message_limit=cast("int | None", stored.get("message_limit")),
            context=cast("JsonObject", stored.get("context") or {}),
            system_prompt=cast("str | None", stored.get("system_prompt")),
            model=cast("str | None", stored.get("model")),
            prompt_status_key=cast("str", stored.get("prompt_status_key", DEFAULT_STATUS_KEY)),
            prompt_variables=cast("dict[str, str]", stored.get("prompt_variables") or {}),
            labels=labels or {},
            timeout_seconds=cast("float | None", stored.get("timeout_seconds")),
            priority=cast("int", stored.get("priority", 0)),
            queue_timeout_seconds=cast("float | None", stored.get("queue_timeout_seconds")),
            metadata=cast("JsonObject", stored.get("metadata") or {}),
            session_origin=cast("str | None", stored.get("session_origin")),
            work=cast("JsonObject | None", stored.get("work")),
        )
