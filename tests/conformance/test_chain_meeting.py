"""The custody chain where two places know of one message: races, doubts, and what lies spoilt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from unspool.core.lifecycle import Forgotten, State
from unspool.core.message import NEVER
from unspool.core.parking import park
from unspool.errors import Corrupt, Unavailable
from unspool.spools.chain.homing import GATE_MAX_S, PAGE
from unspool.spools.protocol import Lease, New, Query
from unspool.testing.conformance.values import (
    LEASED_UNTIL,
    NOW,
    claimed,
    deferred,
    delivered,
    found,
    key,
    later,
    lease_all,
    names_of,
    settled,
    waiting,
)

from .test_chain import OTHER, at, pair_of, secret_of, until


async def test_a_claim_that_somebody_takes_over_while_home_is_told() -> None:
    """I1. A lapsed claim at home is taken over between the look and the telling, and then is
    forgotten: what waits away is still somewhere."""
    async with pair_of(keeps=False) as pair:
        await pair.first.spool.accept([claimed("a", nonce=b"their first.....")])
        await pair.down()
        await pair.chain.accept([waiting("a", nonce=OTHER)])
        pair.first.mode = "well"
        pair.chain.ranks.home.pulse.answered()
        pair.chain.homing._now = lambda: later(10**7)  # their claim has lapsed
        through = pair.first._through
        theirs: list[Lease] = []

        async def late(verb: str, call: Any) -> Any:
            if verb == "settle":
                taken = claimed("a", at=later(10**7), nonce=b"their second....")
                [answer] = await pair.first.spool.accept([taken])
                assert isinstance(answer, New)
                theirs.append(Lease(answer.entry, later(10**8)))
            return await through(verb, call)

        pair.first._through = late  # type: ignore[method-assign]
        await pair.chain.homing.look(move=True)
        pair.first._through = through  # type: ignore[method-assign]
        assert await pair.first.spool.settle([(theirs[0], Forgotten())]) == [True]
        assert await at(pair.first, "a") is None
        entry = await at(pair.second, "a")
        assert entry is not None
        assert entry.state is State.WAITING, "it was promised"


async def test_nothing_goes_out_while_home_is_told_the_secret() -> None:
    """It is up again, and what went out from the next has not been compared: a write that takes its
    time is no gap in which home's copy goes out as well, or anything is brought there."""
    async with pair_of(patient=True) as pair:
        assert await secret_of(pair.chain, b"1" * 32)
        pair.first.mode = "lost"
        await pair.chain.accept([waiting("a"), waiting("b")])
        pair.first.mode = "down"
        a, _ = await lease_all(pair.chain)
        await pair.chain.settle([(a, delivered("once"))])
        through = pair.first._through
        told, may = asyncio.Event(), asyncio.Event()

        async def slowly(verb: str, call: Any) -> Any:
            if verb == "accept":
                told.set()
                await may.wait()
            return await through(verb, call)

        pair.first._through = slowly  # type: ignore[method-assign]
        pair.first.mode = "well"
        await told.wait()
        assert pair.chain.ranks.home.up
        asked = pair.first.asked.copy()
        assert await lease_all(pair.chain) == []
        assert list(await pair.chain.survey(after=None, limit=9)) != [], "b is away, and leased"
        pair.chain.homing.stir()
        await asyncio.sleep(0.01)
        assert pair.first.asked == asked
        may.set()
        await pair.back(home=False)
        assert await lease_all(pair.chain) == []
        copy = await at(pair.first, "a")
        assert copy is not None
        assert (copy.state, copy.answer) == (State.DELIVERED, delivered("once").answer)


