"""The composition root: the only place that picks backends and builds the services."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import structlog

from automagik.agents import AgentFactory
from automagik.artifacts import ArtifactStore, keep_pruned
from automagik.budget import Budgets, Ledger, Prices, UsageReport
from automagik.claude_code.admission import HostAdmission
from automagik.claude_code.agent import ClaudeCodeAgent
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.house import House
from automagik.claude_code.probing import Probing
from automagik.claude_code.publish import Publisher
from automagik.claude_code.reaper import forget_forever, reap_forever
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.workflow_files import Workflows
from automagik.claude_code.workspaces import Workspaces
from automagik.errors import AutomagikError, ConfigurationError
from automagik.events import EventBus
from automagik.gateway import Gateway
from automagik.memory import MemoryStore, MessageArchive, Prompts
from automagik.outbound import Outbound
from automagik.providers import ModelRegistry
from automagik.runs import RunService, Scheduler, Schedules, run_document
from automagik.runs.durable import DurableEngine
from automagik.runs.keeper import Keeper, new_executor_id
from automagik.runs.liveness import PulseLine
from automagik.runs.runtime import Runtime
from automagik.runs.worker import Carry, Engine, Worker
from automagik.sandbox.registries import RegistryFinder
from automagik.security import KeyRing
from automagik.security.rate_limits import RateLimits, hit_counter
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.store.signals import Signals
from automagik.telemetry import Metrics, Tracing
from automagik.tools import ToolRegistry
from automagik.types import Clock, SystemClock
from automagik.webhooks import Webhooks, WebhookSender

if TYPE_CHECKING:
    from automagik.events.redis_channel import RedisConnections

__all__ = ["Check", "EngineMaker", "Platform", "ReadyReport", "Role"]

_log = structlog.stdlib.get_logger(__name__)

_MOST_TOLD = 10
"""Of how many other workers it is told why they take no work."""

Role = Literal["all", "api", "worker"]
"""What a process does: answer requests, carry out queued work, or both."""

EngineMaker = Callable[[Carry, str], Engine]
"""Makes the engine of an executor: what carries out a run is given, and the executor's id."""


