"""Groups concurrency and cancellation: many callers, several holders (clauses 4, 12, 13)."""

from __future__ import annotations

import asyncio

from ...core.lifecycle import Forgotten, State
from ...core.message import NEVER
from ...errors import UnspoolError
from ...spools.protocol import Duplicate, Lease, New, Query, Spool
from .values import (
    LEASED_UNTIL,
    NOW,
    Suite,
    claimed,
    deferred,
    delivered,
    found,
    held,
    key,
    later,
    lease_all,
    lease_one,
    names_of,
    waiting,
)

ARRIVAL_S = 30.0
"""How long to wait for what may be noticed by polling."""
PAUSE_S = 0.01
"""Between two looks: a spool that never lets go of the loop would keep a test for ever."""


class Concurrency(Suite):
    async def test_one_key_from_many_callers(self, spool: Spool) -> None:
        """2. However many come at once, one is New."""
        answers = await asyncio.gather(*(spool.accept([claimed("a")]) for _ in range(20)))
        kinds = [type(answer) for [answer] in answers]
        assert (kinds.count(New), kinds.count(Duplicate)) == (1, 19)

    async def test_leases_are_disjoint(self, spool: Spool) -> None:
        """4. However many ask at once, each message is leased once (I4)."""
        await spool.accept([waiting(f"{number:03}") for number in range(100)])
        batches = await asyncio.gather(*(lease_all(spool, limit=10) for _ in range(15)))
        leases = [lease for batch in batches for lease in batch]
        leases += await _left(spool, 100 - len(leases))
        assert sorted(names_of(leases)) == [f"{number:03}" for number in range(100)]

    async def test_two_who_share_a_spool(self, spool: Spool) -> None:
        """4. Two who have it open lease disjointly and see each other's; or it is not shared."""
        await spool.accept([waiting(f"{number:03}") for number in range(40)])
        if not spool.promises.shared:
            await self._not_shared()
            return
        other = await self.open()
        try:
            batches = await asyncio.gather(
                *(lease_all(one, limit=7) for one in (spool, other) for _ in range(4))
            )
            leases = [lease for batch in batches for lease in batch]
            leases += await _left(other, 40 - len(leases))
            assert sorted(names_of(leases)) == [f"{number:03}" for number in range(40)]
            # Whoever settles, both see it; the other one soon.
            assert all(await other.settle([(lease, delivered()) for lease in leases]))
            async with asyncio.timeout(ARRIVAL_S):
                while await _states(spool) != {State.DELIVERED}:
                    await asyncio.sleep(PAUSE_S)
        finally:
            await other.aclose()

    async def _not_shared(self) -> None:
        try:
            other = await self.open()
        except UnspoolError:
            return  # it refuses a second owner
        assert await lease_all(other) == [], "promises.shared is out of date"
        await other.aclose()

    async def test_an_arrival_wakes_who_waits(self, spool: Spool) -> None:
        """wait_arrival returns when something may have arrived."""
        waiter = asyncio.create_task(spool.wait_arrival())
        await asyncio.sleep(0.01)
        await spool.accept([waiting("a")])
        await asyncio.wait_for(waiter, ARRIVAL_S)

    async def test_an_arrival_before_the_wait_is_not_lost(self, spool: Spool) -> None:
        """Who looks, and then waits, does not sleep through what came in between."""
        await spool.accept([waiting("a")])
        await asyncio.wait_for(spool.wait_arrival(), ARRIVAL_S)

    async def test_an_earlier_due_time_is_an_arrival(self, spool: Spool) -> None:
        """What an operator releases is noticed as what comes in."""
        await spool.accept([waiting("a", due_at=NEVER)])
        await asyncio.wait_for(spool.wait_arrival(), ARRIVAL_S)
        [lease] = await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL)
        assert lease is not None
        waiter = asyncio.create_task(spool.wait_arrival())
        await asyncio.sleep(0.01)
        await spool.settle([(lease, deferred(NOW))])
        await asyncio.wait_for(waiter, ARRIVAL_S)

    async def test_closing_twice(self, spool: Spool) -> None:
        """Letting go of what was let go does nothing."""
        await spool.aclose()
        await spool.aclose()


class Cancellation(Suite):
    async def test_a_cancelled_accept_harms_no_other(self, spool: Spool) -> None:
        """13. It may have happened or not; the others have, and it is whole either way."""
        calls = [asyncio.create_task(_accept(spool, f"{number:03}")) for number in range(30)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        keys = [key(f"{number:03}") for number in range(30)]
        assert all((await spool.find(keys))[1::2])
        leased = names_of(await lease_all(spool))
        assert leased == sorted(leased)
        async with asyncio.timeout(ARRIVAL_S):  # a cancelled one may still be on its way
            while leased != [
                f"{number:03}" for number, entry in enumerate(await spool.find(keys)) if entry
            ]:
                leased = sorted([*leased, *names_of(await lease_all(spool))])
                await asyncio.sleep(PAUSE_S)

    async def test_a_cancelled_lease_comes_back(self, spool: Spool) -> None:
        """13, 4. What a cancelled call has leased comes due at the lease's end."""
        await spool.accept([waiting("a")])
        call = asyncio.create_task(lease_all(spool))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(ARRIVAL_S):  # the cancelled one may still be on its way
            while not (leased := await lease_all(spool, now=LEASED_UNTIL, until=later(99_999_999))):
                await asyncio.sleep(PAUSE_S)
        assert names_of(leased) == ["a"]

    async def test_a_cancelled_wait_is_no_answer(self, spool: Spool) -> None:
        """13. A wait that was given up takes no arrival away from the next."""
        waiter = asyncio.create_task(_wait_on(spool))
        await asyncio.sleep(1.0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        await spool.accept([waiting("a")])
        await asyncio.wait_for(spool.wait_arrival(), ARRIVAL_S)

    async def test_a_cancelled_settle_can_be_repeated(self, spool: Spool) -> None:
        """12, 13. Doing it again is safe: it ends settled, once."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        call = asyncio.create_task(_settle(spool, lease))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await spool.settle([(lease, delivered("yes"))])
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.answer) == (State.DELIVERED, delivered("yes").answer)

    async def test_a_repeated_hold_or_claim_is_safe(self, spool: Spool) -> None:
        """12. After Unavailable a caller repeats: the second time changes nothing more."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        for _ in "12":
            assert list(await spool.settle([(lease, held())])) == [True]
        [claim] = await spool.accept([claimed("c")])
        first = await spool.settle([(Lease(claim.entry, LEASED_UNTIL), Forgotten())])
        again = await spool.settle([(Lease(claim.entry, LEASED_UNTIL), Forgotten())])
        assert (list(first), list(again)) == ([True], [False])


async def _left(spool: Spool, count: int) -> list[Lease]:
    """So many more, if need be one after the other: nobody promises that a lease finds at once
    what another call has just had its hand on."""
    leases: list[Lease] = []
    async with asyncio.timeout(ARRIVAL_S):
        while len(leases) < count:
            leases += (more := await lease_all(spool))
            await asyncio.sleep(0 if more else PAUSE_S)
    return leases


async def _states(spool: Spool) -> set[State]:
    return {entry.state for entry in await spool.browse(Query(), after=None, limit=99)}


async def _wait_on(spool: Spool) -> None:
    while True:  # a spool may say early that something may have come
        await spool.wait_arrival()
        await asyncio.sleep(0)


async def _accept(spool: Spool, name: str) -> None:
    await spool.accept([waiting(name)])


async def _settle(spool: Spool, lease: Lease) -> None:
    await spool.settle([(lease, delivered("yes"))])
