"""A small simulated world, for tests of delivery: everything from one seed, in virtual time.

    site = Site(weather, random=…, history=…)       a destination: a Transport for a node
    world = World(plan, transport=site, spool=…, …) a spool that stays, a node that comes and goes
    await world.up(); world.kill()                  a crash: the node is dropped, the spool is not
    await world.ask(request) -> Response | None     as a sender sees it; None: the connection broke
    history.events                                  what senders and the destination saw

The destination is keyed: it keeps the answer of each Idempotency-Key (per Authorization) and has
its effect once. Its weather is drawn for every attempt: answers of trouble, resets before and after
the effect, connections refused, slowness. Between the node and the spool stands a `Door`, with
troubles of its own.

Nothing here judges. Checkers read the history, and only that: the node's own word is not evidence.
Run it with `unspool.testing.clock.run`. The same random numbers give the same world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from random import Random
from typing import Any, Final

import msgspec

from ..clock import Clock
from ..core.message import (
    Answer,
    Cause,
    Failure,
    Field,
    Instant,
    Request,
    Response,
    Sent,
    Value,
)
from ..ingress.protocol import Caller
from ..node import Node, Plan
from ..spools.protocol import Spool
from ..transports.protocol import Transport
from .door import LIFE, WELL, Door, Trouble

__all__ = [
    "FAIR", "WELL", "Ask", "Event", "History", "Site", "Trouble", "Weather", "World", "field",
    "post",
]  # fmt: skip

CALLER: Final = Caller(peer="192.0.2.7", scheme="http")

Ask = ContextVar[int]("unspool_testing_ask", default=0)
"""The number of the sender's call that this code runs for; 0: nobody waits for it."""


class Event(Value, frozen=True):
    """Something that somebody outside the node saw."""

    at: Instant
    what: str
    """asked, answered, broke (senders); began, applied, ended, cut (the destination); killed, up,
    healed (the world)"""
    ask: int = 0
    """The sender's call; at the destination: the call that waits for this attempt, 0 for none."""
    attempt: int = 0
    """At the destination: which attempt, counted over all; ties its events together."""
    request: Request | None = None
    answer: Answer | None = None


class History(msgspec.Struct):
    clock: Clock
    events: list[Event] = msgspec.field(default_factory=list)

    def note(self, what: str, **more: Any) -> None:
        """It has just happened."""
        self.events.append(Event(at=self.clock.now(), what=what, **more))


def field(message: Request | Response | None, name: bytes) -> bytes | None:
    """The first value of a field, or None."""
    if message is None:
        return None
    return next((value for n, value in message.fields if n.lower() == name.lower()), None)


# --- the destination --------------------------------------------------------------------------


class Weather(Value, frozen=True):
    """How often what goes wrong at the destination, each between 0 and 1; the rest goes well."""

    statuses: Mapping[int, float] = {}
    """429 and 503 come with Retry-After, half of the 503 without."""
    refused: float = 0.0
    reset_before: float = 0.0
    """It breaks off, and had not done it."""
    reset_after: float = 0.0
    """It breaks off, and had done it."""
    slow: float = 0.0
    """It takes `slow_ms`, and then answers well."""
    slow_ms: int = 20_000
    quick_ms: int = 40
    """The longest that a good answer takes."""
    retry_after_s: int = 20


FAIR: Final = Weather()


