"""run_agent: one run of a Pydantic AI agent, with its events told as they happen."""

from collections.abc import AsyncIterable, Sequence
from dataclasses import replace
from typing import Any

from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    RunUsage,
    UsageLimits,
    UserError,
)
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    AgentStreamEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRunResult
from pydantic_core import to_json
from pydantic_graph import End

from automagik.agents.agent import AgentInput, AgentResponse, RunOptions
from automagik.agents.telling import TellingModel, may_tell
from automagik.errors import Internal, RunFailed
from automagik.memory import clean_text, to_clean_json
from automagik.providers import cost
from automagik.tools import AgentContext
from automagik.types import Json, JsonObject, Usage

__all__ = ["run_agent", "usage_of"]


def usage_of(used: RunUsage) -> Usage:
    """Pydantic AI's count of a run in ours, also of one that failed. The cost is what is known of it, None where nothing is."""
    return Usage(
        requests=used.requests,
        tool_calls=used.tool_calls,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cache_read_tokens=used.cache_read_tokens,
        cache_write_tokens=used.cache_write_tokens,
        cost_usd=used.cost,
    )


async def run_agent(
    agent: Agent[Any, Any],
    message: AgentInput,
    options: RunOptions,
    *,
    model: Model | None,
    limits: UsageLimits,
    model_name: str | None = None,
    capabilities: Sequence[AbstractCapability[AgentContext]] | None = None,
) -> AgentResponse:
    """The answer of `agent` to `message`. `options.instructions` reach the model as they are, never as a template.

    `model` None leaves the choice to the agent itself; `model_name` is what the response says where the model doesn't.

    Raises: exceptions of Pydantic AI for what model or tool did; RunFailed (`policy`) for a tool that needs approval.
    """
    told = _Told(options)
    try:
        return await _run(agent, message, options, told, model, limits, model_name, capabilities)
    except UserError as error:
        if DeferredToolRequests.__name__ in error.message:  # an agent whose author did not reckon with approvals
            raise _needs_a_person(told.calls[-1:]) from error
        raise


async def _run(
    agent: Agent[Any, Any],
    message: AgentInput,
    options: RunOptions,
    told: "_Told",
    model: Model | None,
    limits: UsageLimits,
    model_name: str | None,
    capabilities: Sequence[AbstractCapability[AgentContext]] | None,
) -> AgentResponse:
    used = options.usage if options.usage is not None else RunUsage()
    context = options.context
    telling: TellingModel | None = None
    if options.stream and model is not None and not capabilities and may_tell(agent, model, limits):
        telling = TellingModel(model, told.text_of, used)
    async with agent.iter(
        [message.text, *message.media] if message.media else message.text,
        message_history=options.history or None,
        model=telling or model,
        instructions=options.instructions,
        deps=context,
        usage_limits=limits,
        usage=used,
        run_id=context.run_id or None,
        conversation_id=str(context.session_id) if context.session_id is not None else None,
        infer_name=False,
        capabilities=capabilities,
    ) as run:
        node = run.next_node
        while not isinstance(node, End):
            if options.stream and Agent.is_model_request_node(node):
                if telling is not None:
                    node = await telling.during(run.next(node))
                    continue
                async with node.stream(run.ctx) as events:
                    await told.text_of(events)
            elif Agent.is_call_tools_node(node):
                told.message(node.model_response)
                if any(isinstance(part, ToolCallPart) for part in node.model_response.parts):
                    async with node.stream(run.ctx) as events:
                        await told.tools_of(events)
            node = await run.next(node)
        result = run.result
    if result is None:
        raise Internal("The agent's run ended without a result.")
    return await _response(result, told, used, options, model_name)


async def _response(
    result: AgentRunResult[Any], told: "_Told", used: RunUsage, options: RunOptions, model_name: str | None
) -> AgentResponse:
    output: object = result.output
    if isinstance(output, DeferredToolRequests):
        raise _needs_a_person([{"tool_name": call.tool_name} for call in (*output.approvals, *output.calls)])
    data: Json = None
    if isinstance(output, str):
        text = clean_text(output)
    else:
        data = await options.keep(output)
        text = "" if data is None else to_json(data).decode()
    messages = result.new_messages()
    spent = cost([message for message in messages if isinstance(message, ModelResponse)])
    return AgentResponse(
        message=text,
        data=data,
        new_messages=messages,
        usage=replace(usage_of(used), cost_usd=spent),
        tool_calls=told.calls,
        tool_outputs=told.outputs,
        instructions=options.instructions,
        model=result.response.model_name or model_name,
    )


def _needs_a_person(calls: Sequence[JsonObject]) -> RunFailed:
    names = ", ".join(dict.fromkeys(str(call["tool_name"]) for call in calls))
    return RunFailed(
        f"The agent called '{names}', which waits for a person's approval or is carried out elsewhere.",
        outcome="policy",
        hint="Take the tool from the agent, or let it do without approval.",
    )


class _Told:
    """What one run has told of itself so far."""

    __slots__ = ("_emit", "_keep", "_settle", "calls", "outputs")

    def __init__(self, options: RunOptions) -> None:
        self._emit = options.emit
        self._settle = options.settle
        self._keep = options.keep
        self.calls: list[JsonObject] = []
        self.outputs: list[JsonObject] = []

    async def text_of(self, events: AsyncIterable[AgentStreamEvent]) -> None:
        """Tell text and thinking as they come; the first of it stands in the part's start, not in a delta."""
        async for event in events:
            if isinstance(event, PartDeltaEvent):
                delta = event.delta
                if isinstance(delta, TextPartDelta):
                    self._piece("text_delta", delta.content_delta)
                elif isinstance(delta, ThinkingPartDelta):
                    self._piece("thinking_delta", delta.content_delta)
            elif isinstance(event, PartStartEvent):
                part = event.part
                if isinstance(part, TextPart):
                    self._piece("text_delta", part.content)
                elif isinstance(part, ThinkingPart):
                    self._piece("thinking_delta", part.content)

    def message(self, response: ModelResponse) -> None:
        """Tell the text of a response that is complete."""
        if text := response.text:
            self._emit("message_completed", {"text": clean_text(text)})

    async def tools_of(self, events: AsyncIterable[AgentStreamEvent]) -> None:
        """Tell the calls of functions and what came of them. A call that delivers the structured output is no such call.

        Pydantic AI carries out calls only when all of them were taken from `events`, so each is written down before.
        """
        async for event in events:
            if isinstance(event, FunctionToolCallEvent):
                self._call(event.part)
                await self._settle()
            elif isinstance(event, FunctionToolResultEvent):
                await self._result(event.part)

    def _piece(self, kind: str, text: str | None) -> None:
        if text:
            self._emit(kind, {"text": clean_text(text)})

    def _call(self, part: ToolCallPart) -> None:
        call: JsonObject = {
            "tool_call_id": part.tool_call_id,
            "tool_name": part.tool_name,
            "args": to_clean_json(part.args_as_dict()),
        }
        self.calls.append(call)
        self._emit("tool_call", call)

    async def _result(self, part: ToolReturnPart) -> None:
        content = await self._keep(part.content)
        output: JsonObject = {"tool_call_id": part.tool_call_id, "tool_name": part.tool_name, "content": content}
        self.outputs.append(output)
        self._emit("tool_result", {**output, "is_error": part.outcome != "success"})
