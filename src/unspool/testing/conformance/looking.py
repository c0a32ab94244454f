"""Groups look-up, sweep and expiry: survey, browse, tally, seize, and what ends (9, 10, 11, 14)."""

from __future__ import annotations

from typing import Final

import pytest

from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant
from ...spools.protocol import Entry, LaneDue, Lease, Query, Spool, Tally
from .values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    MINUTE,
    NOW,
    SECOND,
    THERE,
    Suite,
    bounced,
    claimed,
    deferred,
    delivered,
    found,
    held,
    key,
    later,
    lease_all,
    lease_one,
    message,
    names_of,
    settled,
    waiting,
)

AN_ATTEMPT: Final = later(6 * DAY)


async def browsed(spool: Spool, query: Query | None = None, *, limit: int = 100) -> list[Entry]:
    return list(await spool.browse(query or Query(), after=None, limit=limit))


class LookUp(Suite):
    async def test_survey_goes_by_name(self, spool: Spool) -> None:
        """9. By name, not by due time, each with its earliest due instant."""
        await spool.accept(
            [
                waiting("a", destination=THERE, due_at=later(1)),
                waiting("b", due_at=later(9)),
                waiting("c", due_at=later(5)),
            ]
        )
        lanes = list(await spool.survey(after=None, limit=10))
        assert lanes == [LaneDue(HERE, later(5)), LaneDue(THERE, later(1))]

    async def test_survey_goes_on_where_it_stopped(self, spool: Spool) -> None:
        """9. The next `limit` destinations behind `after`: a thousand lanes hide none."""
        lanes = [Destination(f"http://{number:03}.example") for number in range(25)]
        await spool.accept(
            [waiting(f"m{number}", destination=lane) for number, lane in enumerate(lanes)]
        )
        seen: list[Destination] = []
        place: Destination | None = None
        while page := await spool.survey(after=place, limit=10):
            assert len(page) <= 10
            seen += [lane.destination for lane in page]
            place = seen[-1]
        assert seen == lanes

    async def test_a_prefix_of_a_name_is_another_name(self, spool: Spool) -> None:
        """9. Names are compared whole."""
        longer = Destination(HERE + ":80")
        await spool.accept([waiting("a"), waiting("b", destination=longer)])
        assert [lane.destination for lane in await spool.survey(after=HERE, limit=9)] == [longer]
        assert names_of(await lease_all(spool)) == ["a"]

    async def test_survey_of_leased_and_held(self, spool: Spool) -> None:
        """9. Held messages do not count; a leased one counts at its lease's end."""
        await spool.accept([waiting("a"), waiting("h", due_at=NEVER)])
        await lease_one(spool)
        assert list(await spool.survey(after=None, limit=9)) == [LaneDue(HERE, LEASED_UNTIL)]

    async def test_survey_counts_what_can_be_leased(self, spool: Spool) -> None:
        """9, 5. What stands behind the head of its line counts when the head does: else whoever
        surveys and leases would spin."""
        first = waiting("a", order_key="x", due_at=later(MINUTE))
        await spool.accept([first, waiting("b", order_key="x")])
        assert list(await spool.survey(after=None, limit=9)) == [LaneDue(HERE, later(MINUTE))]

    async def test_survey_forgets_what_has_settled(self, spool: Spool) -> None:
        """9. Where nothing waits there is no lane."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), delivered())])
        assert list(await spool.survey(after=None, limit=9)) == []

    async def test_find_what_is_not_there(self, spool: Spool) -> None:
        """Entries in the order of the keys; None for a stranger; a key asked twice, twice."""
        await spool.accept([waiting("a")])
        entries = await spool.find([key("x"), key("a"), key("a")])
        assert [entry and entry.message.key for entry in entries] == [None, key("a"), key("a")]

    async def test_browse_in_order_of_acceptance(self, spool: Spool) -> None:
        """10. Browse in order of acceptance, from `after` on, page by page."""
        names = ["c", "a", "d", "b", "e"]
        await spool.accept([waiting(name) for name in names[:3]])
        await spool.accept([waiting(name) for name in names[3:]])
        first = list(await spool.browse(Query(), after=None, limit=2))
        second = list(await spool.browse(Query(), after=first[-1].message.key, limit=9))
        assert names_of(first) + names_of(second) == names

    async def test_browse_finds_what_is_asked_for(self, spool: Spool) -> None:
        """10. By destination, state, name and whether it is held."""
        await spool.accept(
            [
                waiting("a"),
                waiting("b", destination=THERE),
                waiting("h", due_at=NEVER),
                claimed("c"),
                settled("s"),
            ]
        )
        assert names_of(await browsed(spool, Query(destination=THERE))) == ["b"]
        assert names_of(await browsed(spool, Query(state=State.WAITING))) == ["a", "b", "h"]
        assert names_of(await browsed(spool, Query(state=State.CLAIMED))) == ["c"]
        assert names_of(await browsed(spool, Query(held=True))) == ["h"]
        assert names_of(await browsed(spool, Query(held=False))) == ["a", "b", "c", "s"]
        assert names_of(await browsed(spool, Query(name="name of b"))) == ["b"]
        assert await browsed(spool, Query(name="name of b", destination=HERE)) == []
        assert names_of(await browsed(spool, Query(key=key("b")))) == ["b"]
        assert await browsed(spool, Query(key=key("b"), destination=HERE)) == []
        assert await browsed(spool, Query(key=key("x"))) == []

    async def test_browse_leaves_out_what_is_large(self, spool: Spool) -> None:
        """10. Answers are left out; requests too unless asked for."""
        await spool.accept([waiting("a"), settled("s")])
        bare = await browsed(spool)
        assert [(e.message.request, e.answer) for e in bare] == [(None, None), (None, None)]
        whole = await spool.browse(Query(), after=None, limit=9, requests=True)
        assert [entry.message.request for entry in whole] == [message("a").request, None]

    async def test_tally_by_age(self, spool: Spool) -> None:
        """10. counts[i]: accepted from edges[i] on and before edges[i - 1]; the last: before."""
        ages = {"a": 0, "b": 1, "c": SECOND, "d": MINUTE, "e": DAY}
        await spool.accept(
            [waiting(name, at=Instant(NOW - age)) for name, age in ages.items()]
            + [
                waiting("h", due_at=NEVER, at=Instant(NOW - 2 * DAY)),
                waiting("t", destination=THERE),
                claimed("c2"),
                settled("s"),
            ]
        )
        edges = [NOW, Instant(NOW - SECOND), Instant(NOW - MINUTE)]
        assert list(await spool.tally(edges)) == [
            Tally(HERE, counts=(1, 2, 1, 1), held=1, oldest_at=Instant(NOW - 2 * DAY)),
            Tally(THERE, counts=(1, 0, 0, 0), held=0, oldest_at=NOW),
        ]

    async def test_seize_due_or_not(self, spool: Spool) -> None:
        """Seize leases these, due or not, held or not; the number rises."""
        await spool.accept([waiting("a", due_at=later(DAY)), waiting("h", due_at=NEVER)])
        leases = await spool.seize([key("h"), key("a")], now=NOW, until=LEASED_UNTIL)
        assert [lease and lease.entry.attempt for lease in leases] == [1, 1]
        assert [lease and lease.entry.message.key for lease in leases] == [key("h"), key("a")]
        assert [lease and lease.entry.message.request for lease in leases] == [
            message("h").request,
            message("a").request,
        ]

    async def test_seize_what_cannot_be(self, spool: Spool) -> None:
        """None: unknown, not waiting, in somebody's unexpired lease, or asked for twice."""
        await spool.accept([waiting("a"), claimed("c"), settled("s"), waiting("b", due_at=NEVER)])
        await lease_one(spool)
        keys = [key(name) for name in ("x", "c", "s", "a", "b", "b")]
        leases = await spool.seize(keys, now=NOW, until=LEASED_UNTIL)
        assert [lease is None for lease in leases] == [True, True, True, True, False, True]

    async def test_hold_release_and_drop(self, spool: Spool) -> None:
        """Operators need no verbs of their own: each is seize and settle."""
        await spool.accept([waiting("a")])
        for verdict, leasable in ((held(), []), (deferred(NOW), ["a"])):
            [lease] = await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL)
            assert lease is not None
            assert list(await spool.settle([(lease, verdict)])) == [True]
            assert names_of(await browsed(spool, Query(held=True))) == ([] if leasable else ["a"])
        lease = await lease_one(spool)
        await spool.settle([(lease, bounced())])
        entry = await found(spool, "a")
        assert entry is not None
        assert entry.state is State.BOUNCED

    async def test_what_was_seized_before_its_time_waits_for_it(self, spool: Spool) -> None:
        """4. An operator who vanishes makes nothing due earlier, and releases nothing."""
        await spool.accept([waiting("a", due_at=later(DAY)), waiting("h", due_at=NEVER)])
        await spool.seize([key("a"), key("h")], now=NOW, until=LEASED_UNTIL)
        assert await lease_all(spool, now=later(DAY - 1), until=later(2 * DAY)) == []
        assert list(await spool.survey(after=None, limit=9)) == [LaneDue(HERE, later(DAY))]
        assert names_of(await lease_all(spool, now=later(DAY), until=later(2 * DAY))) == ["a"]

    async def test_a_seizure_that_runs_out_was_no_attempt(self, spool: Spool) -> None:
        """16. An operator, or a broom, that was killed in mid-act has sent nothing."""
        await spool.accept([waiting("a", repeat=False)])
        for day in (1, 2):
            [seized] = await spool.seize(
                [key("a")], now=later(day * DAY), until=later(day * DAY + 9)
            )
            assert seized is not None
            assert not seized.abandoned
        [too_old] = await spool.expire(now=later(6 * DAY), until=later(6 * DAY + 9), limit=9)
        assert not too_old.abandoned
        lease = await lease_one(spool, now=later(7 * DAY), until=later(8 * DAY))
        assert (lease.entry.attempt, lease.abandoned) == (4, False)
        again = await lease_one(spool, now=later(8 * DAY), until=later(9 * DAY))
        assert again.abandoned, "and that was one"

    async def test_a_seizure_hides_no_abandoned_attempt(self, spool: Spool) -> None:
        """16. What an attempt left open stays open, however often it is seized and let fall."""
        await spool.accept([waiting("a", repeat=False)])
        await lease_one(spool)
        for day in (1, 2):
            [seized] = await spool.seize(
                [key("a")], now=later(day * DAY), until=later(day * DAY + 9)
            )
            assert seized is not None
            assert seized.abandoned
        assert (await lease_one(spool, now=later(3 * DAY), until=later(4 * DAY))).abandoned

    async def test_a_settled_seizure_leaves_nothing_behind(self, spool: Spool) -> None:
        """16, 7. What an operator has decided is decided, and the next attempt counts as one."""
        await spool.accept([waiting("a", repeat=False)])
        [seized] = await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL)
        assert seized is not None
        await spool.settle([(seized, deferred(NOW))])
        assert not (await lease_one(spool)).abandoned
        assert (await lease_one(spool, now=later(DAY), until=later(2 * DAY))).abandoned


