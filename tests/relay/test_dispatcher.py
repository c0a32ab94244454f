"""The dispatcher: what is saved is delivered, at its time, within its window, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from kit import OK, REFUSED, RESET, It, Service, node, says, told, value
from msgspec.structs import replace

from unspool.core.lane import WINDOW_START
from unspool.core.lifecycle import Deferred, Keeping, Policy, State, Verdict
from unspool.core.message import AT_ONCE, NEVER, Answer, Destination, Instant, Request, Response
from unspool.core.scheduler import LaneDue
from unspool.errors import Full, Unavailable
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import SKEW_MS, Lease
from unspool.testing.clock import VirtualClock, virtually

ASYNC = (b"Prefer", b"respond-async")
LEASE_MS = 90_000


class Counting(Service):
    """A service that takes its time and counts how many it serves at once."""

    def __init__(self, answer: Answer, *, takes_s: float) -> None:
        super().__init__(answer)
        self.takes_s = takes_s
        self.busy = 0
        self.most = 0
        self.began_at: list[float] = []

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        self.began_at.append(asyncio.get_running_loop().time())
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await asyncio.sleep(self.takes_s)
            return await super().attempt(request, repeat=repeat)
        finally:
            self.busy -= 1


@contextlib.asynccontextmanager
async def world(answer: Any = OK, **more: Any) -> AsyncIterator[It]:
    """A node in virtual time; nothing is delivered until it is started."""
    async with node(answer, clock=VirtualClock(), **more) as it:  # type: ignore[arg-type]
        yield it


async def save(it: It, count: int, *fields: tuple[bytes, bytes]) -> list[Response]:
    """So many messages, saved without a try."""
    return [await it.ask(b"POST", b"/", ASYNC, *fields, key=f"k{i}") for i in range(count)]


def states(it: It) -> list[State]:
    return [entry.state for entry in it.kept]


def numbers(it: It) -> list[bytes]:
    return [value(Response(200, b"", a.fields), b"unspool-attempt") for a in it.service.attempts]


# --- delivering ---------------------------------------------------------------------------------


@virtually
async def test_what_is_saved_is_delivered_as_it_was_sent() -> None:
    """Method, target, body and fields go out as they would have at once, with the attempt's
    number."""
    async with world() as it:
        await it.ask(b"PATCH", b"/a?b=c", ASYNC, (b"X-Mine", b"1"), key="k", body=b"body")
        it.node.start()
        await asyncio.sleep(1)
        [sent] = it.service.attempts
        assert (sent.method, sent.target, sent.body) == (b"PATCH", b"/a?b=c", b"body")
        assert (b"X-Mine", b"1") in sent.fields
        assert (b"Idempotency-Key", b'"k"') in sent.fields
        assert (b"Unspool-Attempt", b"1") in sent.fields
        assert states(it) == [State.DELIVERED]
        assert it.node.dispatcher.delivered == 1
        assert it.node.custody.backlog == 0
        [entry] = it.kept
        assert entry.message.request is None


@virtually
async def test_each_attempt_has_its_number_and_waits_longer() -> None:
    """Backoff by age: the gaps grow, and are never under 0.8 s."""
    async with world(RESET) as it:
        service = it.service
        it.node.start()
        seen: list[int] = []

        def note(request: Request) -> Answer:
            seen.append(it.clock.now())
            return RESET

        service.then(note)
        await it.ask(key="k")
        await asyncio.sleep(100)
        assert numbers(it) == [b"%d" % n for n in range(1, len(seen) + 1)]
        gaps = [b - a for a, b in itertools.pairwise(seen)]
        assert len(gaps) >= 5
        assert min(gaps) >= 800
        assert gaps[-1] > 5 * gaps[0]


@virtually
async def test_never_more_than_the_window_at_once() -> None:
    """I7: five to begin with, twenty when all is well, however many wait."""
    service = Counting(OK, takes_s=1)
    async with world(service=service) as it:
        await save(it, 200)
        it.node.start()
        await asyncio.sleep(1.5)
        assert service.most == WINDOW_START
        await asyncio.sleep(120)
        assert WINDOW_START < service.most <= 20
        assert states(it) == [State.DELIVERED] * 200


@virtually
async def test_retry_after_is_obeyed_by_all_of_them() -> None:
    """429 parks the lane: not only this message comes later. One of the others at a time asks
    whether it is over, further and further apart."""
    service = Counting(says(429, b"", (b"Retry-After", b"60")), takes_s=0)
    async with world(service=service) as it:
        await save(it, 30)
        it.node.start()
        await asyncio.sleep(4.9)
        first = len(service.began_at)
        assert first <= WINDOW_START
        await asyncio.sleep(25)
        probes = service.began_at[first:]
        assert 1 <= len(probes) <= 3
        assert min(b - a for a, b in itertools.pairwise(service.began_at[first - 1 :])) >= 4.9
        service.then(OK)
        await asyncio.sleep(60)
        await asyncio.sleep(60)
        assert states(it) == [State.DELIVERED] * 30


@virtually
async def test_a_dead_destination_costs_a_probe_now_and_then_and_comes_back_slowly() -> None:
    """I8: a cohort, then one at a time, 5 s to 300 s apart; and when it is back, 1, 2, 4, …"""
    service = Counting(REFUSED, takes_s=0.01)
    async with world(service=service) as it:
        await save(it, 100)
        it.node.start()
        await asyncio.sleep(1)
        cohort = len(service.began_at)
        assert cohort <= WINDOW_START + 1
        await asyncio.sleep(3600)
        probes = service.began_at[cohort:]
        gaps = [b - a for a, b in itertools.pairwise(probes)]
        assert 10 <= len(probes) <= 40
        assert min(gaps) >= 2.5
        assert max(gaps) <= 301
        service.then(OK)
        service.most = 0
        service.takes_s = 1
        before = len(service.began_at)
        await asyncio.sleep(400)
        begins = service.began_at[before:]
        assert len([at for at in begins if at < begins[0] + 1]) == 1
        assert len([at for at in begins if at < begins[0] + 2]) <= 3
        await asyncio.sleep(2 * 3600)  # those that were probes wait as long again as they waited
        assert states(it) == [State.DELIVERED] * 100


@virtually
async def test_a_window_that_grows_by_what_comes_just_now_is_used() -> None:
    """Beside one slow delivery, which was all that might go, requests that come just now go well:
    what is due does not wait for its end, nor for the next look."""
    async with world(REFUSED) as it:
        await save(it, 6)
        it.node.start()
        await asyncio.sleep(8)
        began: list[float] = []

        async def takes_long() -> Answer:
            began.append(asyncio.get_running_loop().time())
            await asyncio.sleep(25)
            return OK

        it.service.then(lambda request: takes_long() if request.target == b"/" else OK)
        while len(began) < 6:
            await it.ask(b"GET", b"/now", body=b"")
            await asyncio.sleep(0.1)
        assert max(began[2:]) - began[1] < 2
        assert max(began) - began[0] < 30


@virtually
async def test_an_operators_retry_is_tried_at_once_whatever_the_lane_says() -> None:
    """`unspool retry` speaks through the spool: one attempt now, and one only."""
    service = Counting(REFUSED, takes_s=0.01)
    async with world(service=service) as it:
        await save(it, 20)
        it.node.start()
        await asyncio.sleep(1200)
        before = len(service.began_at)
        now = it.clock.now()
        keys = [entry.message.key for entry in it.kept[:2]]
        leases = await it.spool.seize(keys, now=now, until=Instant(now + 1_000))
        assert all(leases)
        word = [(lease, Deferred(AT_ONCE, lease.entry.trail)) for lease in leases if lease]
        await it.spool.settle(word)
        await asyncio.sleep(1)
        assert len(service.began_at) == before + 2
        assert service.most <= WINDOW_START + 1
        service.then(OK)
        [lease] = await it.spool.seize(keys[:1], now=it.clock.now(), until=Instant(now + 9_000))
        assert lease is not None
        await it.spool.settle([(lease, Deferred(AT_ONCE, lease.entry.trail))])
        await asyncio.sleep(1)
        assert states(it)[0] is State.DELIVERED


class Slow(MemorySpool):
    """A spool whose lease takes a while, during which the world turns."""

    def __init__(self) -> None:
        super().__init__()
        self.leased = asyncio.Event()

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases = await super().lease(wants, now=now, until=until)
        if leases:
            self.leased.set()
            await asyncio.sleep(1)
        return leases


@virtually
async def test_the_weather_may_turn_while_the_spool_is_asked() -> None:
    """What was leased under a sky that has closed is given back untried, and nothing breaks."""
    spool = Slow()
    async with world(says(429, b"", (b"Retry-After", b"4")), spool=spool) as it:
        await save(it, 10)
        it.node.start()
        await spool.leased.wait()
        await it.ask(key="live")  # this one is told 429, and so the lane is parked
        await asyncio.sleep(3)
        assert len(it.service.attempts) == 1
        assert all(e.leased_until <= it.clock.now() for e in it.kept)
        it.service.then(OK)
        await asyncio.sleep(120)
        assert states(it) == [State.DELIVERED] * 11


@virtually
async def test_other_destinations_messages_are_left_alone() -> None:
    """I6: our transport does not lead there, and a wrong address is worse than a late delivery."""
    async with world() as it:
        await save(it, 2)
        stray = it.kept[0]
        message = replace(stray.message, destination=Destination("http://elsewhere"))
        it.spool.entries[message.key] = replace(stray, message=message)  # type: ignore[attr-defined]
        it.node.start()
        await asyncio.sleep(3600)
        assert sorted(states(it)) == [State.WAITING, State.DELIVERED]
        assert len(it.service.attempts) == 1


@virtually
async def test_what_waits_under_a_former_name_is_delivered_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The service has moved, or has been given a name: and where not, the warning says how."""
    for formerly in ((), (Destination("http://old"),)):
        async with world(formerly=formerly) as it:
            await save(it, 2)
            stray = it.kept[0]
            message = replace(stray.message, destination=Destination("http://old"))
            it.spool.entries[message.key] = replace(stray, message=message)  # type: ignore[attr-defined]
            it.node.start()
            await asyncio.sleep(60)
            assert len(it.service.attempts) == 1 + len(formerly)
            current = it.node.plan.options.destination
        hint = f"unspool serve --destination {current} --destination http://old,"
        assert (hint in caplog.text) == (not formerly)
        caplog.clear()


