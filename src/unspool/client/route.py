"""The route: the servers, then the queues, and how they do. `passing` goes over it.

    route.facts(…)                               what the plan decides by
    server, answer = await route.attempt(…)      one try, or two where it hedges
    route.takers                                 who may be asked to take over

On the wire each attempt carries its number (`Unspool-Attempt`) and what is left of the deadline in
seconds (`Unspool-Deadline`), so that layers below neither repeat what is repeated here nor work for
somebody who has gone. A server may forbid further attempts: `Unspool-Retry: never`.

An attempt that is cut off while it still waits for a connection was never sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ..clock import Clock
from ..core.fields import values
from ..core.message import Answer, Failure, Instant, Key, Sent, Value
from ..core.message import Request as Wire
from ..core.message import Response as Answered
from ..core.outcome import (
    Outcome,
    Weather,
    is_busy,
    judge,
)
from ..gather import gather
from ..transports.protocol import Transport
from .budget import Budget, Hedges, Throttle, Usual
from .events import Offered, OnEvent, Tried
from .handover import Relay, Taker, attempt, place_at, receipt_at
from .health import Health
from .plan import Attempt, Facts, Terms, hedge_after_ms
from .receipt import Place, Receipt
from .request import Request

HEDGE_LEAST_MS: Final = 10
_ACCEPTED: Final = frozenset({Weather.GOOD, Weather.ALIVE, Weather.SUSPECT})
"""An answer with this weather was worked on: a 500, too. A 429, a 503 and silence were not."""


class Server(Value, frozen=True):
    where: str
    transport: Transport


class Route:
    def __init__(
        self,
        *,
        servers: Sequence[Server],
        takers: Sequence[Taker],
        terms: Terms,
        clock: Clock,
        luck: Callable[[], float],
        tell: OnEvent,
        hedge: bool = False,
        answer_max_bytes: int = 16 * 1024 * 1024,
        recovered: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers: Final = tuple(servers)
        self.takers: Final = tuple(takers)
        self.health: Final = Health(len(servers), luck=luck)
        self.budget: Final = Budget()
        self.throttle: Final = Throttle()
        self.usual: Final = Usual()
        self.hedges: Final = Hedges()
        self.retention_ms = 0
        """For how long the servers say that they know a key; 0: they did not say."""
        self._terms = terms
        self._clock = clock
        self._luck = luck
        self._tell = tell
        self._hedge = hedge
        self._answer_max_bytes = answer_max_bytes
        self._recovered = recovered

    def asked(self) -> None:
        """Another request begins."""
        now = self._clock.now()
        self.budget.asks(now)
        self.hedges.request(now)

    def terms_for(self, request: Request) -> Terms:
        if not request.attempts_max:
            return self._terms
        return msgspec.structs.replace(self._terms, attempts_max=request.attempts_max)

    def facts(self, left_ms: int, whole_ms: int, *, admitted: bool, outbox: bool) -> Facts:
        now = self._clock.now()
        return Facts(
            left_ms=left_ms,
            whole_ms=whole_ms,
            open=self.health.open(now),
            spare=self.health.spare(),
            admitted=admitted,
            tokens=self.budget.tokens(now),
            queues=len(self.takers),
            outbox=outbox,
            chance=self._luck(),
        )

    def admits(self) -> bool:
        """Does the throttle let a request out? One that it does not counts as asked all the same:
        the pressure must be known."""
        now = self._clock.now()
        drop = self.throttle.drop(now)
        if drop <= 0 or self._luck() >= drop:
            return True
        self.throttle.asks(now)
        return False

    def receipt_from(self, by: str, key: str, taken: Answered) -> Receipt:
        """The receipt of what was taken by this answer, whoever it was that took it."""
        places = self._places()
        for taker in self.takers:
            if taker.where == by:
                return taker.receipt(key, taken, elsewhere=places)
        for server in self.servers:
            if server.where == by:
                place = place_at(server.where, server.transport)
                return receipt_at(place, key, taken, elsewhere=places)
        return Receipt(where=by, key=key)

    def _places(self) -> list[Place]:
        """Who may be asked for receipts: relays first, for servers may have one in front."""
        relays = [taker.place() for taker in self.takers if isinstance(taker, Relay)]
        servers = [place_at(server.where, server.transport) for server in self.servers]
        places: dict[str, Place] = {}
        for place in relays + servers:
            places.setdefault(place.where, place)
        return list(places.values())

    # --- one direct attempt ------------------------------------------------------------------

    async def attempt(
        self, step: Attempt, request: Request, *, number: int, sending: Callable[[], None]
    ) -> tuple[int, Answer]:
        """One try, at this server or, with hedging, at whichever answers first. `sending` is called
        when a first byte of it may go."""
        now = self._clock.now()
        hedge_ms = hedge_after_ms(
            request.kind,
            asked=self._hedge,
            usual_ms=self.usual.p95() if self._hedge else None,
            least_ms=HEDGE_LEAST_MS,
            others=len(self.health.open(now)) - 1,
            affordable=self._hedge and self.hedges.may(now, self.budget),
        )
        if hedge_ms is None or hedge_ms >= step.timeout_ms:
            return step.server, await self._one(step, request, number, sending)
        return await self._two(step, request, number, sending, hedge_ms)

    async def _two(
        self,
        step: Attempt,
        request: Request,
        number: int,
        sending: Callable[[], None],
        hedge_ms: int,
    ) -> tuple[int, Answer]:
        loop = asyncio.get_running_loop()
        first = loop.create_task(self._one(step, request, number, sending))
        asked = {first: step.server}
        try:
            await asyncio.wait([first], timeout=hedge_ms / 1000)
            now = self._clock.now()
            others = [one for one in self.health.open(now) if one != step.server]
            if not first.done() and others:
                self.hedges.asks(now)
                other = Attempt(others[0], step.timeout_ms - hedge_ms)
                second = loop.create_task(self._one(other, request, number + 1, sending))
                asked[second] = others[0]
            waiting = set(asked)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    answer = one.result()
                    # "The key is being tried just now": by the first, whose answer is wanted.
                    busy = request.keyed and is_busy(answer)
                    if judge(answer).outcome is not Outcome.ERROR and not busy:
                        return asked[one], answer
            # What may have been applied must not look as if it had never been sent.
            worst = max(asked, key=lambda one: judge(one.result()).sent is Sent.MAYBE)
            return asked[worst], worst.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _one(
        self, step: Attempt, request: Request, number: int, sending: Callable[[], None]
    ) -> Answer:
        server, timeout_ms = step.server, step.timeout_ms
        now = self._clock.now()
        self.throttle.asks(now)  # before it is sent: who hangs is counted while it hangs
        self.health.began(server, now)
        wire = request.wire
        fields = (
            *wire.fields,
            (b"Unspool-Attempt", b"%d" % number),
            (b"Unspool-Deadline", b"%d.%03d" % divmod(timeout_ms, 1000)),
        )
        if request.kind.contended:
            fields = (*fields, (b"Unspool-Contended", b"?1"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await attempt(
                self.servers[server].transport,
                Wire(wire.method, wire.target, fields, wire.body),
                repeat=request.kind.repeat or request.kind.safe,
                timeout_ms=timeout_ms,
                reach_ms=step.reach_ms,
                sending=sending,
            )
            if isinstance(answer, Answered) and answer.rest is not None:
                left_ms = max(1, timeout_ms - round((loop.time() - began) * 1000))
                answer = await _whole(answer, self._answer_max_bytes, left_ms)
        except BaseException:
            self.health.given_up(server, self._clock.now())
            raise
        self._saw(server, answer, request, round((loop.time() - began) * 1000))
        return answer

    def _saw(self, server: int, answer: Answer, request: Request, took_ms: int) -> None:
        now = self._clock.now()
        name = request.key or f"safe-{now}"
        better = self.health.ended(server, answer, key=Key(name), now=now)
        judgement = judge(answer)
        if isinstance(answer, Answered) and judgement.weather in _ACCEPTED:
            self.throttle.accepted(now)
        if judgement.outcome is not Outcome.ERROR:
            self.usual.took(took_ms)
            assert isinstance(answer, Answered)
            if kept := values(answer.fields, b"idempotency-retention"):
                self.retention_ms = _retention_ms(kept[0]) or self.retention_ms
        if better:
            self._recovered()

    async def aclose(self) -> None:
        closing = [server.transport.aclose() for server in self.servers]
        closing += [taker.aclose() for taker in self.takers]
        await asyncio.gather(*closing, return_exceptions=True)

    def report(self, event: Tried | Offered) -> None:
        self._tell(event)

    def now(self) -> Instant:
        return self._clock.now()


async def _whole(answer: Answered, max_bytes: int, timeout_ms: int) -> Answer:
    """The answer with its body, or where that is too large, as a fact without one."""
    gathered = await gather(answer, max_bytes=max_bytes, timeout_ms=timeout_ms)
    if isinstance(gathered, Failure) or gathered.rest is None:
        return gathered
    gathered.rest.close()
    fields = (*gathered.fields, (b"Unspool-Body-Kept", b"?0"))
    return Answered(gathered.status, gathered.reason, fields)


def _retention_ms(value: bytes) -> int:
    """`answer=86400, key=2592000`: for how long a key is known (RFC 9651 §3.2)."""
    for part in value.split(b","):
        name, _, seconds = part.strip().partition(b"=")
        if name == b"key" and seconds.isdigit() and len(seconds) <= 10:
            return int(seconds) * 1000
    return 0
