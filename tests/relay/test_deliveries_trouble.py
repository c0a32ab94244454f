"""Attempts and verdicts where something goes wrong: leases that end, spools that hang, a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest
from kit import OK
from msgspec.structs import replace
from test_deliveries import Begun, Counted, Prompt, drained
from test_dispatcher import ASYNC, LEASE_MS, save, states, world

from unspool.core.lifecycle import Deferred, State, Verdict
from unspool.core.message import Answer, Destination, Instant, Request, Response
from unspool.errors import Unavailable
from unspool.node import LAST_WRITES_MS
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import SKEW_MS, Entry, Lease
from unspool.testing.clock import virtually

LEAST_S = (LEASE_MS - SKEW_MS) / 1000


class Trickle:
    """A body of which a byte comes each second, for ever."""

    closed = False

    async def read(self) -> bytes:
        await asyncio.sleep(1)
        return b"x"

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("at_hand", [True, False])
@virtually
async def test_a_body_that_trickles_does_not_outlive_the_lease(at_hand: bool) -> None:
    """I4: also where the head came in time, and what is left of the lease is less than a body may
    take. Its connection is given up."""
    rest = Trickle()
    head = Response(200, b"", (), b"", rest)

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(LEAST_S - 5)
        return head

    service = Prompt(head, takes_s=LEAST_S - 5)
    service.at_hand = at_hand
    if not at_hand:
        service.then(slowly)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(LEAST_S - 1)
        assert not rest.closed
        await asyncio.sleep(1.5)
        assert rest.closed
        [entry] = it.kept
        assert "lease" in entry.trail[0].cause


class Confused(Prompt):
    """A transport that has begun, and raises all the same."""

    def __init__(self, *, told: bool) -> None:
        super().__init__(OK)
        self.told = told
        self.later: list[Callable[[Answer], None]] = []

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        if self.told:
            done(OK)
        self.later.append(done)
        raise RuntimeError("a bug of ours")


@pytest.mark.parametrize("told", [True, False])
@virtually
async def test_an_attempt_has_one_end_whatever_its_transport_does(told: bool) -> None:
    """I7: a place that was given back twice would be one too many for ever."""
    service = Confused(told=told)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(0.5)
        for done in service.later:
            done(OK)
        await asyncio.sleep(0.1)
        [lane] = it.node.scheduler.statistics().lanes.values()
        assert lane.busy == 0
        assert states(it) == [State.DELIVERED if told else State.WAITING]


@virtually
async def test_what_is_said_after_the_end_is_not_held_open() -> None:
    """Whoever gets a body must close it, also where nobody wants it any longer."""
    service = Prompt(OK, takes_s=10**6)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(LEAST_S)
        assert service.begun[0].abandoned
        rest = Trickle()
        service.begun[0].done(Response(200, b"", (), b"", rest))
        assert rest.closed


class Late(MemorySpool):
    """A spool whose first lease comes back when it is over."""

    def __init__(self, *, takes_s: float) -> None:
        super().__init__()
        self.takes_s = takes_s

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases = await super().lease(wants, now=now, until=until)
        takes_s, self.takes_s = self.takes_s, 0
        await asyncio.sleep(takes_s)
        return leases


@pytest.mark.parametrize("at_hand", [True, False])
@virtually
async def test_a_lease_that_comes_too_late_begins_nothing(at_hand: bool) -> None:
    """I4: by then another may have it. It is given back, and comes due at once."""
    service = Prompt(OK)
    service.at_hand = at_hand
    spool = Late(takes_s=LEAST_S + 1)
    async with world(service=service, spool=spool) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(LEAST_S + 60)
        assert states(it) == [State.DELIVERED]
        assert [dict(a.fields)[b"Unspool-Attempt"] for a in service.attempts] == [b"2"]


class Stuck(MemorySpool):
    """A spool whose settles take so long each, and then fail, as told."""

    def __init__(self, *steps: tuple[float, bool]) -> None:
        super().__init__()
        self.steps = list(steps)
        self.settles = 0

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        self.settles += 1
        takes_s, works = self.steps.pop(0)
        await asyncio.sleep(takes_s)
        if not works:
            raise Unavailable("simulated")
        return await super().settle(settlements)


@virtually
async def test_after_the_stop_the_spool_is_left_alone() -> None:
    """It is its owner's to close: nobody writes to it later, in a loop that goes on."""
    spool = Stuck(*[(5, False)] * 9)
    async with world(spool=spool, service=Prompt(OK)) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(1)
        await it.node.stop(drain_ms=1_000)
        before = spool.settles
        await asyncio.sleep(300)
        assert spool.settles == before == 1