@virtually
async def test_of_one_order_only_the_head_is_tried() -> None:
    """FIFO: while the first waits for its next attempt, the others wait for it."""
    async with world(RESET) as it:
        it.node.start()
        for number in range(3):
            await it.ask(
                b"POST",
                b"/",
                ASYNC,
                (b"Unspool-Order", b"o"),
                key=f"k{number}",
                body=b"%d" % number,
            )
        await asyncio.sleep(60)
        assert {a.body for a in it.service.attempts} == {b"0"}
        it.service.then(OK)
        await asyncio.sleep(200)
        assert [a.body for a in it.service.attempts[-3:]] == [b"0", b"1", b"2"]


# --- leases -------------------------------------------------------------------------------------


async def abandoned(it: It) -> None:
    """Somebody leased it and died."""
    now = it.clock.now()
    [entry] = it.kept
    await it.spool.lease({entry.message.destination: 1}, now=now, until=Instant(now + LEASE_MS))


@virtually
async def test_an_abandoned_message_comes_due_by_itself() -> None:
    """No recovery to run: when the lease is over it is tried again."""
    async with world() as it:
        await save(it, 1)
        await abandoned(it)
        it.node.start()
        await asyncio.sleep(LEASE_MS / 1000 - 1)
        assert it.service.attempts == []
        await asyncio.sleep(40)
        assert numbers(it) == [b"2"]
        assert states(it) == [State.DELIVERED]