async def test_a_hold_away_holds_at_home() -> None:
    """An operator held it while home was away; home's copy, which nobody knew of, does not go."""
    async with pair_of() as pair:
        pair.first.mode = "lost"
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "down"
        [lease] = await pair.chain.seize([key("a")], now=NOW, until=LEASED_UNTIL)
        assert lease is not None
        await pair.chain.settle([(lease, deferred(NEVER))])
        await pair.back()
        entry = await found(pair.chain, "a")
        assert entry is not None
        assert (entry.state, entry.due_at) == (State.WAITING, NEVER)
        assert await lease_all(pair.chain) == []


async def test_what_the_next_may_have_taken_is_looked_for() -> None:
    """12. The sender was told that nobody knows; the next had written it: it goes out, and home
    learns of it."""
    async with pair_of() as pair:
        await pair.down()
        through = pair.second._through

        async def lost(verb: str, call: Any) -> Any:
            pair.second.mode = "lost" if verb == "accept" else "well"
            return await through(verb, call)

        pair.second._through = lost  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="may or may not"):
            await pair.chain.accept([waiting("a")])
        pair.second._through = through  # type: ignore[method-assign]
        assert await at(pair.second, "a"), "it was written"
        pair.second.mode = "well"
        await until(lambda: pair.chain.ranks.all[1].up)
        assert await found(pair.chain, "a")
        await pair.back()
        assert await at(pair.first, "a")
        assert names_of(await lease_all(pair.chain)) == ["a"]


async def test_home_is_held_for_as_long_as_it_is_tried_away() -> None:
    """The attempt away is made again, under another lease: home's copy is held for that one too."""
    async with pair_of(keeps=False) as pair:
        now = NOW
        pair.chain.homing._now = lambda: now
        pair.first.mode = "lost"
        await pair.chain.accept([waiting("a")])
        [lease] = await lease_all(pair.chain)
        pair.first.mode = "well"
        pair.chain.ranks.home.pulse.answered()
        await pair.chain.homing.look(move=False)
        assert await lease_all(pair.first.spool) == []
        now = later(10**6)  # that one was abandoned, and somebody tries it again
        [again] = await lease_all(pair.second.spool, now=now, until=later(2 * 10**6))
        await pair.chain.homing.look(move=False)
        assert lease.entry.message == again.entry.message
        rest = await lease_all(pair.first.spool, now=later(15 * 10**5), until=later(10**7))
        assert rest == [], "it is at the destination"


async def test_a_lease_that_finds_nothing_is_no_sign_of_health() -> None:
    """A first that reads and does not write: each time that it comes back costs somebody a wait, so
    the pauses grow; and one that is full is not asked again because it lent."""
    async with pair_of() as pair:
        pulse = pair.chain.ranks.home.pulse
        pair.first.mode = "lost"
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "well"
        await until(lambda: pair.chain.ranks.home.up)
        assert pulse._pause_ms > 500
        pause_ms = pulse._pause_ms
        await pair.chain.lease({}, now=NOW, until=LEASED_UNTIL)
        await lease_all(pair.chain)
        await pair.chain.expire(now=NOW, until=LEASED_UNTIL, limit=9)
        assert pulse._pause_ms == pause_ms
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "full"
        await pair.chain.accept([waiting("b")])
        asked = pair.first.asked["accept"]
        await lease_all(pair.chain)
        await pair.chain.accept([waiting("c")])
        assert pair.first.asked["accept"] == asked


async def test_one_spoilt_record_at_home_stops_nobody_else() -> None:
    """12. What cannot be compared stays where it is; the rest comes home."""
    async with pair_of(keeps=False) as pair:
        await pair.down()
        await pair.chain.accept([waiting("a"), waiting("b"), waiting("c")])
        pair.first.mode = "well"
        pair.chain.ranks.home.pulse.answered()
        find = pair.first.spool.find

        async def spoilt(keys: Any, /) -> Any:
            if key("b") in keys:
                raise Corrupt("b fails its checksum")
            return await find(keys)

        pair.first.spool.find = spoilt  # type: ignore[method-assign]
        assert not await pair.chain.homing.look(move=True), "b is left"
        pair.first.spool.find = find  # type: ignore[method-assign]
        rows = await pair.first.spool.browse(Query(), after=None, limit=9)
        assert names_of(list(rows)) == ["a", "c"]
        entry = await at(pair.second, "b")
        assert entry is not None
        assert entry.state is State.WAITING


