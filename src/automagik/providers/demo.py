"""The `demo` model: no language model, but it streams, calls tools and keeps to schemas, so that everything can be tried.

It is deterministic: the same conversation and tools give the same answer. Every answer says what it is.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextContent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext, ToolDefinition
from pydantic_ai.usage import RequestUsage

from automagik.providers.filling import Filler, words

__all__ = ["DEMO_MODEL", "DEMO_NOTICE", "DemoModel"]

DEMO_MODEL = "demo"
"""Its name in settings, agents and requests."""

DEMO_NOTICE = (
    "I am the built-in demo, not a language model: set AUTOMAGIK_MODEL "
    "(for example openai:gpt-6.1-sol, with OPENAI_API_KEY) to get real answers."
)
"""What every answer ends with."""

_MAX_QUOTED = 300
_MAX_TOOLS = 3
_CHARS_PER_TOKEN = 4
_OVERHEAD = 50
_VERBS = frozenset({"get", "set", "run", "use", "make", "do", "is"})
_SMALL = frozenset(
    {"a", "an", "and", "the", "of", "for", "from", "with", "to", "in", "on", "by", "or", "my", "me", "it"}
)
_NO_NOUNS = _VERBS | _SMALL | {"all", "any", "new", "this", "that", "current", "tool"}
_SYNONYMS = {"remember": ("store", "memory"), "recall": ("get", "memory"), "forget": ("delete", "memory")}


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the model knows when it is asked: the newest user message and what happened since."""

    prompt: str
    media: tuple[str, ...]
    count: int
    """How many user messages there were, this one included."""
    earlier: tuple[str, ...]
    called: frozenset[str]
    outcomes: tuple[str, ...]
    """One sentence for each tool that answered."""


