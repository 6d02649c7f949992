"""Door: one run's way to its models, a unix socket that its token opens."""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from types import MappingProxyType

import structlog

from automagik.budget import ModelCall, Reservation
from automagik.errors import AutomagikError
from automagik.gateway.access import RunAccess
from automagik.gateway.allowance import Allowance, Places
from automagik.gateway.anthropic_wire import MessagesWire
from automagik.gateway.call import Call, Services
from automagik.gateway.connection import Answer, Connection, Exchange, Head
from automagik.gateway.conversations import Conversations
from automagik.gateway.listener import Listener
from automagik.gateway.listing import count_tokens, list_models
from automagik.gateway.openai_wire import ChatWire, ResponsesWire
from automagik.gateway.tally import RefusalCode, RunTally
from automagik.gateway.wire import Ask, Refusal, Wire, read_document
from automagik.types import Usage, new_id

__all__ = ["Door"]

_log = structlog.stdlib.get_logger(__name__)

_MESSAGES = MessagesWire()
_WIRES: Mapping[str, Wire] = MappingProxyType(
    {"/v1/messages": _MESSAGES, "/v1/chat/completions": ChatWire(), "/v1/responses": ResponsesWire()}
)
_COUNT_PATH = "/v1/messages/count_tokens"
_MODELS_PATH = "/v1/models"
_METHODS: Mapping[str, str] = MappingProxyType({**dict.fromkeys((*_WIRES, _COUNT_PATH), "POST"), _MODELS_PATH: "GET"})
_MAX_CONNECTIONS = 256
_MAX_BODIES = 4
"""How many of the largest bodies a run may have under way."""
_MAX_REFUSALS_KEPT = 100
_CLOSE_SECONDS = 10.0