@virtually
async def test_an_abandoned_message_that_may_not_be_repeated_ends_unknown() -> None:
    """Never silently twice: it may have been applied."""
    async with world(REFUSED) as it:
        answer = await it.ask()
        await asyncio.sleep(2)
        await abandoned(it)
        it.service.then(OK)
        it.node.start()
        await asyncio.sleep(LEASE_MS / 1000 + 40)
        assert len(it.service.attempts) == 1
        assert told(await it.receipt(answer))["reason"] == "unknown"


@virtually
async def test_an_operator_who_died_in_mid_act_has_sent_nothing() -> None:
    """Seized and let fall: a message that may not be repeated goes on as if nothing had been."""
    async with world(REFUSED) as it:
        answer = await it.ask()
        await asyncio.sleep(2)
        now = it.clock.now()
        [entry] = it.kept
        [seized] = await it.spool.seize([entry.message.key], now=now, until=Instant(now + 60_000))
        assert seized is not None
        it.service.then(OK)
        it.node.start()
        await asyncio.sleep(100)
        assert len(it.service.attempts) == 2
        assert told(await it.receipt(answer))["state"] == "delivered"


@virtually
async def test_an_attempt_does_not_outlive_its_lease() -> None:
    """I4: a service that never answers is given up before another attempt may begin."""
    service = Counting(OK, takes_s=10**6)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep((LEASE_MS - SKEW_MS) / 1000 - 0.5)
        assert service.busy == 1
        await asyncio.sleep(1)
        assert service.busy == 0
        await asyncio.sleep(3600)
        assert service.most == 1
        assert len(service.began_at) > 3
        trail = it.kept[0].trail
        assert "lease" in trail[0].cause
        assert trail[0].sent == "maybe applied"