class DemoModel(FunctionModel):
    """The model. It costs nothing; its token counts are estimates."""

    def __init__(self) -> None:
        super().__init__(_answer, stream_function=_stream, model_name=DEMO_MODEL)

    @property
    def system(self) -> str:
        """The provider's name in traces."""
        return DEMO_MODEL

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """One answer, word by word."""
        async with super().request_stream(messages, model_settings, model_request_parameters, run_context) as stream:
            # Said before the first event, so that the run's price is known to be nothing and isn't looked up.
            stream.usage.input_tokens = _input_tokens(messages)
            stream.usage.cost = Decimal(0)
            yield stream


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    decided = _decide(messages, info)
    parts = [TextPart(decided)] if isinstance(decided, str) else list(decided)
    said = decided if isinstance(decided, str) else "".join(call.args_as_json_str() for call in decided)
    used = RequestUsage(input_tokens=_input_tokens(messages), output_tokens=1 + len(said) // _CHARS_PER_TOKEN)
    used.cost = Decimal(0)
    return ModelResponse(parts=parts, usage=used)


async def _stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    decided = _decide(messages, info)
    if isinstance(decided, str):
        for piece in re.findall(r"\s*\S+\s*$|\s*\S+", decided):
            yield piece
        return
    for index, call in enumerate(decided):
        yield {index: DeltaToolCall(call.tool_name, call.args_as_json_str(), tool_call_id=call.tool_call_id)}


def _decide(messages: list[ModelMessage], info: AgentInfo) -> str | list[ToolCallPart]:
    turn = _read(messages)
    chosen = [] if turn.called else _choose(turn.prompt, info.function_tools)
    if not chosen and info.output_tools and not info.allow_text_output:
        chosen = [(info.output_tools[0], "")]
    if chosen:
        filler = Filler(turn.prompt, DEMO_NOTICE)
        return [
            ToolCallPart(
                tool.name,
                filler.arguments(tool.parameters_json_schema, after=noun),
                tool_call_id=f"demo_{len(messages)}_{index}",
            )
            for index, (tool, noun) in enumerate(chosen)
        ]
    output = info.model_request_parameters.output_object
    if output is not None:  # native or prompted structured output: the text itself is the value
        return orjson.dumps(Filler(turn.prompt, DEMO_NOTICE).arguments(output.json_schema)).decode()
    return _text(turn, info)


def _read(messages: Sequence[ModelMessage]) -> _Turn:
    prompts: list[str] = []
    media: list[str] = []
    called: set[str] = set()
    outcomes: list[str] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            called.update(part.tool_name for part in message.parts if isinstance(part, ToolCallPart))
            continue
        if any(isinstance(part, UserPromptPart) for part in message.parts):
            called, outcomes, media = set(), [], []
            prompts.append(" ".join(_texts(message)))
            media = _media(message)
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                verb = "answered" if part.outcome == "success" else f"gave no result ({part.outcome})"
                outcomes.append(f"The tool {part.tool_name} {verb}: “{_short(part.model_response_str())}”.")
    prompt = prompts[-1] if prompts else ""
    return _Turn(prompt, tuple(media), len(prompts), tuple(prompts[:-1]), frozenset(called), tuple(outcomes))


def _texts(message: ModelRequest) -> list[str]:
    texts: list[str] = []
    for part in message.parts:
        if isinstance(part, UserPromptPart):
            pieces = [part.content] if isinstance(part.content, str) else part.content
            texts += [piece.content for piece in pieces if isinstance(piece, TextContent)]
            texts += [piece for piece in pieces if isinstance(piece, str)]
    return texts


def _media(message: ModelRequest) -> list[str]:
    found: list[str] = []
    for part in message.parts:
        if isinstance(part, UserPromptPart) and not isinstance(part.content, str):
            for piece in part.content:
                if isinstance(piece, BinaryContent):
                    found.append(f"{piece.media_type}, {len(piece.data)} bytes")
                elif not isinstance(piece, str | TextContent):
                    found.append(piece.kind)
    return found


def _choose(prompt: str, tools: Sequence[ToolDefinition]) -> list[tuple[ToolDefinition, str]]:
    """The tools that the prompt speaks of, one for each noun, each with the word of the prompt that meant it."""
    heard: dict[str, str] = {}  # what a tool may be called -> the word that was said for it
    for said in words(prompt):
        for word in (said, *_SYNONYMS.get(said, ())):
            heard.setdefault(word, said)
    scored: list[tuple[int, int, int, str, ToolDefinition]] = []
    for index, tool in enumerate(tools):
        named = [word for word in words(tool.name.replace("_", " ")) if _said(heard, word)]
        nouns = [word for word in named if word not in _NO_NOUNS]
        if not nouns:
            described = words((tool.description or "").split(".")[0])
            nouns = [word for word in dict.fromkeys(described) if len(word) > 4 and word in heard]
            nouns = nouns if len(nouns) > 1 else []
        if nouns:
            required: list[str] = tool.parameters_json_schema.get("required", [])
            scored.append((-len(named), len(required), index, nouns[-1], tool))
    chosen: dict[str, ToolDefinition] = {}
    for *_, noun, tool in sorted(scored, key=lambda entry: entry[:3]):
        if len(chosen) < _MAX_TOOLS:
            chosen.setdefault(noun, tool)
    return [(tool, _said(heard, noun)) for noun, tool in chosen.items()]


def _said(heard: Mapping[str, str], word: str) -> str:
    """The word of the prompt that `word` was meant by, also as its part (`datetime` by `time`); empty: none."""
    if word in heard:
        return heard[word]
    return next((said for part, said in heard.items() if len(part) > 3 and word.endswith(part)), "")


def _text(turn: _Turn, info: AgentInfo) -> str:
    sentences = [f"You said: “{_short(turn.prompt)}”."]
    name = _name_said((*turn.earlier, turn.prompt))
    if re.search(r"what('s| is) my name|who am i\b", turn.prompt, re.IGNORECASE):
        sentences.append(f"You told me that your name is {name}." if name else "You have not told me your name.")
    if re.search(r"\binstructions\b", turn.prompt, re.IGNORECASE):
        sentences.append(f"My instructions are: “{_short(info.instructions or '')}”.")
    if turn.media:
        sentences.append(f"With it came: {'; '.join(turn.media)}.")
    sentences += turn.outcomes
    sentences.append(f"This is message {turn.count} from you in this conversation.")
    return " ".join([*sentences, DEMO_NOTICE])


def _name_said(prompts: Sequence[str]) -> str | None:
    for prompt in reversed(prompts):
        match = re.search(r"\bmy name is ([\w'-]{1,50})", prompt, re.IGNORECASE)
        if match is not None:
            return match[1]
    return None


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _MAX_QUOTED else one_line[: _MAX_QUOTED - 1] + "…"


def _input_tokens(messages: Sequence[ModelMessage]) -> int:
    return _OVERHEAD + sum(_size(message) for message in messages) // _CHARS_PER_TOKEN


def _size(message: ModelMessage) -> int:
    """Characters, as far as they are text."""
    if isinstance(message, ModelResponse):
        return sum(len(part.content) for part in message.parts if isinstance(part, TextPart))
    returned = sum(len(part.model_response_str()) for part in message.parts if isinstance(part, ToolReturnPart))
    return returned + sum(len(text) for text in _texts(message))
