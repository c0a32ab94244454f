"""One request on its pass over servers and queues: asks the plan what is next, and does it.

    carried = await carry(route, request, deadline_ms=…, outbox=True)

`carried.end` is how it ended: an answer that stands, taken by somebody, uncertain, to be kept, or
given up. Callers who wait and the outbox's dispatcher go the same way, over the same health and
budgets, so that what is sent later does not crowd out what is sent now.

The only loop over a route. It ends: every step takes an attempt, a queue, or the rest of the time.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Final

import msgspec

from ..core.fields import values
from ..core.lifecycle import attempted
from ..core.message import Answer, Sent, Value
from ..core.message import Response as Answered
from ..core.outcome import (
    Judgement,
    Outcome,
    Weather,
    cause_of,
    is_busy,
    is_unknown,
    judge,
    retry_after,
)
from .events import Offered, Tried
from .handover import still_ours
from .plan import (
    BEGINNING,
    Attempt,
    GiveUp,
    HandOver,
    Keep,
    SoFar,
    Uncertain,
    handed,
    next_step,
    tried,
)
from .receipt import Receipt, receipt_path
from .request import Request
from .results import Try
from .route import Route

IN_PROGRESS: Final = Judgement(
    Outcome.ERROR, Sent.REFUSED, Weather.ALIVE, why="an earlier attempt is still being worked on"
)
"""A 409 with Retry-After under our key: what it waits for is our answer."""


class End(enum.Enum):
    ANSWERED = "answered"
    TAKEN = "taken"
    UNCERTAIN = "uncertain"
    KEEP = "to be kept"
    GIVEN_UP = "given up"


class Carried(Value, frozen=True):
    """How a pass ended."""

    end: End
    answer: Answer | None = None
    """The one that stands, or the last."""
    receipt: Receipt | None = None
    by: str = ""
    """Who took it."""
    why: str = ""
    tries: tuple[Try, ...] = ()
    maybe: bool = False


async def carry(
    route: Route, request: Request, *, deadline_ms: int, outbox: bool, first: int = 1,
    background: bool = False, sending: Callable[[], None] = lambda: None,
) -> Carried:  # fmt: skip
    """`first`: the number of its next attempt; `outbox`: it may be kept afterwards; `sending` is
    called before a first byte of it may go to anybody."""
    route.asked()
    return await _Passing(route, request, deadline_ms, outbox, first, background, sending).run()


class _Passing:
    """One request on its pass."""

    def __init__(
        self, route: Route, request: Request, deadline_ms: int, outbox: bool, first: int,
        background: bool, sending: Callable[[], None],
    ) -> None:  # fmt: skip
        self._route = route
        self._request = request
        self._whole_ms = deadline_ms
        self._outbox = outbox
        self._first = first
        self._background = background
        self._sending = sending
        self._so_far: SoFar = BEGINNING
        self._tries: list[Try] = []
        self._last: Answer | None = None
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + deadline_ms / 1000

    async def run(self) -> Carried:
        route, request = self._route, self._request
        admitted = route.admits()
        terms = route.terms_for(request)
        while True:
            left_ms = round((self._until - self._loop.time()) * 1000)
            facts = route.facts(left_ms, self._whole_ms, admitted=admitted, outbox=self._outbox)
            step = next_step(request.kind, self._so_far, facts, terms)
            match step:
                case Attempt():
                    carried = await self._attempt(step)
                case HandOver():
                    carried = await self._hand_over(step)
                case Uncertain():
                    carried = self._ended(End.UNCERTAIN, "it may have been applied")
                case Keep():
                    carried = self._ended(End.KEEP)
                case GiveUp():
                    carried = self._ended(End.GIVEN_UP, step.why)
            if carried is not None:
                return carried

    def _ended(self, end: End, why: str = "", **more: object) -> Carried:
        carried = Carried(
            end, answer=self._last, why=why, tries=tuple(self._tries), maybe=self._so_far.maybe
        )
        return msgspec.structs.replace(carried, **more) if more else carried

    async def _attempt(self, step: Attempt) -> Carried | None:
        route, request = self._route, self._request
        if step.wait_ms:
            await asyncio.sleep(step.wait_ms / 1000)
        if step.cost:
            route.budget.pay(step.cost, route.now())
        number = self._first + len(self._so_far.tried)
        began = self._loop.time()
        try:
            server, answer = await route.attempt(
                step, request, number=number, sending=self._sending
            )
        finally:
            if step.cost:
                route.budget.done()
        self._last = answer
        where = route.servers[server].where
        took_ms = round((self._loop.time() - began) * 1000)
        record = attempted(number, answer, at=route.now())
        one = Try(where, record.status, record.cause, record.sent, took_ms)
        self._tries.append(one)
        route.report(Tried(request.key, one, number, self._background))
        judgement = IN_PROGRESS if request.keyed and is_busy(answer) else judge(answer)
        if judgement.outcome is Outcome.ERROR and still_ours(answer):
            judgement = msgspec.structs.replace(judgement, sent=Sent.REFUSED)
        if request.keyed and is_unknown(answer):
            return self._ended(
                End.UNCERTAIN, "the server does not know what an earlier attempt did"
            )
        if judgement.outcome is not Outcome.ERROR:
            route.budget.good(step.cost)
            assert isinstance(answer, Answered)
            if receipt_path(answer):
                receipt = route.receipt_from(where, request.key, answer)
                return await self._taken(receipt, answer, where)
            return self._ended(End.ANSWERED, by=where)
        self._so_far = tried(
            self._so_far,
            server,
            judgement,
            hint_ms=retry_after(answer, now=route.now()),
            forbidden=_forbids(answer),
        )
        return None

    async def _taken(self, receipt: Receipt, answer: Answered, where: str) -> Carried:
        if self._request.kind.contended:
            # A relay in front of the server kept it for later. Late, it is worth nothing.
            try:
                gone = await asyncio.wait_for(receipt.cancel(), timeout=5)
            except Exception:
                gone = False
            if gone:
                self._so_far = msgspec.structs.replace(self._so_far, maybe=True)
                return self._ended(End.UNCERTAIN, "a relay had kept it, and was told to forget it")
        return self._ended(End.TAKEN, receipt=receipt, by=where, answer=answer)

    async def _hand_over(self, step: HandOver) -> Carried | None:
        route, request = self._route, self._request
        taker = route.takers[step.queue]
        began = self._loop.time()
        self._sending()
        told = await taker.take(request, now=route.now(), timeout_ms=step.timeout_ms)
        took_ms = round((self._loop.time() - began) * 1000)
        stands = told.receipt_of or told.answer
        status = stands.status if stands else 0
        why = told.why or (cause_of(stands)[1] if stands else "")
        one = Try(taker.where, status, why[:200], told.sent.value, took_ms)
        self._tries.append(one)
        route.report(Offered(request.key, one, self._background))
        if told.receipt_of is not None:
            receipt = route.receipt_from(taker.where, request.key, told.receipt_of)
            return self._ended(End.TAKEN, receipt=receipt, by=taker.where, answer=told.receipt_of)
        if told.answer is not None:
            self._last = told.answer
            if is_unknown(told.answer):
                return self._ended(End.UNCERTAIN, "the relay does not know what an attempt did")
            return self._ended(End.ANSWERED, by=taker.where)
        self._so_far = handed(self._so_far, told.sent)
        return None


def _forbids(answer: Answer) -> bool:
    """Does the server say that nobody is to try this again now?"""
    return isinstance(answer, Answered) and b"never" in [
        value.strip().lower() for value in values(answer.fields, b"unspool-retry")
    ]
