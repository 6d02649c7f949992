"""Permissions: whether a caller may ask what a request asks."""

from dataclasses import replace

from automagik.agents import AgentFactory, AutomagikAgent
from automagik.errors import MissingScope, NotFound, OverrideNotAllowed
from automagik.memory import DEFAULT_STATUS_KEY
from automagik.providers import ModelRegistry
from automagik.runs.request import RunRequest
from automagik.types import Caller

__all__ = ["Permissions"]


class Permissions:
    """What callers may ask of which agents."""

    def __init__(self, agents: AgentFactory, models: ModelRegistry) -> None:
        self._agents = agents
        self._models = models

    async def check(self, request: RunRequest, caller: Caller) -> tuple[AutomagikAgent, RunRequest]:
        """The agent that is asked, and the request with the user that the caller's key is bound to.

        Raises:
            NotFound: there is no such agent or user, or the caller may know of none.
            MissingScope, OverrideNotAllowed: the caller may not ask that.
            InvalidInput: a model, variable or status key can't be.
        """
        await self._agents.refresh()
        agent = self._agent_for(request, caller)
        request = _owned(request, caller)
        if request.work is not None:
            work = await agent.check_work(request.work, caller, variables=request.prompt_variables)
            return agent, replace(request, work=work)
        await self._check_overrides(agent, request, caller)
        return agent, request

    def _agent_for(self, request: RunRequest, caller: Caller) -> AutomagikAgent:
        if request.work is not None:  # whose scope is the workflow's: the agent itself checks it
            return self._agents.get_agent(request.agent_name)
        scope = f"agents:{request.agent_name}:run"
        try:
            agent = self._agents.get_agent(request.agent_name)
        except NotFound:
            if caller.allows(scope) and self._agents.is_broken(request.agent_name):
                raise
            names = [name for name in self._agents.names() if caller.allows(f"agents:{name}:run")]
            raise NotFound("agent", request.agent_name, known=names) from None
        if not caller.allows(scope):
            raise MissingScope(scope)
        return agent

    async def _check_overrides(self, agent: AutomagikAgent, request: RunRequest, caller: Caller) -> None:
        may_override = caller.allows("agents:write")
        if request.model is not None:
            if not (may_override or agent.config.allows_model(request.model)):
                raise OverrideNotAllowed(
                    f"The agent '{request.agent_name}' does not open `model` '{request.model}' to this key.",
                    hint="Leave `model` out, or ask an administrator to add it to the agent's `allow_overrides`.",
                )
            await self._models.resolve(request.model)
        if request.system_prompt is not None and not (may_override or "system_prompt" in agent.config.allow_overrides):
            raise OverrideNotAllowed(
                f"The agent '{request.agent_name}' does not open `system_prompt` to this key.",
                hint="Leave `system_prompt` out, or ask an administrator to add it to the agent's `allow_overrides`.",
            )
        agent.check_prompt_variables(request.prompt_variables)
        if request.prompt_status_key != DEFAULT_STATUS_KEY:
            await agent.load_active_prompt_template(request.prompt_status_key)


def _owned(request: RunRequest, caller: Caller) -> RunRequest:
    if caller.user_id is None or request.user_id == caller.user_id:
        return request
    if request.user_id is not None:
        raise NotFound("user", str(request.user_id), hint="This key is bound to another user; leave `user_id` out.")
    return replace(request, user_id=caller.user_id)
