"""AutomagikAgent: one agent, built once and shared by all its runs; whatever belongs to a run travels in its options."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

from pydantic_ai import BinaryContent, ModelMessage, RunUsage, UsageLimits
from pydantic_ai.models import Model
from pydantic_ai.models.instrumented import InstrumentationSettings

from automagik.agents.budgeted import BudgetedModel
from automagik.agents.config import AgentConfig
from automagik.budget import Ledger, Party, Prices
from automagik.errors import Internal, InvalidInput, RunFailed, nearest
from automagik.memory import BUILTIN_VARIABLES, DEFAULT_STATUS_KEY, Prompts, PromptTemplate, to_clean_json
from automagik.providers import ModelRegistry
from automagik.tools import AgentContext, ToolRegistry
from automagik.types import Caller, Clock, Json, JsonObject, Usage

__all__ = [
    "AgentDependencies",
    "AgentInput",
    "AgentResponse",
    "AutomagikAgent",
    "RunOptions",
]

_NO_JSON: Mapping[str, Json] = MappingProxyType({})


def _discard(kind: str, data: JsonObject) -> None:
    """Where events go when nobody listens."""


def _discard_stop(stop: Callable[[], None]) -> None:
    """Where what stops a run goes when nobody stops it."""


def _forget(details: JsonObject) -> None:
    """Where details go when nobody shows them."""


async def _as_json(content: object) -> Json:
    """What becomes of media where nobody keeps them: base64."""
    return to_clean_json(content)


async def _nothing() -> None:
    """What is awaited where nothing has to be written down."""


@dataclass(frozen=True, slots=True)
class AgentDependencies:
    """What every agent is given when it is bound: the rooms below it."""

    models: ModelRegistry
    prompts: Prompts
    tools: ToolRegistry
    clock: Clock
    default_fallbacks: tuple[str, ...] = ()
    """Models tried when the platform's default model fails, for agents that name no model."""
    instrumentation: InstrumentationSettings | None = None
    """How the agents' runs are traced; None: not at all."""
    ledger: Ledger | None = None
    """Where runs reserve what models cost; None: nothing is limited."""
    prices: Prices | None = None
    """What models cost; there is one where there is a ledger."""


@dataclass(frozen=True, slots=True)
class AgentInput:
    """What the user sent: a text and media."""

    text: str
    media: tuple[BinaryContent, ...] = ()


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What belongs to one run."""

    context: AgentContext
    """Whom the run is for."""
    history: Sequence[ModelMessage] = ()
    """The conversation so far."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    """Memory variables found for session, user and agent, the nearest having won."""
    model: str | None = None
    """A model instead of the config's; whoever passes it has checked that the caller may."""
    system_prompt: str | None = None
    """A prompt instead of the agent's, taken literally; whoever passes it has checked that the caller may."""
    status_key: str = DEFAULT_STATUS_KEY
    """Which of the agent's active prompts is filled."""
    instructions: str | None = None
    """The filled prompt; `process_message` sets it for `run`."""
    stream: bool = False
    """Whether text is wanted as it comes."""
    emit: Callable[[str, JsonObject], None] = _discard
    """Takes what happens, on the loop: `text_delta`, `thinking_delta` and `message_completed` with `text`; `tool_call` with
    `tool_call_id`, `tool_name`, `args`; `tool_result` with `tool_call_id`, `tool_name`, `content`, `is_error`."""
    settle: Callable[[], Awaitable[None]] = _nothing
    """Awaited between a `tool_call` that was told and the tool's work: returns when the call is written down, for a run that
    may be taken over by another worker."""
    keep: Callable[[object], Awaitable[Json]] = _as_json
    """Gives what a tool gave or a model made as JSON that can be sent and stored; large media are kept elsewhere."""
    usage_limits: UsageLimits | None = None
    """Limits instead of the config's."""
    usage: RunUsage | None = None
    """Counts while the run goes on, so that its holder knows what a run used that then failed."""
    owner: str = ""
    """The executor that the run belongs to: what every write for it names."""
    party: Party | None = None
    """Whom the run's calls of models belong to, and so in which budgets they count; None: in none."""
    on_stop: Callable[[Callable[[], None]], None] = _discard_stop
    """Takes what stops the run when a person wants that, for an agent whose work outlives the process: it is called once that is
    asked, also where it was asked before. Where the agent's task is cancelled all the same, the run is left to whoever takes it
    over, so that what works for it must go on."""
    describe: Callable[[JsonObject], None] = _forget
    """Takes what a workflow's run tells besides, as it was stored: its workspace, turns and executor."""


