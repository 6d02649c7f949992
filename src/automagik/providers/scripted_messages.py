"""A scripted Messages API: what a script answers to a conversation, without a network. Who serves it is somebody else:
the model gateway (`--demo`), or `automagik.testing.ScriptedMessages`.

A script is a document:

    {"rules": [
        {"name": "main",
         "when": {"prompt": "hello"},
         "turns": [
            {"text": "I write the file.",
             "tool_use": [{"name": "Write", "input": {"file_path": "{cwd}/a.txt", "content": "a"}}]},
            {"error": {"status": 529, "times": 2},
             "tool_use": [{"name": "Bash", "input": {"command": "git add a.txt && git commit -m 'Add a'"}}]},
            {"text": "Done: {last_tool_result}", "delay": 0.2, "chunk_delay": 0.05}]}],
     "default": {"text": "OK"}}

**Rules.** The first rule whose `when` fits answers; where none does, `default` does (one turn). A `when` fits if all that it
names does: `model` (a glob), `system`, `prompt`, `first_prompt` (each a part of the text: of the system prompt with all
messages of the role `system`, of the person's last words, of the first), `tools` (whether the request offers any) and
`has_tool` (a tool's name that it offers).

**Turns.** Which turn of a rule is due is counted in the conversation: the model's answers since the person's last prompt. So
an answer depends on nothing but the request, and a session that is resumed elsewhere goes on where it was. After the last
turn the last one comes again. Tool results, the client's reminders and its marks of an interruption are no prompt.

**A turn** has `thinking`, `text`, `tool_use` (a list of `name`, `input` and, if need be, `id`); `stop_reason` (else `tool_use` or
`end_turn`); `usage` (figures instead of the estimates: `input_tokens`, `cache_creation_input_tokens`,
`cache_read_input_tokens`, `output_tokens`); `delay` (seconds before it begins), `chunk_delay` (seconds between chunks of a stream);
`error` (`status`, and if need be `type`, `message`, `headers`, `retry_after`, `times`); `fault` (`kind`: `cut`, `error`, `garbage`,
`hang`, `refuse`; `after` so many chunks; `times`). `times` says how often the same request meets it before it is answered.

In texts and inputs `{cwd}`, `{last_tool_result}`, `{prompt}`, `{first_prompt}`, `{model}` and `{turn}` are filled in.

Token counts are estimates (four characters a token), the same for the same request; `max_tokens` cuts an answer as the API does.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from automagik.errors import InvalidInput
from automagik.providers.scripted_answer import ScriptedAnswer, ScriptedError, ScriptedTurn, answer_of
from automagik.providers.scripted_conversation import Conversation
from automagik.providers.scripted_demo import demo_turn
from automagik.types import JsonObject

__all__ = ["DEMO_SCRIPT", "Script"]

Choose = Callable[[Conversation], tuple[str, ScriptedTurn]]

_MALFORMED = ScriptedTurn(
    error=ScriptedError(status=400, message="The request is no conversation: `messages` must be a list of messages.")
)


class _When(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    system: str | None = None
    prompt: str | None = None
    first_prompt: str | None = None
    tools: bool | None = None
    has_tool: str | None = None

    def fits(self, conversation: Conversation) -> bool:
        """Whether all that is named fits."""
        return (
            (self.model is None or fnmatchcase(conversation.model, self.model))
            and (self.system is None or self.system in conversation.system)
            and (self.prompt is None or self.prompt in conversation.prompt)
            and (self.first_prompt is None or self.first_prompt in conversation.first_prompt)
            and (self.tools is None or self.tools is bool(conversation.tools))
            and (self.has_tool is None or self.has_tool in conversation.tools)
        )


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    when: _When = _When()
    turns: tuple[ScriptedTurn, ...]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[_Rule, ...] = ()
    default: ScriptedTurn = ScriptedTurn(text="OK")

    def choose(self, conversation: Conversation) -> tuple[str, ScriptedTurn]:
        """The turn that is due, with its rule's name."""
        for number, rule in enumerate(self.rules):
            if rule.turns and rule.when.fits(conversation):
                return rule.name or f"rules[{number}]", rule.turns[min(conversation.turn, len(rule.turns) - 1)]
        return "default", self.default


class Script:
    """What is answered to which conversation: by a document (`parse`), or by a function of the conversation."""

    def __init__(self, choose: Choose) -> None:
        """`choose` gives the turn that is due, and a name for why it is."""
        self._choose = choose

    @classmethod
    def parse(cls, data: JsonObject) -> Self:
        """The script of a document as the module's text describes it.

        Raises: InvalidInput that names the first place that is wrong, as `rules[0].turns[1].delay`.
        """
        try:
            document = _Document.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
            raise InvalidInput(
                f"The script is wrong at {place or 'its top'}: {first['msg']}.",
                field=("script", *first["loc"]),
                hint="The format is described in automagik.providers.scripted_messages.",
            ) from error
        return cls(document.choose)

    def answer(self, request: JsonObject, *, attempt: int = 0) -> ScriptedAnswer:
        """What is answered to a request of the Messages API. The same request and `attempt` get the same answer.

        `attempt` counts how often the same was asked before: errors and faults with `times` go by it.
        """
        try:
            conversation = Conversation.of(request)
        except orjson.JSONEncodeError:  # nested too deeply
            return answer_of(_MALFORMED, Conversation.of({}), rule="malformed")
        if not isinstance(request.get("messages"), list):
            return answer_of(_MALFORMED, conversation, rule="malformed")
        rule, turn = self._choose(conversation)
        return answer_of(turn, conversation, rule=rule, attempt=attempt)


DEMO_SCRIPT = Script(demo_turn)
"""What `automagik workflows run ... --demo` runs on: it says that it is scripted and no language model, looks around, writes a small
file, commits it and reports, with the tools that the request offers."""