class Door:
    """Answers the requests of one run. `Gateway.open_door` opens it, `close()` ends it with its calls."""

    def __init__(
        self,
        services: Services,
        access: RunAccess,
        tally: RunTally,
        *,
        max_body_bytes: int,
        places: Places,
        left: Callable[["Door"], None],
    ) -> None:
        self._services = services
        self._access = access
        self._tally = tally
        self._conversations = Conversations()
        self._allowance = Allowance(_MAX_CONNECTIONS, _MAX_BODIES * max_body_bytes, max_body_bytes, places=places)
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusals_kept = 0
        self._shown = b""
        """The run's token, when a request has shown it: to know it again takes a tenth of what hashing it takes."""
        self._left = left
        self._listener: Listener | None = None

    @property
    def run_id(self) -> str:
        """The run whose door it is."""
        return self._access.run_id

    @property
    def usage(self) -> Usage:
        """What the run used so far, with its calls before this door was open and those under way."""
        return self._tally.usage

    @property
    def refused(self) -> RefusalCode | None:
        """Why the run's last call was refused, by its budget or by what it may ask for; None where it was not."""
        return self._tally.refused

    @property
    def retry_refusals(self) -> int:
        """How often a call was told to come again, because calls under way had reserved what the budget leaves."""
        return self._tally.retry_refusals

    async def serve(self, listener: Listener) -> None:
        """Answer who connects to the listener's socket. Raises ConfigurationError."""
        self._listener = listener
        await listener.start(
            lambda: Connection(
                self,
                self._allowance,
                opened=self._connections.add,
                closed=self._connections.discard,
                spawn=self._spawn,
            )
        )

    async def close(self) -> None:
        """Take no further call, and end those under way; each is settled by what is known of it."""
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        for connection in list(self._connections):
            connection.abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        self._left(self)

    # -- what a connection asks of its handler

    def admit(self, head: Head) -> Answer | None:
        wire = _wire_of(head)
        tokens = [*head.values(b"x-api-key"), *map(_bearer, head.values(b"authorization"))]
        if not any(self._opens_with(token) for token in tokens):
            return wire.refused(Refusal(401, "This is not the run's token.", may_retry=False))
        if not head.path.startswith("/"):
            return wire.refused(Refusal(400, "This door leads to the model APIs, and to no other host."))
        wanted = _METHODS.get(head.path)
        if wanted is None:
            return wire.refused(Refusal(404, "There is nothing at this path; this door knows the model APIs only."))
        if head.method != wanted:
            return wire.refused(Refusal(405, f"This path takes {wanted}."))
        if head.values(b"content-encoding") not in ([], [b"identity"]):
            return wire.refused(Refusal(415, "A request's body can't be compressed."))
        return None

    def spoiled(self, head: Head | None, status: int, text: str) -> Answer:
        wire = _wire_of(head) if head is not None else _MESSAGES
        return wire.refused(Refusal(status, text, retry_after=1 if status in {429, 503} else None))

    async def handle(self, exchange: Exchange) -> None:
        wire = _wire_of(exchange.head)
        model = ""
        try:
            if exchange.head.path == _MODELS_PATH:
                await list_models(self._services, self._access, exchange)
                return
            counts = exchange.head.path == _COUNT_PATH
            document = read_document(exchange.body)
            ask = wire.ask({"max_tokens": 1, **document} if counts else document)
            model = "" if counts else ask.model
            self._check(wire, ask)
            if counts:
                await count_tokens(self._services, self._access, exchange)
            else:
                call = Call(self._services, self._access, self._tally, self._conversations, wire, exchange)
                await call.carry_out(ask)
        except Refusal as refusal:
            await self._refuse(wire, exchange, refusal, model)
        except RecursionError:  # what could be read can still be too deep to be written
            await self._refuse(wire, exchange, Refusal(400, "The request's body is nested too deeply."), "")
        except AutomagikError as error:  # the store is away, or its secrets can't be read
            _log.warning("model_call_failed", run_id=self._access.run_id, code=error.code)
            await self._refuse(wire, exchange, Refusal(error.status, error.detail), model)

    # -- its parts

    def _opens_with(self, token: bytes) -> bool:
        if self._shown and hmac.compare_digest(token, self._shown):
            return True
        if not self._access.opens_with(token):
            return False
        self._shown = token
        return True

    def _spawn(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self.handle(exchange))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, exchange))

    def _ended(self, task: asyncio.Task[None], exchange: Exchange) -> None:
        """A fault of ours must leave no client waiting."""
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            exchange.cut()
        if not task.cancelled() and task.exception() is not None:
            _log.error("gateway_fault", run_id=self._access.run_id, exc_info=task.exception())

    def _check(self, wire: Wire, ask: Ask) -> None:
        """Nothing, where the run may ask for this. Raises Refusal."""
        if not self._access.allows(ask.model):
            self._tally.warn(f"The run asked for a model that it may not use: {ask.model}.")
            raise Refusal(403, f"This run may not use the model '{ask.model}'.", may_retry=False, code="policy")
        if self._access.upstream == "demo" and wire is not _MESSAGES:
            raise Refusal(404, "The demo script speaks the Messages API only.")
        if not self._access.provider_tools:
            outward = wire.reaches_out(ask.document)
            if outward is not None:
                self._tally.warn(f"The run asked its model's provider to reach out, which it may not: {outward}.")
                raise Refusal(
                    403, f"The provider may not reach out for this run: {outward}.", may_retry=False, code="policy"
                )

    async def _refuse(self, wire: Wire, exchange: Exchange, refusal: Refusal, model: str) -> None:
        """Answer with the refusal, and keep a row of it: a run that asks without end fills no table."""
        if exchange.status is None:
            exchange.answer(wire.refused(refusal))
        else:
            exchange.cut()
        if refusal.code is not None:
            self._tally.refused = refusal.code
        if model and self._refusals_kept < _MAX_REFUSALS_KEPT:
            self._refusals_kept += 1
            party = self._access.party
            nothing = Reservation(new_id("resv"), 0, is_counted=False)
            row = ModelCall(
                call_id=nothing.call_id,
                run_id=self._access.run_id,
                key_id=party.key_id,
                user_id=party.user_id,
                wire=wire.vendor,
                model=model,
                status=refusal.status,
                outcome="refused",
                created_at=self._services.clock.now(),
                duration_ms=0,
                agent=party.agent,
            )
            await self._services.ledger.settle(nothing, 0, call=row)


def _wire_of(head: Head) -> Wire:
    known = _WIRES.get(head.path)
    if known is not None:
        return known
    return (
        _WIRES["/v1/chat/completions"]
        if head.path == _MODELS_PATH and not head.values(b"anthropic-version")
        else _MESSAGES
    )


def _bearer(value: bytes) -> bytes:
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