@dataclass(frozen=True, slots=True)
class Check:
    """How one dependency is. `detail` is for administrators."""

    name: str
    status: Literal["ok", "degraded", "failed"]
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """Whether the platform can serve: `failed` when a dependency is away, `degraded` when a plug-in is broken."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> Literal["ok", "degraded", "failed"]:
        """The worst of the checks."""
        statuses = {check.status for check in self.checks}
        return "failed" if "failed" in statuses else "degraded" if "degraded" in statuses else "ok"


@dataclass(frozen=True, slots=True)
class Platform:
    """All services of one process, open and ready."""

    settings: Settings
    clock: Clock
    store: Store
    artifacts: ArtifactStore
    keys: KeyRing
    secrets: SecretStore
    models: ModelRegistry
    outbound: Outbound
    webhooks: Webhooks
    prompts: Prompts
    memories: MemoryStore
    tools: ToolRegistry
    agents: AgentFactory
    events: EventBus
    redis: "RedisConnections | None"
    limits: RateLimits
    ledger: Ledger
    budgets: Budgets
    usage: UsageReport
    workflows: Workflows
    workspaces: Workspaces
    runs: RunService
    schedules: Schedules
    metrics: Metrics
    tracing: Tracing
    worker: Worker | None
    """What carries out queued work here; None where this process only answers requests."""
    drain: Callable[[], None]
    """Begins the end: no further queued work is taken, and readers of runs that live elsewhere are let go."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        *,
        clock: Clock | None = None,
        role: Role = "all",
        make_engine: EngineMaker | None = None,
    ) -> AsyncGenerator["Platform"]:
        """The services, opened from the floor up and closed in reverse.

        `role`: whether this process answers requests and carries out queued work (`all`), or only the one (`api`) or the other
        (`worker`). `make_engine` makes what queued work is carried out by: DBOS, unless another one is given.

        Raises:
            ConfigurationError: a setting, the database or the data folder is not as it must be.
        """
        clock = clock or SystemClock()
        host = settings.host_name or socket.gethostname()
        executor_id = new_executor_id()
        async with AsyncExitStack() as stack:
            metrics = Metrics()
            tracing = Tracing(settings)
            stack.callback(tracing.close)
            store = Store.from_settings(settings, clock, wrote=metrics.store_wrote)
            await store.open()
            stack.push_async_callback(store.close)
            await store.acquire_ownership(f"{host}:{executor_id}")
            await store.signals.open()
            artifacts = ArtifactStore(settings, store, clock)
            await artifacts.open()
            stack.push_async_callback(artifacts.close)
            stack.push_async_callback(_end, asyncio.create_task(keep_pruned(store, artifacts, settings, clock)))
            keys = KeyRing(store, clock)
            stack.push_async_callback(keys.close)
            secrets = SecretStore(store, settings)
            await secrets.open()
            models = ModelRegistry(settings)
            await models.open()
            stack.push_async_callback(models.close)
            outbound = Outbound(settings)
            await outbound.open()
            stack.push_async_callback(outbound.close)
            prices = Prices(settings, clock=clock)
            ledger = Ledger(store, clock, executor_id=lambda: runtime.executor_id)
            await ledger.open()
            stack.push_async_callback(ledger.close)
            gateway = Gateway(settings, store, ledger, prices, secrets, clock)
            stack.push_async_callback(gateway.close)
            prompts = Prompts(store, max_text_chars=settings.max_text_chars, clock=clock)
            memories = MemoryStore(store, max_text_chars=settings.max_text_chars)
            tools = ToolRegistry(clock=clock)
            tools.discover()
            house = await _open_house(
                settings, store, artifacts, outbound, ledger, gateway, secrets, clock, host, stack
            )
            claude_code = ClaudeCodeAgent(house)
            agents = AgentFactory(
                settings=settings,
                store=store,
                models=models,
                prompts=prompts,
                tools=tools,
                clock=clock,
                instrumentation=tracing.instrumentation(),
                ledger=ledger,
                prices=prices,
                own_agents=(claude_code,),
            )
            await agents.discover_agents()
            stack.push_async_callback(agents.cleanup)
            redis, signals = await _open_signals(settings, store, stack)
            events = EventBus(store, signals=signals, clock=clock)
            await events.open()
            stack.push_async_callback(events.close)
            runtime = Runtime(
                settings=settings,
                clock=clock,
                store=store,
                archive=MessageArchive(artifacts),
                agents=agents,
                memories=memories,
                events=events,
                observer=metrics,
                tracing=tracing,
                executor_id=executor_id,
            )
            worker = Worker(runtime, host=host, make_engine=make_engine or _durable_engines(settings, clock))
            keeper = Keeper(
                runtime,
                host=host,
                role=role,
                make_line=_heart_lines(settings),
                renew_worker=worker.renew,
                fault=lambda: worker.fault,
            )
            await keeper.open()
            stack.push_async_callback(keeper.close)
            stack.push_async_callback(worker.close)
            runs = RunService(runtime, models=models)
            claude_code.attach(runs)
            alone = settings.database_url is None
            runtime.settle_lost = ledger.refresh
            runtime.admits_workflows = HostAdmission(settings, house.executors, clock, alone=alone)
            metrics.active_runs.set_function(lambda: runs.live_runs)
            stack.push_async_callback(runs.close)
            limits = RateLimits(
                hit_counter(
                    store,
                    clock,
                    redis_pool=redis.pool if redis is not None else None,
                    redis_failures=redis.failures if redis is not None else (),
                )
            )
            if role == "api":
                stack.push_async_callback(_end, asyncio.create_task(forget_forever(store, house.repositories)))
            else:
                await _open_worker(worker, keeper, at_once=role == "worker")
                stack.push_async_callback(worker.stop)
                stack.push_async_callback(
                    _end, asyncio.create_task(reap_forever(store, house.executors, house.repositories, host=host))
                )
                scheduler = Scheduler(store=store, runs=runs, keys=keys, limits=limits, clock=clock)
                stack.push_async_callback(_end_scheduling, scheduler, asyncio.create_task(scheduler.run()))
                sender = WebhookSender(store, outbound, secrets, clock=clock, render=run_document, observer=metrics)
                sending = asyncio.create_task(sender.run())
                stack.push_async_callback(_end_sending, sender, sending, settings.shutdown_grace_seconds)

            def drain() -> None:
                worker.pause()
                events.stop_watching()

            stack.callback(runs.stop)
            stack.callback(drain)
            yield cls(
                settings=settings,
                clock=clock,
                store=store,
                artifacts=artifacts,
                keys=keys,
                secrets=secrets,
                models=models,
                outbound=outbound,
                webhooks=Webhooks(store, secrets, outbound),
                prompts=prompts,
                memories=memories,
                tools=tools,
                agents=agents,
                events=events,
                redis=redis,
                limits=limits,
                ledger=ledger,
                budgets=Budgets(store, ledger),
                usage=UsageReport(store),
                workflows=house.workflows,
                workspaces=house.workspaces,
                runs=runs,
                schedules=Schedules(store=store, runs=runs, clock=clock),
                metrics=metrics,
                tracing=tracing,
                worker=None if role == "api" else worker,
                drain=drain,
            )

    async def ready(self) -> ReadyReport:
        """How each dependency is, now."""
        database = await self._database_check()
        checks = (
            database,
            await self._artifacts_check(),
            self._agents_check(),
            self._tools_check(),
            await self._model_check(),
            *(() if self.worker is None else (_worker_check(self.worker),)),
            *(() if database.status == "failed" else await self._workers_check()),
        )
        return ReadyReport(checks if self.redis is None else (*checks, _redis_check(self.redis)))

    async def _database_check(self) -> Check:
        try:
            await self.store.check()
        except AutomagikError as error:
            return Check("database", "failed", error.detail)
        return Check("database", "ok", self.store.dialect)

    async def _artifacts_check(self) -> Check:
        """Degraded at the worst: all goes on but what has large media."""
        try:
            await self.artifacts.check_lately()
        except AutomagikError as error:
            return Check("artifacts", "degraded", error.detail)
        return Check("artifacts", "ok", self.artifacts.place)

    async def _workers_check(self) -> tuple[Check, ...]:
        """How the workers of other processes are; nothing where there can be none. Degraded at the worst, as the own one."""
        if self.settings.database_url is None:
            return ()
        try:
            faulty = await self.store.read(lambda tx: tx.executors.faulty())
        except AutomagikError as error:
            return (Check("workers", "degraded", error.detail),)
        own = self.runs.executor_id
        others = [row for row in faulty if row.executor_id != own]
        told = [
            f"host '{row.host}' ({row.executor_id}{', which has ended' if row.lost_at else ''}): {row.fault}"
            for row in others[:_MOST_TOLD]
        ]
        more = [f"and {len(others) - _MOST_TOLD} more"] if len(others) > _MOST_TOLD else []
        return (Check("workers", "degraded", "; ".join([*told, *more])) if told else Check("workers", "ok"),)

    def _agents_check(self) -> Check:
        broken = [
            f"{info.name}: {info.error}" for info in self.agents.list_available_agents() if info.error is not None
        ]
        return Check("agents", "degraded", "; ".join(broken)) if broken else Check("agents", "ok")

    def _tools_check(self) -> Check:
        broken = [f"{plugin.name}: {plugin.cause}" for plugin in self.tools.broken]
        return Check("tools", "degraded", "; ".join(broken)) if broken else Check("tools", "ok")

    async def _model_check(self) -> Check:
        return Check("model", "ok", await self.models.default_model_name())


