"""AgentFactory: finds the agents, wherever they were defined, binds them, and makes and changes those of the API."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, cast

import pydantic_ai
import structlog
from pydantic_ai.models.instrumented import InstrumentationSettings

from automagik.agents.agent import AgentDependencies, AutomagikAgent
from automagik.agents.config import AgentConfig, agent_document
from automagik.agents.registration import differs, register
from automagik.agents.simple import SimpleAgent
from automagik.agents.sources import BrokenAgent, Candidate, Source, cause_of, find_agents
from automagik.agents.spec import AGENT_NAME, SpecAgent
from automagik.budget import Ledger, Prices
from automagik.errors import Conflict, InvalidInput, NotFound, ServiceUnavailable
from automagik.memory import Prompts, PromptTemplate, check_text, write_again
from automagik.providers import ModelRegistry
from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.store.agents import AgentChanges
from automagik.store.rows import AgentRow
from automagik.tools import ToolRegistry
from automagik.types import Caller, Clock, SystemClock

__all__ = ["AgentFactory", "AgentInfo"]

_log = structlog.stdlib.get_logger(__name__)

_API: Source = "api"


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent as shown in lists; `error` is why it can't be used."""

    name: str
    type: str
    source: str
    """`code`, `package`, `file` or `api`."""
    location: str
    """The entry point or file that it came from; for administrators."""
    active: bool
    config: AgentConfig
    revision: int
    """Grows with each change: what `If-Match` compares."""
    created_at: datetime | None
    updated_at: datetime | None
    error: str | None = None


