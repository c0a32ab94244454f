"""Redelivery under chance: a transport and a spool that do what they like, and what holds all the
same. UNSPOOL_EXAMPLES makes it more; a seed that fails is run again by its number."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

import pytest
from kit import OK, REFUSED, RESET, SLOW, It, node, says, value
from test_deliveries import Begun, Prompt

from unspool.core.lifecycle import State, Verdict
from unspool.core.message import Answer, Destination, Instant, Request, Response, Severed
from unspool.core.outcome import judge, repeatable
from unspool.core.scheduler import LaneDue
from unspool.errors import Full, InDoubt, NotDone, Refused, Unavailable
from unspool.spools.committer import Committer
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Lease
from unspool.testing.clock import VirtualClock, run

SEEDS = range(int(os.environ.get("UNSPOOL_EXAMPLES", "100")) // 4)
BUSY = says(429, b"", (b"Retry-After", b"3"))
ANSWERS = (OK, OK, OK, RESET, REFUSED, SLOW, says(500), says(503), BUSY, says(400))
TROUBLES = (Unavailable("u"), Full("f"), NotDone("n"), RuntimeError("a bug of ours"))


class Body:
    """It comes in pieces, at any pace, or breaks off."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.left = random.choice([0, 1, 5, 10**6])
        self.over = False

    async def read(self) -> bytes:
        await asyncio.sleep(self.random.choice([0, 0.01, 1, 20]))
        self.left -= 1
        if self.random.random() < 0.05:
            self.over = True
            raise Severed("simulated")
        self.over = self.over or self.left < 0
        return b"" if self.over else b"y" * 100

    def close(self) -> None:
        self.over = True


class Under(Begun):
    """One attempt, which is over once."""

    def __init__(self, service: Erratic, request: Request, done: Callable[[Answer], None]) -> None:
        super().__init__(service, done)
        self.over = service.enters(request)

    def abandon(self) -> None:
        if not self.abandoned:
            self.over(RESET)
        self.abandoned = True

    def answer(self) -> None:
        assert isinstance(self.service, Erratic)
        if not self.abandoned:
            self.abandoned = True
            answer = self.service.drawn()
            self.over(answer)
            self.done(answer)


class Erratic(Prompt):
    """A service that sees who is under way, and what was there before."""

    def __init__(self, random: Random) -> None:
        super().__init__(OK)
        self.random = random
        self.well = False
        self.live: Counter[bytes] = Counter()
        self.applied: set[bytes] = set()
        self.bodies: list[Body] = []
        self.complaints: list[str] = []

    def enters(self, request: Request) -> Callable[[Answer], None]:
        which = value(Response(200, b"", request.fields), b"x-id")
        self.attempts.append(request)
        if self.live[which]:
            self.complaints.append(f"I4: two attempts of {which!r} at once")
        if which.startswith(b"once") and which in self.applied:
            self.complaints.append(f"{which!r} may not be repeated, and was")
        self.live[which] += 1
        self.applied.add(which)

        def over(answer: Answer) -> None:
            self.live[which] -= 1
            if repeatable(judge(answer), repeat=False):
                self.applied.discard(which)

        return over

    def drawn(self) -> Answer:
        if self.well:
            return OK
        if self.random.random() < 0.1:
            self.bodies.append(Body(self.random))
            return Response(200, b"", (), b"", self.bodies[-1])
        return self.random.choice(ANSWERS)

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        way = self.random.random()
        if way < 0.1 and not self.well:
            raise RuntimeError("a bug of ours")
        if way < 0.3:
            return None
        under = Under(self, request, done)
        if way < 0.5:
            under.answer()
        elif way < 0.95 or self.well:
            takes_s = 0.01 if self.well else self.random.choice([0.001, 0.5, 10, 200])
            asyncio.get_running_loop().call_later(takes_s, under.answer)
        return under

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        if self.random.random() < 0.1 and not self.well:
            raise RuntimeError("a bug of ours")
        over = self.enters(request)
        answer: Answer = RESET
        try:
            await asyncio.sleep(0.01 if self.well else self.random.choice([0, 0.5, 10, 200]))
            answer = self.drawn()
        finally:
            over(answer)
        return answer


class Moody(MemorySpool):
    """Slow at times, and in trouble: before it did what it was told, and after."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.well = True

    async def mood(self) -> None:
        if self.well:
            return
        slow = self.random.random() < 0.2
        await asyncio.sleep(self.random.choice([0.1, 5, 95] if slow else [0, 0.001]))
        if self.random.random() < 0.08:
            raise self.random.choice(TROUBLES)

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        await self.mood()
        return await super().survey(after=after, limit=limit)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        await self.mood()
        leases = await super().lease(wants, now=now, until=until)
        await self.mood()
        return leases

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        await self.mood()
        kept = await super().settle(settlements)
        await self.mood()
        return kept

    async def settle_each(
        self, settlements: Sequence[tuple[Lease, Verdict]], /
    ) -> Sequence[bool | Refused]:
        """As a chain of several tells it: of each apart."""
        told: list[bool | Refused] = []
        for one in settlements:
            fate = 1.0 if self.well else self.random.random()
            if fate < 0.1:
                told.append(NotDone("n"))
                continue
            [kept] = await super().settle([one])
            told.append(InDoubt("d") if fate < 0.2 else kept)
        return told

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        await self.mood()
        return await super().expire(now=now, until=until, limit=limit)


async def story(seed: int) -> list[str]:
    """One or two nodes on a spool; trouble of all kinds; and then all is well for two hours."""
    random = Random(seed)
    clock, spool, service = VirtualClock(), Moody(random), Erratic(random)
    async with contextlib.AsyncExitStack() as stack:
        nodes: list[It] = []
        for _ in range(random.choice([1, 2])):
            opened = node(clock=clock, spool=spool, service=service)  # type: ignore[arg-type]
            nodes.append(await stack.enter_async_context(opened))
            if random.random() < 0.4:
                most = random.choice([3, 20_000])
                nodes[-1].node.custody._settles = Committer(
                    spool.settle_each, batch_max=512, waiting_max=most, patient=True
                )
        for number in range(random.choice([3, 20, 60])):
            keyed = random.random() < 0.6
            name = b"%s-%d" % (b"key" if keyed else b"once", number)
            fields = [(b"X-Id", name), (b"Prefer", b"respond-async")]
            if random.random() < 0.2:
                fields.append((b"Unspool-Lifetime", b"600"))
            await nodes[0].ask(b"POST", b"/", *fields, key=name.decode() if keyed else "")
        spool.well = False
        for it in nodes:
            it.node.start()
        for _ in range(random.choice([3, 20])):
            await asyncio.sleep(random.choice([0.01, 1, 30, 100]))
        if len(nodes) > 1 and random.random() < 0.3:
            await nodes.pop(0).node.stop(drain_ms=random.choice([0, 100, 5_000]))
        spool.well = service.well = True
        await asyncio.sleep(2 * 3600)
        complaints = service.complaints
        if State.WAITING in [entry.state for entry in nodes[0].kept]:
            complaints.append("I2: something waits still")
        if not all(body.over for body in service.bodies):
            complaints.append("a body is held open")
        for it in nodes:
            if it.node.scheduler.busy or it.node.dispatcher._deliveries.busy:
                complaints.append("I7: something is under way for ever")
        return complaints


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_one_at_a_time_and_none_left(seed: int) -> None:
    """I2, I4, I7; nothing twice that may not be; no body and no place is held for ever."""
    assert run(story(seed)) == []