class Sweep(Suite):
    async def test_entries_go_after_keep_until(self, spool: Spool) -> None:
        """11. Settled entries go once keep_until has passed; then the key is free."""
        await spool.accept([waiting("a"), waiting("b")])
        first, second = await lease_all(spool)
        await spool.settle([(first, delivered(keep_ms=DAY)), (second, bounced(keep_ms=DAY))])
        assert await spool.sweep(now=later(DAY - 1), limit=100) == 0
        if spool.promises.remembers:
            assert await spool.sweep(now=later(DAY), limit=100) == 2
        assert list(await spool.find([key("a"), key("b")])) == [None, None]

    async def test_answers_go_before(self, spool: Spool) -> None:
        """11. The answer goes after answer_until; the fact stays until keep_until."""
        if not spool.promises.remembers:
            pytest.skip("it remembers nothing that has settled")
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), delivered())])
        assert await spool.sweep(now=later(DAY), limit=100) == 1
        assert await spool.sweep(now=later(DAY), limit=100) == 0
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.answer) == (State.DELIVERED, None)
        assert await spool.sweep(now=later(30 * DAY), limit=100) == 1
        assert await found(spool, "a") is None

    async def test_abandoned_claims_go(self, spool: Spool) -> None:
        """11. A claim goes when its lease has run out and keep_until has passed, not before."""
        await spool.accept(
            [
                claimed("a", keep_until=later(SECOND)),
                claimed("b", until=later(SECOND), keep_until=LEASED_UNTIL),
            ]
        )
        assert await spool.sweep(now=later(MINUTE - 1), limit=100) == 0
        assert await spool.sweep(now=later(MINUTE), limit=100) == 2

    async def test_what_waits_stays(self, spool: Spool) -> None:
        """11. It never touches what waits: not the overdue, the expired, the held (I1)."""
        [claim] = await spool.accept([claimed("c", keep_until=later(1))])
        await spool.settle([(Lease(claim.entry, LEASED_UNTIL), deferred(NOW))])
        await spool.accept([waiting("a"), waiting("h", due_at=NEVER)])
        assert await spool.sweep(now=later(10_000 * DAY), limit=100) == 0
        assert names_of(await browsed(spool)) == ["c", "a", "h"]

    async def test_at_most_the_limit(self, spool: Spool) -> None:
        """11. At most `limit` a call, and it says how many."""
        await spool.accept([claimed(f"{number:04}") for number in range(1_200)])
        assert await spool.sweep(now=later(DAY), limit=700) == 700
        assert len(await browsed(spool, limit=2_000)) == 500
        assert await spool.sweep(now=later(DAY), limit=700) == 500
        assert await browsed(spool) == []