class AgentFactory:
    """The agents of this process. They are built once; a run takes what `get_agent` gives."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        models: ModelRegistry,
        prompts: Prompts,
        tools: ToolRegistry,
        clock: Clock | None = None,
        instrumentation: InstrumentationSettings | None = None,
        ledger: Ledger | None = None,
        prices: Prices | None = None,
        own_agents: Sequence[AutomagikAgent] = (),
    ) -> None:
        """`own_agents`: those of the platform that need more than every agent is given."""
        pydantic_ai.BANNER_ENABLED = False  # a server's terminal is its own
        self._settings = settings
        self._store = store
        self._prompts = prompts
        self._models = models
        self._clock = clock or SystemClock()
        self._dependencies = AgentDependencies(
            models=models,
            prompts=prompts,
            tools=tools,
            clock=self._clock,
            default_fallbacks=tuple(settings.fallback_models),
            instrumentation=instrumentation,
            ledger=ledger,
            prices=prices,
        )
        self._own_agents = tuple(own_agents)
        self._agents: dict[str, AutomagikAgent] = {}
        self._rows: dict[str, AgentRow] = {}
        self._locations: dict[str, str] = {}
        self._broken: list[BrokenAgent] = []
        self._changing = asyncio.Lock()
        self._refreshed_at, self._expired = 0.0, False
        self._leave = (store.signals.listen("changed", self._hear_change), store.signals.on_gap(self._expire))

    @property
    def agents_registry(self) -> Mapping[str, AutomagikAgent]:
        """All agents that can be used, by name."""
        return MappingProxyType(self._agents)

    # -- finding

    async def discover_agents(self) -> None:
        """Find, bind and register all agents: the platform's, those of packages and files, those made through the API.

        One that is broken is kept with its cause, as is the later of two that have one name; neither stops another.
        """
        async with self._changing:
            rows = {row.name: row for row in await self._store.read(lambda tx: tx.agents.all())}
            found = self._unique(find_agents(self._settings.agents_folder, own=self._own_agents), rows)
            rows |= await self._registered(found, rows)
            for candidate in found:
                await self._adopt(candidate.agent, rows[candidate.agent.name], candidate.location)
            for row in rows.values():
                if row.source == _API:
                    await self._adopt_row(row)
            self._refreshed_at = self._clock.monotonic()

    async def refresh(self, *, max_age_seconds: float = 2.0) -> None:
        """Take over what another process changed in the API's agents, where it said so or the last look is older than
        `max_age_seconds`. Whoever comes while somebody looks waits for it too, so that none gets ahead of who came before."""
        if self._clock.monotonic() - self._refreshed_at < max_age_seconds:
            return
        async with self._changing:
            if self._clock.monotonic() - self._refreshed_at < max_age_seconds:
                return
            self._expired, began = False, self._clock.monotonic()
            try:
                await self._take_over()
            finally:  # also where the store is away: those who wait don't each try it again
                if not self._expired:
                    self._refreshed_at = began

    async def _take_over(self) -> None:
        rows = {row.name: row for row in await self._store.read(lambda tx: tx.agents.all())}
        for name in [name for name, row in self._rows.items() if row.source == _API and name not in rows]:
            await self._drop(name)
        for row in rows.values():
            known = self._rows.get(row.name)
            if known is not None and (known.revision, known.id) == (row.revision, row.id):
                continue
            if row.source == _API:
                await self._adopt_row(row)
            elif known is not None:
                self._rows[row.name] = row

    # -- asking

    def get_agent(self, name: str) -> AutomagikAgent:
        """The agent of that name. Raises NotFound with the nearest name, also for one that is broken or switched off."""
        agent = self._agents.get(name)
        if agent is None or not self._rows[name].active:
            hint = "It could not be loaded: `automagik agents list` says why." if self.is_broken(name) else None
            raise NotFound("agent", name, known=self.names(), hint=hint)
        return agent

    def is_broken(self, name: str) -> bool:
        """Whether an agent of that name was found and could not be loaded."""
        return name not in self._agents and any(broken.name == name for broken in self._broken)

    def concurrency_limits(self) -> dict[str, int]:
        """How many background runs of an agent may be under way at once, for those agents that limit them."""
        limits = {name: agent.config.max_concurrent_runs for name, agent in self._agents.items()}
        return {name: most for name, most in limits.items() if most is not None}

    def names(self) -> list[str]:
        """The names of all agents that can be run, sorted."""
        return sorted(name for name in self._agents if self._rows[name].active)

    def list_available_agents(self) -> list[AgentInfo]:
        """All agents by name, broken ones with their cause."""
        infos = [self._info(name) for name in self._agents]
        infos += [
            AgentInfo(
                name=broken.name,
                type="unknown",
                source=broken.source,
                location=broken.location,
                active=False,
                config=AgentConfig(),
                revision=0,
                created_at=None,
                updated_at=None,
                error=broken.cause,
            )
            for broken in self._broken
        ]
        return sorted(infos, key=lambda info: (info.name, info.error is not None))

    def info(self, name: str) -> AgentInfo:
        """One agent. Raises NotFound with the nearest name."""
        for info in self.list_available_agents():
            if info.name == name:
                return info
        raise NotFound("agent", name, known=self._agents)

    # -- changing

    async def create(
        self,
        name: str,
        data: Mapping[str, Any],
        *,
        caller: Caller,
        request_id: str | None = None,
        field: Sequence[str | int] = ("body",),
    ) -> AgentInfo:
        """The new agent, ready to run. `data` is its config, or the flat form of a YAML file (`AgentConfig.parse`).

        Raises:
            InvalidInput: a name, key, model, tool, capability or template that can't be used; `field` is its place.
            Conflict: the name is taken.
        """
        config = AgentConfig.parse(data, field=field)
        async with self._changing:
            if AGENT_NAME.fullmatch(name) is None:
                raise InvalidInput(
                    f"{name[:80]!r} is no name of an agent.",
                    field=(*field, "name"),
                    hint="Use small letters, digits, '_' and '-'; begin with a letter; 64 characters at most.",
                )
            if name in self._agents or any(broken.name == name for broken in self._broken):
                raise _taken(name)
            await self._check(name, config, None, caller, field)

            def write(tx: Transaction) -> AgentRow:
                row = tx.agents.create(
                    name,
                    type=SpecAgent.agent_type,
                    source=_API,
                    config=config.to_json(),
                    description=config.description,
                )
                tx.audit.append("agent.create", name, caller=caller, request_id=request_id)
                return row

            await self._adopt_row(await self._store.write(write))
            return self._info(name)

    async def update(
        self,
        name: str,
        data: Mapping[str, Any],
        *,
        caller: Caller,
        active: bool | None = None,
        if_revision: int | None = None,
        request_id: str | None = None,
        field: Sequence[str | int] = ("body",),
    ) -> AgentInfo:
        """The changed agent: keys in `data` replace those of its config, None takes one away, `active` switches it.

        Raises:
            NotFound: there is no such agent.
            Conflict: it was not made through the API, so only `active` can be changed.
            PreconditionFailed: it is not at `if_revision` any more.
            InvalidInput: as in `create`.
        """
        async with self._changing:
            row = await self._row(name)
            config: AgentConfig | None = None
            if data:
                _check_editable(row)
                config = AgentConfig.parse({**agent_document(AgentConfig.parse(row.config)), **data}, field=field)
                await self._check(name, config, row, caller, field)

            def write(tx: Transaction) -> AgentRow:
                changes = AgentChanges()
                if active is not None:
                    changes["active"] = active
                if config is not None:
                    changes["config"] = config.to_json()
                    changes["description"] = config.description
                changed = tx.agents.update(name, if_revision=if_revision, **changes)
                tx.audit.append(
                    "agent.update", name, caller=caller, request_id=request_id, details={"changed": [*sorted(data)]}
                )
                return changed

            changed = await self._store.write(write)
            if row.source == _API:
                await self._adopt_row(changed)
            else:
                self._rows[name] = changed
            return self._info(name)

    async def delete(
        self, name: str, *, caller: Caller, if_revision: int | None = None, request_id: str | None = None
    ) -> None:
        """Delete an agent made through the API, with its prompts and memories; its sessions and runs stay.

        Raises: NotFound, Conflict and PreconditionFailed, as `update`.
        """
        async with self._changing:
            _check_editable(await self._row(name))

            def write(tx: Transaction) -> None:
                tx.agents.delete(name, if_revision=if_revision)
                tx.audit.append("agent.delete", name, caller=caller, request_id=request_id)

            await self._store.write(write)
            await self._drop(name)

    async def copy(
        self,
        name: str,
        new_name: str,
        changes: Mapping[str, Any],
        *,
        caller: Caller,
        request_id: str | None = None,
        field: Sequence[str | int] = ("body",),
    ) -> AgentInfo:
        """A new agent like `name`, with its active prompt, and `changes` to its config.

        Raises: NotFound; Conflict where it is more than its config (written in Python) or the new name is taken;
        InvalidInput, as `create`.
        """
        agent = self.get_agent(name)
        if agent.agent_type not in {SpecAgent.agent_type, SimpleAgent.agent_type}:
            raise Conflict(
                f"The agent '{name}' is written in Python, so there is more to it than its config.",
                hint="Subclass it, or create an agent of your own.",
            )
        template = await agent.load_active_prompt_template()
        document = {**agent_document(agent.config), "instructions": template.text, **changes}
        return await self.create(new_name, document, caller=caller, request_id=request_id, field=field)

    async def cleanup(self) -> None:
        """Let every agent give back what it holds."""
        for leave in self._leave:
            leave()
        for agent in self._agents.values():
            await agent.cleanup()

    # -- inside

    def _hear_change(self, text: str) -> None:
        if text == "agents":
            self._expire()

    def _expire(self) -> None:
        """Have the agents looked at anew when one is asked for next."""
        self._refreshed_at, self._expired = float("-inf"), True

    def _unique(self, found: Iterable[Candidate | BrokenAgent], rows: Mapping[str, AgentRow]) -> list[Candidate]:
        """Those that can be bound. Broken ones, bad names and the later of two with one name are kept as broken."""
        self._broken = []
        taken: dict[str, Candidate] = {}
        for candidate in found:
            if isinstance(candidate, BrokenAgent):
                self._break(candidate)
                continue
            name = candidate.agent.name
            row = rows.get(name)
            first = taken.get(name)
            if AGENT_NAME.fullmatch(name) is None:
                cause = "An agent's name has small letters, digits, '_' and '-', begins with a letter, 64 at most."
            elif first is not None or (row is not None and row.source == _API):
                other = first.origin if first is not None else "an agent made through the API"
                cause = f"The name is taken twice: by {other}, and by {candidate.origin}. The first is used."
            else:
                taken[name] = candidate
                continue
            self._break(BrokenAgent(name, candidate.source, candidate.location, cause))
        return list(taken.values())

    def _break(self, broken: BrokenAgent) -> None:
        self._broken.append(broken)
        _log.warning("agent_broken", agent=broken.name, source=broken.location, cause=broken.cause)

    async def _registered(self, found: Sequence[Candidate], rows: Mapping[str, AgentRow]) -> dict[str, AgentRow]:
        """The rows of `found`, written where they are not there or differ."""
        changed = [candidate for candidate in found if differs(candidate, rows.get(candidate.agent.name))]
        if not changed:
            return {}

        def write(tx: Transaction) -> dict[str, AgentRow]:
            return {candidate.agent.name: register(tx, candidate) for candidate in changed}

        return await write_again(self._store, write)

    async def _adopt(self, agent: AutomagikAgent, row: AgentRow, location: str) -> None:
        """Bind an agent and take it in, or keep it as broken."""
        try:
            agent.bind(self._dependencies, db_id=row.id, context={"source": row.source})
            await agent.initialize_prompts()
        except ServiceUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the plug-in edge: an agent's own code, or what it declares, is at fault
            self._break(BrokenAgent(row.name, _source(row), location, cause_of(error)))
            self._agents.pop(row.name, None)
            self._rows[row.name] = row
            return
        self._agents[row.name] = agent
        self._rows[row.name] = row
        self._locations[row.name] = location

    async def _adopt_row(self, row: AgentRow) -> None:
        """Take in an agent of the API as its row says, in place of what was there."""
        former = self._agents.get(row.name)
        self._mend(row.name)
        try:
            config = AgentConfig.parse(row.config)
        except InvalidInput as wrong:
            self._break(BrokenAgent(row.name, _API, "", cause_of(wrong)))
            self._rows[row.name] = row
            return
        await self._adopt(SpecAgent(row.name, config, trusted=False), row, "")
        if former is not None:
            await former.cleanup()

    def _mend(self, name: str) -> None:
        """Forget what was broken about the API's agent of that name."""
        self._broken = [broken for broken in self._broken if (broken.name, broken.source) != (name, _API)]

    async def _drop(self, name: str) -> None:
        row = self._rows.pop(name, None)
        agent = self._agents.pop(name, None)
        self._mend(name)
        if row is not None:
            self._prompts.forget(row.id)
        if agent is not None:
            await agent.cleanup()

    async def _row(self, name: str) -> AgentRow:
        row = await self._store.read(lambda tx: tx.agents.find(name))
        if row is None:
            raise NotFound("agent", name, known=self._agents)
        return row

    async def _check(
        self, name: str, config: AgentConfig, row: AgentRow | None, caller: Caller, field: Sequence[str | int]
    ) -> None:
        """Refuse a config that no agent could be built from; names and texts are what the caller gave."""
        for key, models in (("model", [config.model]), ("fallback_models", config.fallback_models)):
            for model in models:
                if model is not None:
                    await self._check_model(model, (*field, key))
        for glob in config.allowed_models:
            check_text(glob, field=(*field, "allowed_models"), max_chars=200)
        for text in config.variables.values():
            check_text(text, field=(*field, "variables"), max_chars=self._settings.max_text_chars)
        place = (*field, "instructions")
        check_text(config.instructions, field=place, max_chars=self._settings.max_text_chars)
        check_text(config.description or "", field=(*field, "description"))
        template = PromptTemplate.parse(config.instructions, field=place)
        agent_id = row.id if row is not None else None
        known = await self._store.read(lambda tx: tx.memories.known_names(agent_id, visible_to=caller.user_id))
        trial = SpecAgent(name, config, trusted=False)
        template.check_names({*trial.known_variables, *known}, field=place)
        try:
            trial.bind(self._dependencies, db_id=0)
        except InvalidInput as wrong:
            raise InvalidInput(wrong.detail, field=(*field, *wrong.field), hint=wrong.hint, code=wrong.code) from wrong

    async def _check_model(self, model: str, field: Sequence[str | int]) -> None:
        try:
            await self._models.check(model)
        except InvalidInput as wrong:
            raise InvalidInput(wrong.detail, field=field, hint=wrong.hint, code=wrong.code) from wrong

    def _info(self, name: str) -> AgentInfo:
        agent, row = self._agents.get(name), self._rows[name]
        if agent is None:
            return self.info(name)
        return AgentInfo(
            name=name,
            type=agent.agent_type,
            source=row.source,
            location=self._locations.get(name, ""),
            active=row.active,
            config=agent.config,
            revision=row.revision,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


def _source(row: AgentRow) -> Source:
    return cast("Source", row.source)


def _check_editable(row: AgentRow) -> None:
    if row.source != _API:
        raise Conflict(
            f"The agent '{row.name}' comes from a {'file' if row.source == 'file' else 'package'}, not from the API.",
            code="agent_not_editable",
            hint="Change it where it is defined, or copy it and change the copy.",
        )


def _taken(name: str) -> Conflict:
    return Conflict(
        f"There is already an agent '{name}'.", code="agent_exists", hint="Choose another name, or change that agent."
    )
