"""Attempts without a task: the same promises as with one, and many verdicts and leases at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from kit import OK, RESET, It, Service
from test_dispatcher import LEASE_MS, save, states, world

from unspool.core.lane import WINDOW_MAX
from unspool.core.lifecycle import Keeping, Policy, State, Verdict
from unspool.core.message import Answer, Destination, Instant, Request, Response
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import SKEW_MS, Lease
from unspool.testing.clock import virtually


class Begun:
    """An attempt that is under way at `Prompt`."""

    def __init__(self, service: Prompt, done: Callable[[Answer], None]) -> None:
        self.service = service
        self.done = done
        self.abandoned = False

    def abandon(self) -> None:
        if not self.abandoned:
            self.service.busy -= 1
        self.abandoned = True

    def tell(self, answer: Answer) -> None:
        if not self.abandoned:
            self.service.busy -= 1
            self.abandoned = True
            self.done(answer)


class Prompt(Service):
    """A service at the end of connections that are at hand: `begin` is all it takes."""

    def __init__(self, answer: Answer, *, takes_s: float = 0.0) -> None:
        super().__init__(answer)
        self.takes_s = takes_s
        self.busy = 0
        self.most = 0
        self.begun: list[Begun] = []
        self.at_hand = True
        self.breaks = False

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        if self.breaks:
            raise RuntimeError("a bug of ours")
        if not self.at_hand:
            return None
        self.attempts.append(request)
        self.busy += 1
        self.most = max(self.most, self.busy)
        begun = Begun(self, done)
        self.begun.append(begun)
        assert not callable(self.answer)
        if self.takes_s:
            asyncio.get_running_loop().call_later(self.takes_s, begun.tell, self.answer)
        else:
            begun.tell(self.answer)
        return begun


@virtually
async def test_it_is_delivered_within_its_window() -> None:
    """I7: five to begin with, twenty when all is well; every one is delivered, and counted."""
    service = Prompt(OK, takes_s=1)
    async with world(service=service) as it:
        await save(it, 200)
        it.node.start()
        await asyncio.sleep(1.5)
        assert service.most == 5
        await asyncio.sleep(120)
        assert 5 < service.most <= 20
        assert states(it) == [State.DELIVERED] * 200
        assert it.node.dispatcher.delivered == len(service.attempts) == 200
        assert it.node.custody.backlog == 0


@virtually
async def test_an_answer_may_be_there_before_begin_returns() -> None:
    async with world(service=Prompt(OK)) as it:
        await save(it, 50)
        it.node.start()
        await asyncio.sleep(5)
        assert states(it) == [State.DELIVERED] * 50


class Written(MemorySpool):
    """What is written, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, int]] = []

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        self.writes.append(("settle", len(settlements)))
        return await super().settle(settlements)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases = await super().lease(wants, now=now, until=until)
        self.writes.append(("lease", len(leases)))
        return leases


class Single(Prompt):
    """Answers come one after the other, as from a service of one process."""

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        self.takes_s = 0.0001 * (self.busy + 1)
        return super().begin(request, done, repeat=repeat)


@virtually
async def test_verdicts_are_written_with_the_next_lease() -> None:
    """A commit costs as much as a dozen items: one for both, while there is more to lease."""
    spool = Written()
    async with world(service=Single(OK), spool=spool) as it:
        await save(it, 1_000)
        it.node.start()
        await asyncio.sleep(60)
        assert states(it) == [State.DELIVERED] * 1_000
        last = max(place for place, (what, _) in enumerate(spool.writes) if what == "lease")
        while_more = [what for what, _ in spool.writes[2:last]]
        assert len(while_more) > 2 * 1_000 / WINDOW_MAX
        assert all(one != other for one, other in pairwise(while_more)), spool.writes


@virtually
async def test_without_a_connection_at_hand_it_goes_the_other_road() -> None:
    service = Prompt(OK)
    service.at_hand = False
    async with world(service=service) as it:
        await save(it, 3)
        it.node.start()
        await asyncio.sleep(5)
        assert service.begun == []
        assert states(it) == [State.DELIVERED] * 3


@virtually
async def test_an_attempt_does_not_outlive_its_lease() -> None:
    """I4: what never answers is given up before another attempt may begin; what it says later is
    heard by nobody."""
    service = Prompt(OK, takes_s=10**6)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep((LEASE_MS - SKEW_MS) / 1000 - 1.5)
        assert service.busy == 1
        await asyncio.sleep(2)
        assert service.begun[0].abandoned
        await asyncio.sleep(3600)
        assert service.most == 1
        assert len(service.begun) > 3
        trail = it.kept[0].trail
        assert "lease" in trail[0].cause
        assert trail[0].sent == "maybe applied"
        before = len(trail)
        service.begun[0].done(OK)
        await asyncio.sleep(1)
        assert states(it) == [State.WAITING]
        assert len(it.kept[0].trail) == before