class Site:
    """A keyed destination, as a Transport."""

    def __init__(self, weather: Weather, *, random: Random, history: History) -> None:
        self.weather = weather
        self.effects: dict[bytes, int] = {}
        """How often each body had its effect."""
        self.answers: dict[tuple[bytes, bytes], Response] = {}
        """By credentials and key: what was answered, to be answered again."""
        self._random = random
        self._history = history
        self._attempts = 0

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        self._attempts += 1
        number, ask = self._attempts, Ask.get()
        dice = self._random.random()
        self._history.note("began", ask=ask, attempt=number, request=request)
        try:
            answer = await self._served(request, number, self.weather, dice)
        except asyncio.CancelledError:
            self._history.note("cut", ask=ask, attempt=number, request=request)
            raise
        self._history.note("ended", ask=ask, attempt=number, request=request, answer=answer)
        return answer

    async def _served(self, request: Request, number: int, weather: Weather, dice: float) -> Answer:
        if (dice := dice - weather.refused) < 0:
            await self._pause(weather.quick_ms)
            return Failure(Cause.CONNECTION_REFUSED, "simulated", Sent.NEVER)
        if (dice := dice - weather.reset_before) < 0:
            await self._pause(weather.quick_ms)
            return Failure(Cause.CONNECTION_TERMINATED, "simulated", Sent.MAYBE)
        if (dice := dice - weather.reset_after) < 0:
            self._apply(request, number)
            await self._pause(weather.quick_ms)
            return Failure(Cause.CONNECTION_TERMINATED, "simulated", Sent.MAYBE)
        for status, often in weather.statuses.items():
            if (dice := dice - often) < 0:
                await self._pause(weather.quick_ms)
                return self._trouble(request, status, weather)
        # When it is cut short, it may have been done already, or never will be.
        await self._pause(weather.quick_ms)
        answer = self._apply(request, number)
        await self._pause(weather.slow_ms if dice < weather.slow else weather.quick_ms)
        return answer

    async def _pause(self, most_ms: int) -> None:
        await asyncio.sleep(self._random.uniform(0, most_ms) / 1000)

    def _trouble(self, request: Request, status: int, weather: Weather) -> Response:
        hint = status == 429 or (status == 503 and self._random.random() < 0.5)
        fields = [(b"Retry-After", b"%d" % weather.retry_after_s)] if hint else []
        body = b"%b by %b, trouble" % (request.body, field(request, b"Authorization") or b"")
        return Response(status=status, reason=b"Simulated", fields=fields, body=body)

    def _apply(self, request: Request, number: int) -> Response:
        who = field(request, b"Authorization") or b""
        key = (field(request, b"Idempotency-Key") or b"").strip(b'"')  # quoted or bare: one key
        if key and (known := self.answers.get((who, key))) is not None:
            return known
        count = self.effects[request.body] = self.effects.get(request.body, 0) + 1
        self._history.note("applied", attempt=number, request=request)
        answer = Response(
            status=201,
            reason=b"Created",
            fields=[(b"Content-Type", b"text/plain"), (b"Set-Cookie", b"session=%d" % number)],
            body=b"%b by %b, effect %d, attempt %d" % (request.body, who, count, number),
        )
        if key:
            self.answers[who, key] = answer
        return answer

    async def aclose(self) -> None:
        """Nothing is held."""


# --- the world ----------------------------------------------------------------------------------


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **named: Any) -> asyncio.Task[Any]:
    """Every task knows whose life it belongs to, so that a kill finds them all."""
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **named)
    if (life := LIFE.get()) is not None:
        life.append(task)
    return task


class World:
    """A spool that stays, and a node that comes and goes."""

    def __init__(
        self,
        plan: Plan,
        *,
        transport: Transport,
        spool: Spool,
        history: History,
        random: Random,
        trouble: Trouble = WELL,
    ) -> None:
        self.plan = plan
        self.trouble = trouble
        self.node: Node | None = None
        self._transport = transport
        self._spool = spool
        self._history = history
        self._random = random
        self._door: Door | None = None
        self._life: list[asyncio.Task[Any]] = []
        self._asks = 0

    async def up(self) -> None:
        """A new node over the old spool. Does nothing while there is one."""
        if self.node is not None:
            return
        asyncio.get_running_loop().set_task_factory(_make_task)
        self._life = []
        door = self._door = Door(self._spool, WELL, random=self._random)
        was = LIFE.set(self._life)
        try:
            self.node = await Node.open(
                plan=self.plan, spool=door, transport=self._transport, clock=self._history.clock,
                chance=self._random.randbytes, luck=self._random.random,
            )  # fmt: skip
            self.node.start()
        finally:
            LIFE.reset(was)
        door.trouble = self.trouble
        self._history.note("up")

    def kill(self) -> None:
        """kill -9: nothing of the node runs on, and nothing it still tries reaches anybody."""
        if self.node is None or self._door is None:
            return
        self._history.note("killed")
        self._door.shut = True
        self.node = None
        for task in self._life:
            task.cancel()

    def heal(self) -> None:
        """The way to the spool is well from now on."""
        self.trouble = WELL
        if self._door is not None:
            self._door.trouble = WELL
        self._history.note("healed")

    async def ask(self, request: Request, *, caller: Caller = CALLER) -> Response | None:
        """One call of a sender. None: the connection broke, and nobody knows what was done."""
        self._asks += 1
        number, answer = self._asks, None
        self._history.note("asked", ask=number, request=request)
        if self.node is not None:
            was, which = LIFE.set(self._life), Ask.set(number)
            try:
                relay: Any = self.node.relay(request, caller)
                task: asyncio.Task[Response] = asyncio.create_task(relay)
            finally:
                Ask.reset(which)
                LIFE.reset(was)
            await asyncio.wait([task])
            if not task.cancelled():
                answer = task.result()
        what = "broke" if answer is None else "answered"
        self._history.note(what, ask=number, request=request, answer=answer)
        return answer


def post(
    body: bytes, *fields: Field, method: bytes = b"POST", target: bytes = b"/orders"
) -> Request:
    """A request as a door hands it on."""
    return Request(method, target, [(b"Host", b"site.test"), *fields], body)