@virtually
async def test_it_bounces_at_its_expiry_also_where_nobody_attempts_it() -> None:
    """I2: a lane that is closed for days does not keep promises open; what is held stays."""
    async with world(REFUSED) as it:
        answers = await save(it, 50, (b"Unspool-Lifetime", b"600"))
        held = it.kept[-1]
        it.spool.entries[held.message.key] = replace(held, due_at=NEVER)  # type: ignore[attr-defined]
        it.node.start()
        await asyncio.sleep(640)
        assert states(it) == [State.BOUNCED] * 49 + [State.WAITING]
        assert told(await it.receipt(answers[0]))["reason"] == "expired"


# --- trouble ------------------------------------------------------------------------------------


@virtually
async def test_our_own_mistake_loses_nothing_and_blames_nobody() -> None:
    """A transport that raises: tried again later, and the lane stays open."""

    def breaks(request: Request) -> Answer:
        raise RuntimeError("a bug of ours")

    async with world(breaks) as it:
        await save(it, 20)
        it.node.start()
        await asyncio.sleep(30)
        [lane] = it.node.scheduler.statistics().lanes.values()
        assert lane.phase == "open"
        it.service.then(OK)
        await asyncio.sleep(120)
        assert states(it) == [State.DELIVERED] * 20


class Ill(MemorySpool):
    """A spool with trouble of a kind, until it is well."""

    def __init__(self) -> None:
        super().__init__()
        self.ill: set[str] = set()
        self.error: Exception = Unavailable("simulated")

    def _anew(self) -> Exception:
        """One that is raised again and again has a longer traceback each time, to be logged."""
        return type(self.error)(*self.error.args)

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        if "survey" in self.ill:
            raise self._anew()
        return await super().survey(after=after, limit=limit)

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        if "settle" in self.ill:
            raise self._anew()
        return await super().settle(settlements)

    async def wait_arrival(self) -> None:
        if "wait" in self.ill:
            raise self._anew()
        await super().wait_arrival()

    async def sweep(self, *, now: Instant, limit: int) -> int:
        if "sweep" in self.ill:
            raise self._anew()
        return await super().sweep(now=now, limit=limit)


@pytest.mark.parametrize("error", [Unavailable("simulated"), RuntimeError("a bug of ours")])
@pytest.mark.parametrize("verb", ["survey", "wait", "sweep"])
@virtually
async def test_trouble_with_the_spool_is_waited_out(verb: str, error: Exception) -> None:
    """Never fatal, be it an outage or a mistake: when the spool is well, the work goes on."""
    spool = Ill()
    async with world(spool=spool) as it:
        spool.ill, spool.error = {verb}, error
        it.node.start()
        await asyncio.sleep(100)
        await save(it, 5)
        await asyncio.sleep(100)
        spool.ill = set()
        await asyncio.sleep(60)
        assert states(it) == [State.DELIVERED] * 5
        await it.ask(b"POST", b"/", ASYNC, key="later")
        await asyncio.sleep(2)
        assert states(it) == [State.DELIVERED] * 6  # and is heard of at once, as before
        assert it.node.ready()["ready"]


@virtually
async def test_a_verdict_is_written_down_again_and_again() -> None:
    """An outage between attempt and settle costs no second attempt, while the lease holds."""
    spool = Ill()
    async with world(spool=spool) as it:
        await save(it, 3)
        spool.ill = {"settle"}
        it.node.start()
        await asyncio.sleep(30)
        assert states(it) == [State.WAITING] * 3
        spool.ill = set()
        await asyncio.sleep(3)
        assert states(it) == [State.DELIVERED] * 3
        assert len(it.service.attempts) == 3


@virtually
async def test_a_verdict_that_cannot_be_written_costs_a_repeat_and_no_more() -> None:
    """When the outage outlasts the lease, the message comes due again: it is not lost."""
    spool = Ill()
    async with world(spool=spool) as it:
        await save(it, 1)
        spool.ill = {"settle"}
        it.node.start()
        await asyncio.sleep(LEASE_MS / 1000 + 60)
        spool.ill = set()
        await asyncio.sleep(200)
        assert states(it) == [State.DELIVERED]
        assert len(it.service.attempts) == 2


class Mean(MemorySpool):
    """A spool whose survey shows what its lease never gives."""

    surveys = 0

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        self.surveys += 1
        return await super().survey(after=after, limit=limit)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        return []