@dataclass(frozen=True, slots=True)
class AgentResponse:
    """What an agent answered."""

    message: str
    """The answer as text; of a structured output its JSON."""
    data: Json
    """The structured output, None where the answer is a text."""
    new_messages: list[ModelMessage]
    """What this run added to the conversation."""
    usage: Usage
    tool_calls: list[JsonObject]
    """`tool_name`, `args`, `tool_call_id` of each, in order."""
    tool_outputs: list[JsonObject]
    """`tool_name`, `content`, `tool_call_id` of each, in order."""
    instructions: str | None = None
    """The prompt that the model was given."""
    model: str | None = None
    """The model that answered."""
    failure: RunFailed | None = None
    """Why the run failed all the same: what was made until then is kept with it."""


class AutomagikAgent(ABC):
    """One agent. It holds no state of a run: any number of runs share it.

    A subclass sets `name` and `config` on the class (or gives them to the constructor) and writes `run`; it is bound to
    the platform once, by the factory.
    """

    name: str = ""
    config: AgentConfig = AgentConfig()
    agent_type: ClassVar[str] = "custom"
    """What kind of agent it is, as shown in lists."""
    outlives_process: ClassVar[bool] = False
    """Whether what works for its runs goes on when this process dies, so that a run is found again by a worker of the same host
    instead of being repeated. Such an agent keeps to the run's limit of time itself."""

    _code_prompt_text: str = ""
    """The prompt written in code; empty: the config's `instructions`."""

    def __init__(self, *, name: str | None = None, config: AgentConfig | None = None) -> None:
        if name is not None:
            self.name = name
        if config is not None:
            self.config = config
        self.context: Mapping[str, Json] = _NO_JSON
        """What is known of the agent besides its config: its `source`."""
        self.db_id: int = 0
        """The agent's key in the store; 0 until it is bound."""
        self._dependencies: AgentDependencies | None = None
        self._template = PromptTemplate.parse("")
        self._limits = self.config.usage_limits

    @property
    def dependencies(self) -> AgentDependencies:
        """The rooms that the agent uses. Raises Internal before it is bound."""
        if self._dependencies is None:
            raise Internal(f"The agent '{self.name}' is not bound to a platform.")
        return self._dependencies

    @property
    def code_prompt(self) -> str:
        """The prompt that the agent brings along, as a template."""
        return self._code_prompt_text or self.config.instructions

    @property
    def usage_limits(self) -> UsageLimits:
        """The limits that the config sets for each run."""
        return self._limits

    def bind(self, dependencies: AgentDependencies, *, db_id: int, context: Mapping[str, Json] = _NO_JSON) -> None:
        """Give the agent its dependencies and its key, once, and build what it runs with.

        Raises: AutomagikError for a tool, capability or template that the platform refuses.
        """
        self._dependencies = dependencies
        self.db_id = db_id
        self.context = context
        self._limits = self.config.usage_limits
        self._template = PromptTemplate.parse(self.code_prompt, field=("instructions",))
        self.build()

    def build(self) -> None:  # noqa: B027 - only who has something to build needs it
        """Build what runs are carried out with; called once, when the agent is bound."""

    @property
    def known_variables(self) -> frozenset[str]:
        """The names that the agent's prompt may use, whatever memories there are."""
        return frozenset((*BUILTIN_VARIABLES, *self.config.variables))

    async def initialize_prompts(self) -> None:
        """Store the prompt written in code as a version, and load the active one.

        Raises: InvalidInput where the prompt uses a name that is not known.
        """
        if self.code_prompt:
            await self.dependencies.prompts.register_from_code(
                self.db_id, self.code_prompt, known=self.known_variables, field=("instructions",)
            )
        await self.load_active_prompt_template()

    async def load_active_prompt_template(self, status_key: str = DEFAULT_STATUS_KEY) -> PromptTemplate:
        """The active template of a status key; of the default one, else the template written in code.

        Raises: InvalidInput where no prompt of another status key is active.
        """
        active = await self.dependencies.prompts.active_template(self.db_id, status_key)
        if active is None and status_key != DEFAULT_STATUS_KEY:
            raise InvalidInput(
                f"The agent '{self.name}' has no active prompt with the status key '{status_key}'.",
                field=("body", "prompt_status_key"),
                code="unknown_status_key",
                hint=f"Leave it out, or activate one: GET /api/v1/prompts?agent_name={self.name} lists them.",
            )
        return self._template if active is None else active

    def variable_names(self, status_key: str = DEFAULT_STATUS_KEY) -> tuple[str, ...]:
        """The names in the active prompt: what a run's memory variables are asked for by."""
        cached = self.dependencies.prompts.cached_template(self.db_id, status_key)
        return (cached or self._template).names

    def check_prompt_variables(
        self, given: Mapping[str, str], *, at: Sequence[str | int] = ("body", "prompt_variables")
    ) -> None:
        """Refuse a request's variable that the config doesn't declare.

        Raises: InvalidInput with the nearest declared name.
        """
        declared = self.config.variables
        for name in given:
            if name not in declared:
                close = nearest(name, declared)
                raise InvalidInput(
                    f"The agent '{self.name}' declares no variable '{name}'.",
                    field=(*at, name),
                    code="unknown_variable",
                    hint=f"Did you mean '{close}'?"
                    if close
                    else f"Declared are: {', '.join(sorted(declared)) or 'none'}.",
                )

    async def get_filled_system_prompt(self, options: RunOptions) -> str | None:
        """The prompt for one run, filled in one pass; None where there is none.

        What fills a place, the later winning: what every prompt knows (`BUILTIN_VARIABLES`), the declared defaults, the
        memory variables, the request's own variables. A place without any becomes empty.
        """
        if options.system_prompt is not None:
            return options.system_prompt or None
        asked = self.variable_names(options.status_key)
        template = await self.load_active_prompt_template(options.status_key)
        if not template.names:
            return template.pieces[0] or None
        remembered = options.variables
        if not set(template.names).issubset(asked):  # another process activated it after this run had begun
            remembered = await options.context.memory.values(template.names)
        values = {**self._builtins(options.context), **self.config.variables, **remembered, **options.context.variables}
        return template.fill(values) or None

    def _builtins(self, context: AgentContext) -> dict[str, str]:
        now = self.dependencies.clock.now()
        return {
            "agent_name": self.name,
            "session_id": str(context.session_id or ""),
            "user_id": str(context.user_id or ""),
            "run_id": context.run_id,
            "current_date": now.strftime("%Y-%m-%d"),
            "current_time": now.strftime("%H:%M UTC"),
        }

    async def model_for(self, options: RunOptions) -> Model | None:
        """The model of a run: the request's, the config's with its fallbacks, else the platform's default with its own.

        Where a budget limits the run, it is one that asks the ledger before each request.

        Raises: InvalidInput for the request's; RunFailed (`model_error`) where one of the agent's own can't be had.
        """
        return self.limited(await self._chosen_model(options), options)

    def limited(self, model: Model, options: RunOptions) -> Model:
        """One that asks the ledger before each request; where budgets know nothing of the run, the model itself."""
        ledger, prices, party = self.dependencies.ledger, self.dependencies.prices, options.party
        if ledger is None or prices is None or party is None:
            return model
        return BudgetedModel(
            model, ledger=ledger, prices=prices, party=party, clock=self.dependencies.clock, tell=options.emit
        )

    async def _chosen_model(self, options: RunOptions) -> Model:
        models = self.dependencies.models
        if options.model is not None:
            return models.cached(options.model) or await models.resolve(options.model)
        config = self.config
        if config.model is not None:
            names = (config.model, *config.fallback_models)
        else:
            default = await models.default_model_name()
            names = (default, *(config.fallback_models or self.dependencies.default_fallbacks))
        try:
            return models.cached(*names) or await models.with_fallbacks(names)
        except InvalidInput as wrong:
            raise RunFailed(wrong.detail, outcome="model_error", hint=wrong.hint) from wrong

    def only_reads(self, tool_name: str) -> bool:
        """Whether a tool changes nothing, so that a run that called it may be repeated. What is not known counts as writing."""
        del tool_name
        return False

    async def check_work(self, work: JsonObject, caller: Caller, *, variables: Mapping[str, str]) -> JsonObject:
        """The work that a request asks besides its text (of a workflow: which, and on what repository), as it will be kept.

        `variables` are the request's own.

        Raises: InvalidInput for an agent that takes none; what is wrong with it for one that does; MissingScope.
        """
        del work, caller, variables
        raise InvalidInput(
            f"The agent '{self.name}' carries out no workflows.",
            field=("body", "workflow"),
            hint="Ask the agent `claude_code`, or POST /api/v1/workflows/NAME/run.",
        )

    async def process_message(self, message: AgentInput, options: RunOptions) -> AgentResponse:
        """The answer to a message: fills the prompt, then runs one turn.

        Raises: what the model raises, as exceptions of Pydantic AI; RunFailed for what the platform refuses.
        """
        return await self.run(message, replace(options, instructions=await self.get_filled_system_prompt(options)))

    @abstractmethod
    async def run(self, message: AgentInput, options: RunOptions) -> AgentResponse:
        """One turn with the model, under `options.instructions`."""

    async def cleanup(self) -> None:  # noqa: B027 - only who holds something needs it
        """Give back what the agent holds; called once, when the platform closes or the agent goes."""