async def _open_worker(worker: Worker, keeper: Keeper, *, at_once: bool) -> None:
    """Open the worker. Raises: what it raises, which other instances are told too: this process ends by it."""
    try:
        await worker.open(at_once=at_once)
    except AutomagikError as error:
        with contextlib.suppress(AutomagikError):
            told = f"The worker did not start: {error.detail}"
            await keeper.give_up(f"{told} {error.hint}" if error.hint else told)
        raise


def _worker_check(worker: Worker) -> Check:
    """Degraded at the worst: requests are answered, and other workers may take what waits in the queue."""
    fault = worker.fault
    return Check("worker", "ok") if fault is None else Check("worker", "degraded", fault)


def _redis_check(redis: "RedisConnections") -> Check:
    if redis.is_answering:
        return Check("redis", "ok")
    return Check("redis", "degraded", "Redis is away: signals go through the database, rate limits count by instance.")


async def _open_house(
    settings: Settings,
    store: Store,
    artifacts: ArtifactStore,
    outbound: Outbound,
    ledger: Ledger,
    gateway: Gateway,
    secrets: SecretStore,
    clock: Clock,
    host: str,
    stack: AsyncExitStack,
) -> House:
    """What workflows are carried out with."""
    repositories = Repositories(settings, clock)
    try:
        await repositories.open()
    except ConfigurationError as missing:  # agents need no git; whoever asks for a workflow is told
        _log.warning("workflows_unavailable", reason=missing.detail)
    workflows = Workflows(settings=settings, store=store, clock=clock)
    await workflows.open()
    stack.push_async_callback(workflows.close)
    executors = ExecutorFactory(settings)
    stack.push_async_callback(executors.close)
    return House(
        settings=settings,
        clock=clock,
        store=store,
        artifacts=artifacts,
        outbound=outbound,
        ledger=ledger,
        gateway=gateway,
        executors=executors,
        repositories=repositories,
        workflows=workflows,
        workspaces=Workspaces(settings, store, artifacts, repositories),
        probing=Probing(settings, store, host=host),
        publisher=Publisher(settings=settings, repositories=repositories, outbound=outbound, secrets=secrets),
        registries=RegistryFinder(settings, outbound),
        host=host,
    )