class Expiry(Suite):
    async def test_what_is_too_old_can_be_bounced(self, spool: Spool) -> None:
        """14. It is leased once its expires_at has passed, due or not, and then it can end (I2)."""
        await spool.accept([waiting("a", due_at=later(9 * DAY)), waiting("b", at=later(DAY))])
        old = later(5 * DAY)
        assert await expired(spool, now=later(5 * DAY - 1)) == []
        [lease] = await expired(spool, now=old)
        assert names_of([lease]) == ["a"]
        assert (lease.entry.attempt, lease.until, lease.abandoned) == (1, later(6 * DAY), False)
        assert await expired(spool, now=old) == [], "it is leased"
        assert list(await spool.settle([(lease, bounced())])) == [True]
        entry = await found(spool, "a")
        assert entry is not None
        assert entry.state is State.BOUNCED

    async def test_the_oldest_first_up_to_the_limit(self, spool: Spool) -> None:
        """14. Up to `limit`, the oldest first."""
        ages = {"a": 2, "b": 0, "c": 1}
        await spool.accept([waiting(name, at=later(ms)) for name, ms in ages.items()])
        assert names_of(await expired(spool, now=later(6 * DAY), limit=2)) == ["b", "c"]

    async def test_ordered_ones_expire_in_any_place(self, spool: Spool) -> None:
        """14, 5. Ordered or not: one that stands behind its head can end too, and the line goes on
        without it."""
        await spool.accept(
            [
                waiting("a", order_key="x", at=later(DAY)),
                waiting("b", order_key="x"),
                waiting("c", order_key="x", at=later(DAY)),
            ]
        )
        leases = await expired(spool, now=later(5 * DAY))
        assert names_of(leases) == ["b"]
        await spool.settle([(leases[0], bounced())])
        for name in "ac":
            lease = await lease_one(spool, now=later(5 * DAY), until=later(6 * DAY))
            assert names_of([lease]) == [name]
            await spool.settle([(lease, delivered())])

    async def test_what_does_not_expire(self, spool: Spool) -> None:
        """14. Held messages do not expire; claims and what has settled are no messages that wait;
        and a leased one has its attempt first."""
        await spool.accept([waiting("a"), waiting("h", due_at=NEVER), claimed("c"), settled("s")])
        [lease] = await lease_all(spool, until=later(8 * DAY))
        assert await expired(spool, now=later(8 * DAY - 1), until=later(9 * DAY)) == []
        [again] = await expired(spool, now=later(8 * DAY), until=later(9 * DAY))
        assert (names_of([again]), again.abandoned) == (["a"], True)
        if spool.promises.fences:
            assert list(await spool.settle([(lease, delivered())])) == [False]

    async def test_an_expired_lease_has_no_request(self, spool: Spool) -> None:
        """14. They come without their requests: nobody attempts them."""
        await spool.accept([waiting("a")])
        [lease] = await expired(spool, now=later(5 * DAY))
        assert lease.entry.message.request is None


async def expired(
    spool: Spool, *, now: Instant, until: Instant = AN_ATTEMPT, limit: int = 100
) -> list[Lease]:
    return list(await spool.expire(now=now, until=until, limit=limit))