@virtually
async def test_our_own_mistake_loses_nothing_and_blames_nobody() -> None:
    service = Prompt(OK)
    service.breaks = True
    async with world(service=service) as it:
        await save(it, 20)
        it.node.start()
        await asyncio.sleep(30)
        assert states(it) == [State.WAITING] * 20
        [lane] = it.node.scheduler.statistics().lanes.values()
        assert (lane.phase, lane.busy) == ("open", 0)
        service.breaks = False
        await asyncio.sleep(120)
        assert states(it) == [State.DELIVERED] * 20


class Rest:
    """A body that goes on for ever."""

    closed = False

    async def read(self) -> bytes:
        await asyncio.sleep(0.001)
        return b"x" * 1024

    def close(self) -> None:
        self.closed = True


@virtually
async def test_an_answer_too_large_to_keep_is_kept_as_a_fact() -> None:
    rest = Rest()
    policy = Policy(keeping=Keeping(answer_max_bytes=4096))
    large = Response(200, b"", ((b"ETag", b"1"),), b"", rest)
    async with world(service=Prompt(large, takes_s=1), policy=policy) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(10)
        [entry] = it.kept
        assert entry.state is State.DELIVERED
        assert not entry.stored
        assert rest.closed


@virtually
async def test_stop_lets_what_is_under_way_end_and_gives_up_the_rest() -> None:
    """What was given up may have been applied: its lease is left to run out (I4)."""
    service = Prompt(OK, takes_s=3)
    async with world(service=service) as it:
        await save(it, 20)
        it.node.start()
        await asyncio.sleep(2)
        await it.node.stop(drain_ms=5_000)
        assert states(it).count(State.DELIVERED) == 5
    service = Prompt(OK, takes_s=600)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(1)
        await it.node.stop(drain_ms=2_000)
        assert service.begun[0].abandoned
        service.begun[0].done(OK)
        await asyncio.sleep(1)
        [entry] = it.kept
        assert entry.state is State.WAITING
        assert entry.leased_until > it.clock.now()


class Counted(MemorySpool):
    """How many each lease brought, and what a lease costs: time."""

    def __init__(self) -> None:
        super().__init__()
        self.brought: list[int] = []

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases = await super().lease(wants, now=now, until=until)
        await asyncio.sleep(0.001)
        if leases:
            self.brought.append(len(leases))
        return leases


async def drained(it: It, count: int) -> float:
    """How long it took, in seconds of virtual time."""
    loop = asyncio.get_running_loop()
    it.node.start()
    began = loop.time()
    while states(it).count(State.DELIVERED) < count:
        await asyncio.sleep(0.001)
        assert loop.time() < began + 1000
    return loop.time() - began


class Uneven(Prompt):
    """Of twenty attempts each takes a little longer than the one before."""

    def __init__(self, *, least_s: float, step_s: float) -> None:
        super().__init__(OK)
        self.least_s = least_s
        self.step_s = step_s

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        self.takes_s = self.least_s + self.step_s * (len(self.attempts) % 20)
        return super().begin(request, done, repeat=repeat)


@virtually
async def test_of_a_quick_service_nearly_the_whole_window_is_leased_at_once() -> None:
    """A commit costs as much as ten messages: one for each place that comes free would be most of
    the work."""
    spool = Counted()
    async with world(spool=spool, service=Uneven(least_s=0.0002, step_s=0.0001)) as it:
        await save(it, 2_000)
        await drained(it, 2_000)
        assert sum(spool.brought) / len(spool.brought) > 15


@virtually
async def test_a_slow_service_is_not_kept_waiting_for_the_sake_of_the_spool() -> None:
    """Places that come free one by one are taken one by one, within some milliseconds."""

    async with world(service=Uneven(least_s=0.2, step_s=0.01)) as it:
        await save(it, 600)
        took = await drained(it, 600)
        at_best = 600 * 0.295 / 20
        assert took < 1.2 * at_best + 2  # the window opens from five


@virtually
async def test_trouble_is_told_as_on_the_other_road() -> None:
    """The lane learns of it, and the message has it on its trail."""
    async with world(service=Prompt(RESET, takes_s=0.01)) as it:
        await save(it, 5)
        it.node.start()
        await asyncio.sleep(4)
        assert all(entry.trail[0].cause.startswith("connection_terminated") for entry in it.kept)
        [lane] = it.node.scheduler.statistics().lanes.values()
        assert "reset" in lane.last_trouble