async def _open_signals(
    settings: Settings, store: Store, stack: AsyncExitStack
) -> tuple["RedisConnections | None", Signals]:
    """By what instances tell each other of events: Redis where there is one, else the database."""
    if settings.redis_url is None:
        return None, store.signals
    # Imported here: redis-py takes 0.07 s, which a start without it need not pay.
    from automagik.events.redis_channel import RedisConnections, RedisSignals  # noqa: PLC0415

    redis = RedisConnections(settings.redis_url.get_secret_value())
    stack.push_async_callback(redis.close)
    signals = RedisSignals(redis, store.signals)
    await signals.open()
    stack.push_async_callback(signals.close)
    return redis, signals


def _durable_engines(settings: Settings, clock: Clock) -> EngineMaker:
    """Engines over DBOS: in the PostgreSQL database, or in a file of its own in the data folder."""
    url = settings.database_url.get_secret_value() if settings.database_url is not None else None

    def make(carry: Carry, executor_id: str) -> Engine:
        return DurableEngine(carry, executor_id=executor_id, data_dir=settings.data_dir, database_url=url, clock=clock)

    return make


def _heart_lines(settings: Settings) -> Callable[[str], PulseLine] | None:
    """By what the processes that share a PostgreSQL see each other live; None on SQLite, where there is only one."""
    if settings.database_url is None:
        return None
    # Imported here: the driver takes 0.1 s, which a start on SQLite need not pay.
    from automagik.store.heart import HeartLine  # noqa: PLC0415

    url = settings.database_url.get_secret_value()
    return lambda executor_id: HeartLine(url, executor_id)


async def _end(task: "asyncio.Task[None]") -> None:
    """End what goes on until it is cancelled."""
    task.cancel()
    await asyncio.wait([task])


async def _end_scheduling(scheduler: Scheduler, firing: "asyncio.Task[None]") -> None:
    """Fire no more schedules. Raises what ended the firing before its time."""
    await scheduler.close()
    await firing


async def _end_sending(sender: WebhookSender, sending: "asyncio.Task[None]", grace_seconds: float) -> None:
    """Deliver no more webhooks. Raises what ended the sending before its time."""
    await sender.close(grace_seconds)
    await sending