@virtually
async def test_a_race_that_is_always_lost_does_not_spin() -> None:
    """Others may be quicker each time; the spool is asked some twenty times a second at most."""
    spool = Mean()
    async with world(spool=spool) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(60)
        assert spool.surveys <= 60 * 21


@virtually
async def test_a_full_house_does_not_spin() -> None:
    """With every place taken, the spool is left in peace until one is free."""
    spool = Mean()
    service = Counting(OK, takes_s=60)
    async with world(spool=spool, service=service) as it:
        await save(it, 50)
        spool.lease = super(Mean, spool).lease  # type: ignore[method-assign]
        it.node.start()
        await asyncio.sleep(1)
        before = spool.surveys
        await asyncio.sleep(50)
        assert spool.surveys - before <= 10


# --- the broom ----------------------------------------------------------------------------------


@virtually
async def test_what_was_kept_long_enough_is_swept() -> None:
    """First the answer, then the key; what waits is never touched."""
    policy = Policy(keeping=Keeping(answer_ms=60_000, key_ms=600_000))
    async with world(policy=policy) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(30)
        assert it.kept[0].answer is not None
        await asyncio.sleep(60)
        assert it.kept[0].answer is None
        await asyncio.sleep(600)
        assert it.kept == []


class Cramped(MemorySpool):
    """No room for a lease of what is too old; what is forgotten makes room."""

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        raise Full("simulated")


@virtually
async def test_room_is_made_also_where_there_is_none_for_a_bounce() -> None:
    policy = Policy(keeping=Keeping(answer_ms=60_000, key_ms=600_000))
    async with world(policy=policy, spool=Cramped()) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(700)
        assert it.kept == []


@virtually
async def test_an_answer_too_large_to_keep_is_kept_as_a_fact() -> None:
    """The body is not read to its end, and its connection is given up."""

    class Rest:
        closed = False

        async def read(self) -> bytes:
            return b"x" * 1024

        def close(self) -> None:
            self.closed = True

    rest = Rest()
    policy = Policy(keeping=Keeping(answer_max_bytes=4096))
    async with world(Response(200, b"", ((b"ETag", b"1"),), b"", rest), policy=policy) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(10)
        [entry] = it.kept
        assert entry.state is State.DELIVERED
        assert not entry.stored
        assert entry.answer.fields == ((b"ETag", b"1"),)
        assert rest.closed


# --- stopping -----------------------------------------------------------------------------------


@virtually
async def test_stop_lets_what_is_under_way_end_and_begins_nothing_more() -> None:
    """A deploy: five are delivered, the rest stays in the spool, due as before."""
    service = Counting(OK, takes_s=3)
    async with world(service=service) as it:
        await save(it, 20)
        it.node.start()
        await asyncio.sleep(1)
        await it.node.stop(drain_ms=10_000)
        assert sorted(states(it)) == [State.WAITING] * 15 + [State.DELIVERED] * 5
        assert len(service.began_at) == 5
        await asyncio.sleep(600)
        assert len(service.began_at) == 5


@virtually
async def test_stop_cuts_what_takes_too_long_and_it_comes_due_by_itself() -> None:
    """The lease is left to run out: an attempt that was cut may have been applied."""
    service = Counting(OK, takes_s=600)
    async with world(service=service) as it:
        await save(it, 1)
        it.node.start()
        await asyncio.sleep(1)
        await it.node.stop(drain_ms=2_000)
        assert service.busy == 0
        [entry] = it.kept
        assert entry.state is State.WAITING
        assert entry.leased_until > it.clock.now()


@virtually
async def test_stop_in_the_middle_of_a_lease_tries_nothing() -> None:
    """What was being leased at that moment goes back, and nobody runs on after the stop."""
    spool = Slow()
    async with world(spool=spool) as it:
        await save(it, 5)
        it.node.start()
        await spool.leased.wait()
        await it.node.stop(drain_ms=5_000)
        assert it.service.attempts == []
        assert states(it) == [State.WAITING] * 5
        assert all(entry.leased_until <= it.clock.now() for entry in it.kept)


@virtually
async def test_a_node_takes_up_what_another_left() -> None:
    """The spool is the only thing that lasts: answers of a first life are delivered in a second."""
    spool = MemorySpool()
    async with world(REFUSED, spool=spool) as it:
        answer = await it.ask(key="k")
    async with world(OK, spool=spool) as it:
        it.node.start()
        await asyncio.sleep(60)
        assert told(await it.receipt(answer))["state"] == "delivered"
        again = await it.ask(key="k")
        assert again.body == OK.body