async def test_a_page_goes_on_where_it_was_read() -> None:
    """Both places know the key: who goes on behind it goes on at the one that he was shown."""
    async with pair_of() as pair:
        await pair.down()
        names = [f"s{number}" for number in range(4)]
        await pair.chain.accept([settled(name) for name in names])
        await pair.back()
        await pair.chain.accept([waiting("z")])
        rows = await pair.chain.browse(Query(), after=None, limit=9)
        assert names_of(list(rows)) == [*names, "z", *names]
        again = await pair.chain.browse(Query(), after=rows[6].message.key, limit=9)
        assert names_of(list(again)) == names[2:]


async def test_a_mistake_of_one_custodian_does_not_end_its_probes() -> None:
    """Its secret is spoilt: it is told of, and the next outage ends all the same."""
    async with pair_of() as pair:
        accept = pair.first.spool.accept

        async def spoilt(entries: Any, /) -> Any:
            raise Corrupt("the secret fails its checksum")

        assert await secret_of(pair.chain, b"1" * 32)
        for _ in range(2):
            pair.first.spool.accept = spoilt  # type: ignore[method-assign]
            await pair.down()
            assert not pair.chain.ranks.home.up
            pair.first.mode = "well"
            await until(lambda: pair.chain.ranks.home.up)
            await asyncio.sleep(0.02)
        pair.first.spool.accept = accept  # type: ignore[method-assign]
        [answer] = await pair.chain.accept([waiting("a")])
        assert isinstance(answer, New)


async def test_what_is_being_moved_in_away_stays_there() -> None:
    """Its mover lets it go where it has put it: at home it would be held for ever."""
    async with pair_of(keeps=False) as pair:
        trail = park((), due_at=NOW, number=1, now=NOW)
        await pair.second.spool.accept([replace(waiting("a", due_at=NEVER), trail=trail)])
        assert not await pair.chain.homing.look(move=True)
        assert await at(pair.first, "a") is None
        entry = await at(pair.second, "a")
        assert entry is not None
        assert (entry.state, entry.due_at) == (State.WAITING, NEVER)


async def test_home_is_not_told_of_what_is_being_tried_away() -> None:
    """Its claim would become a message that is due, while the one away is at the destination."""
    async with pair_of(keeps=False) as pair:
        await pair.first.spool.accept([claimed("a")])
        await pair.second.spool.accept([waiting("a")])
        [lease] = await lease_all(pair.second.spool)
        assert not await pair.chain.homing.look(move=True)
        assert await lease_all(pair.first.spool) == []
        await pair.second.spool.settle([(lease, delivered("once"))])
        await pair.chain.homing.look(move=True)
        entry = await at(pair.first, "a")
        assert entry is not None
        assert (entry.state, entry.answer) == (State.DELIVERED, delivered("once").answer)


async def test_a_long_comparison_does_not_hold_deliveries_up_for_ever() -> None:
    """The notes of a long outage are read page by page; after a minute what is due goes out."""
    async with pair_of(keeps=False) as pair:
        await pair.second.spool.accept([settled(f"s{number}") for number in range(PAGE + 1)])
        await pair.first.spool.accept([waiting("a")])
        pair.chain.homing.shut()
        pair.chain.homing._shut_at -= GATE_MAX_S + 1
        through = pair.second._through
        seen: list[bool] = []

        async def looked(verb: str, call: Any) -> Any:
            seen.append(pair.chain.homing.compared)
            return await through(verb, call)

        pair.second._through = looked  # type: ignore[method-assign]
        await pair.chain.homing.look(move=False)
        assert (seen[0], seen[-1]) == (False, True), "it was opened before the look had ended"