@virtually
async def test_a_verdict_has_one_end(caplog: pytest.LogCaptureFixture) -> None:
    """The drain ends while a verdict is being written once more: it is told of once."""
    spool = Stuck((0, False), (2.5, True))
    async with world(spool=spool, service=Prompt(OK)) as it:
        await save(it, 1)
        now = it.clock.now()
        [entry] = it.kept
        wants = {entry.message.destination: 1}
        [lease] = await spool.lease(wants, now=now, until=Instant(now + LEASE_MS))
        ends = [(lease, Deferred(due_at=now))]
        waits = asyncio.create_task(it.node.dispatcher._deliveries.end_all(ends))
        await asyncio.sleep(2)
        assert spool.settles == 2
        assert await it.node.stop(drain_ms=1_000)
        await waits
        assert it.node.dispatcher.deferred == 1
    assert "mistake" not in caplog.text


@pytest.mark.parametrize("again", [False, True])
@virtually
async def test_a_spool_that_hangs_keeps_no_stop(again: bool) -> None:
    """Neither in a verdict's first write nor in its second; and it is told that one is missing."""
    spool = Stuck((0, False), (1e6, True)) if again else Stuck((1e6, True))
    async with world(spool=spool, service=Prompt(OK)) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(2)
        began = it.clock.now()
        assert not await it.node.stop(drain_ms=5_000)
        assert it.clock.now() - began <= 5_000 + LAST_WRITES_MS
        assert it.node.dispatcher.unwritten == 1
        assert states(it) == [State.WAITING]


class Silent(MemorySpool):
    """A spool that is asked for leases, and says nothing."""

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        await asyncio.sleep(1e6)
        return []


@virtually
async def test_a_lease_that_never_comes_keeps_no_stop() -> None:
    async with world(spool=Silent(), service=Prompt(OK)) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(1)
        began = it.clock.now()
        assert await it.node.stop(drain_ms=5_000), "nothing was given to it that it has not taken"
        assert it.clock.now() - began <= 5_000 + LAST_WRITES_MS


class Slow(MemorySpool):
    """What it has begun to lease it leases, whether somebody waits for that or not."""

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        async def in_a_moment() -> Sequence[Lease]:
            await asyncio.sleep(0.1)
            return await MemorySpool.lease(self, wants, now=now, until=until)

        return await asyncio.shield(asyncio.ensure_future(in_a_moment()))


@virtually
async def test_what_is_just_being_leased_is_given_back_however_short_the_time() -> None:
    """Left leased it would look like an attempt that was cut short, and what may not be repeated
    would end as unknown though it was never sent."""
    async with world(spool=Slow(), service=Prompt(OK)) as it:
        it.node.start()
        await asyncio.sleep(1)
        await it.ask(b"POST", b"/", ASYNC)
        await asyncio.sleep(0.05)
        assert await it.node.stop(drain_ms=0)
        await asyncio.sleep(1)
        [entry] = it.kept
        assert not entry.message.repeat
        assert entry.leased_until <= it.clock.now()
        assert it.service.attempts == []


@virtually
async def test_a_newcomer_for_another_is_not_behind_a_full_window() -> None:
    """What the survey said is believed for 50 ms; who has come since then waits no longer."""
    other = Destination("http://old")
    async with world() as it:
        await save(it, 6)
        *firsts, last = it.kept
    message = replace(last.message, destination=other)
    service = Prompt(OK, takes_s=30)
    async with world(service=service, formerly=(other,)) as it:
        it.node.start()
        await asyncio.sleep(0.1)
        await it.spool.accept(firsts)
        await asyncio.sleep(0.025)
        assert service.busy == 5
        await it.spool.accept([replace(last, message=message)])
        await asyncio.sleep(0.05)
        assert service.busy == 6


class Two(Prompt):
    """Quick, and for some very slow."""

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        self.takes_s = 500 if request.target == b"/slow" else 0.0003
        return super().begin(request, done, repeat=repeat)


@pytest.mark.parametrize("count", [19, 20])
@virtually
async def test_a_slow_destination_does_not_slow_another_down(count: int) -> None:
    """Whose places never come free is not waited for at each lease of who is quick."""
    other = Destination("http://old")
    async with world() as it:
        await save(it, count)
        slow = [entry.message for entry in it.kept]
    request = replace(slow[0].request, target=b"/slow")  # type: ignore[type-var]
    spool = Counted()
    async with world(spool=spool, service=Two(OK), formerly=(other,)) as it:
        for number in range(1_000):
            await it.ask(b"POST", b"/", ASYNC, key=f"quick{number}")
        for name in (other, it.node.plan.options.destination):
            it.node.scheduler.lane(name).window = 20
        slow = [replace(message, destination=other, request=request) for message in slow]
        now = it.clock.now()
        await spool.accept([Entry(message, State.WAITING, now) for message in slow])
        assert await drained(it, 1_000) < 1_000 / 20 * 0.0016


@virtually
async def test_with_every_task_cancelled_the_stop_waits_for_nothing() -> None:
    """As a signal handler does that goes through all tasks: a verdict that nobody writes any longer
    is not under way."""
    spool = Stuck((3600, True))
    async with world(spool=spool, service=Prompt(OK)) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.1)
        before = asyncio.get_running_loop().time()
        await it.node.stop(drain_ms=60_000)
        assert asyncio.get_running_loop().time() < before + 1
