"""Groups order, lease, fence, settle and renewal: who may try, and how it ends (4 to 8, 15)."""

from __future__ import annotations

from msgspec.structs import replace

from ...core.lifecycle import Delivered, Forgotten, Reason, State, Verdict
from ...core.message import NEVER
from ...spools.protocol import Duplicate, Lease, New, Query, Spool, Survives
from .values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    MINUTE,
    NOW,
    SECOND,
    THERE,
    Suite,
    answer,
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
    names_of,
    shown,
    waiting,
)


class Leasing(Suite):
    async def test_a_lease_is_sole(self, spool: Spool) -> None:
        """4. A message in somebody's unexpired lease is not leased again (I4)."""
        await spool.accept([waiting("a")])
        await lease_one(spool)
        assert await lease_all(spool, now=later(MINUTE - 1), until=later(DAY)) == []

    async def test_a_lease_counts_an_attempt(self, spool: Spool) -> None:
        """4. It counts one more attempt, and holds until `until`; `due_at` never shows it."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        assert (lease.entry.attempt, lease.until, lease.abandoned) == (1, LEASED_UNTIL, False)
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.attempt, entry.leased_until, entry.due_at) == (1, LEASED_UNTIL, NOW)
        assert entry.state is State.WAITING

    async def test_nothing_before_it_is_due(self, spool: Spool) -> None:
        """4. Due by now, and not a millisecond before (I8)."""
        await spool.accept([waiting("a", due_at=later(SECOND))])
        assert await lease_all(spool, now=later(SECOND - 1)) == []
        assert names_of(await lease_all(spool, now=later(SECOND))) == ["a"]

    async def test_what_is_held_is_not_leased(self, spool: Spool) -> None:
        """4, 9. Due NEVER is not due, however late it is."""
        await spool.accept([waiting("a", due_at=NEVER)])
        assert await lease_all(spool, now=later(10_000 * DAY), until=later(10_001 * DAY)) == []

    async def test_earliest_due_first(self, spool: Spool) -> None:
        """4. Earliest due first; of equals, the one accepted first."""
        dues = {"a": 3, "b": 1, "c": 2, "d": 1}
        await spool.accept([waiting(name, due_at=later(ms)) for name, ms in dues.items()])
        leases = await lease_all(spool, now=later(SECOND), limit=3)
        assert names_of(leases) == ["b", "d", "c"]

    async def test_up_to_what_is_wanted_of_each(self, spool: Spool) -> None:
        """4. Up to wants[d] of each destination d, and of no other."""
        here = [waiting(f"h{number}") for number in range(5)]
        there = [waiting(f"t{number}", destination=THERE) for number in range(5)]
        await spool.accept([*here, *there])
        leases = await spool.lease({HERE: 2, THERE: 9}, now=NOW, until=LEASED_UNTIL)
        taken = [lease.entry.message.destination for lease in leases]
        assert (taken.count(HERE), taken.count(THERE)) == (2, 5)
        assert names_of(await lease_all(spool)) == ["h2", "h3", "h4"]

    async def test_an_abandoned_lease_comes_due_by_itself(self, spool: Spool) -> None:
        """4. At its end, with the attempt counted, and the next holder is told."""
        await spool.accept([waiting("a")])
        await lease_one(spool)
        again = await lease_one(spool, now=LEASED_UNTIL, until=later(DAY))
        assert (again.entry.attempt, again.abandoned) == (2, True)
        assert again.entry.message == waiting("a").message

    async def test_a_settled_lease_is_not_abandoned(self, spool: Spool) -> None:
        """4. After a verdict the next lease follows a finished attempt."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), deferred(NOW))])
        again = await lease_one(spool)
        assert (again.entry.attempt, again.abandoned) == (2, False)

    async def test_a_lease_of_what_may_not_be_repeated_is_kept(self, spool: Spool) -> None:
        """4. Such a lease is durable before it is returned: after a restart the attempt counts."""
        await spool.accept([waiting("a", repeat=False)])
        await lease_one(spool)
        await spool.aclose()
        again = await self.open()
        entry = await found(again, "a")
        leases = await lease_all(again, now=LEASED_UNTIL, until=later(DAY))
        await again.aclose()
        if again.promises.survives is not Survives.NOTHING:
            assert entry is not None
            assert entry.attempt == 1
            assert [(lease.entry.attempt, lease.abandoned) for lease in leases] == [(2, True)]


class Order(Suite):
    async def test_without_an_order_key_nothing_waits(self, spool: Spool) -> None:
        """5. Messages without an order key wait for nothing but their time."""
        await spool.accept([waiting("a"), waiting("b")])
        assert names_of(await lease_all(spool)) == ["a", "b"]

    async def test_only_the_head_of_a_line(self, spool: Spool) -> None:
        """5. Under one order key only the one accepted first can be leased, due or not."""
        await spool.accept(
            [
                waiting("a", order_key="x", due_at=later(SECOND)),
                waiting("b", order_key="x"),
                waiting("c", order_key="y"),
                waiting("d", order_key="x", destination=THERE),
            ]
        )
        assert names_of(await lease_all(spool)) == ["c"]
        assert names_of(await lease_all(spool, destination=THERE)) == ["d"]
        assert names_of(await lease_all(spool, now=later(SECOND))) == ["a"]

    async def test_the_line_waits_while_its_head_is_leased(self, spool: Spool) -> None:
        """5. While the head is leased the others wait, in later batches too."""
        await spool.accept([waiting("a", order_key="x"), waiting("b", order_key="x")])
        await lease_one(spool)
        await spool.accept([waiting("c", order_key="x")])
        assert await lease_all(spool) == []
        assert names_of(await lease_all(spool, now=LEASED_UNTIL, until=later(DAY))) == ["a"]

    async def test_the_line_waits_while_its_head_is_held(self, spool: Spool) -> None:
        """5. While the head is held the others wait, and the survey does not call for them."""
        await spool.accept([waiting("a", order_key="x", due_at=NEVER), waiting("b", order_key="x")])
        assert await lease_all(spool) == []
        assert list(await spool.survey(after=None, limit=9)) == []
        [lease] = await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL)
        assert lease is not None
        await spool.settle([(lease, deferred(NOW))])
        assert names_of(await lease_all(spool)) == ["a"]

    async def test_the_next_follows_a_settled_head(self, spool: Spool) -> None:
        """5. Once the head has settled, the next is the head; deferred, it stays the head."""
        await spool.accept([waiting(name, order_key="x") for name in "abc"])
        await spool.settle([(await lease_one(spool), deferred(later(SECOND)))])
        assert await lease_all(spool) == []
        await spool.settle([(await lease_one(spool, now=later(SECOND)), delivered())])
        assert names_of(await lease_all(spool)) == ["b"]

    async def test_the_line_outlives_a_restart(self, spool: Spool) -> None:
        """5, 1. The order is as durable as the messages."""
        await spool.accept([waiting(name, order_key="x") for name in "ab"])
        await spool.aclose()
        again = await self.open()
        leases = names_of(await lease_all(again))
        await again.aclose()
        assert leases == (["a"] if again.promises.survives is not Survives.NOTHING else [])

    async def test_seizing_one_in_the_line_moves_nobody(self, spool: Spool) -> None:
        """5. An operator may seize any of them; abandoned, it waits behind the head as before."""
        await spool.accept([waiting("a", order_key="x", due_at=NEVER), waiting("b", order_key="x")])
        [lease] = await spool.seize([key("b")], now=NOW, until=LEASED_UNTIL)
        assert lease is not None
        assert list(await spool.survey(after=None, limit=9)) == []
        assert await lease_all(spool, now=later(DAY), until=later(2 * DAY)) == []

    async def test_a_claim_that_starts_to_wait_takes_its_place(self, spool: Spool) -> None:
        """5. A claim is not in the line; once deferred it is, where it was accepted."""
        [claim] = await spool.accept([claimed("a", order_key="x")])
        await spool.accept([waiting("b", order_key="x"), waiting("c", order_key="x")])
        await spool.settle([(Lease(claim.entry, LEASED_UNTIL), deferred(NOW))])
        assert names_of(await lease_all(spool)) == ["a"]


class Fence(Suite):
    async def test_a_lost_lease_cannot_settle(self, spool: Spool) -> None:
        """6. A settle under a lease that passed on changes nothing and gives False; where nothing
        fences, the table says so."""
        await spool.accept([waiting("a")])
        lost = await lease_one(spool)
        held_now = await lease_one(spool, now=LEASED_UNTIL, until=later(DAY))
        [kept] = await spool.settle([(lost, delivered("late"))])
        assert kept is not spool.promises.fences
        if spool.promises.fences:
            entry = await found(spool, "a")
            assert entry == shown(held_now.entry)
            assert list(await spool.settle([(held_now, delivered("good"))])) == [True]

    async def test_a_late_settle_that_nobody_overtook_is_good(self, spool: Spool) -> None:
        """6. Refusing it would only make duplicates."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool, until=later(SECOND))
        assert await lease_all(spool, destination=THERE, now=later(DAY), until=later(DAY)) == []
        assert list(await spool.settle([(lease, delivered())])) == [True]

    async def test_what_has_settled_stays_as_it_is(self, spool: Spool) -> None:
        """6. Of an entry that has settled nothing changes (I3)."""
        await spool.accept([waiting("a"), waiting("b")])
        leases = await lease_all(spool)
        await spool.settle([(leases[0], delivered("first")), (leases[1], bounced())])
        before = await spool.find([key("a"), key("b")])
        for verdict in (delivered("second"), deferred(NOW), bounced(keep_ms=1), Forgotten()):
            kept = await spool.settle([(lease, verdict) for lease in leases])
            assert list(kept) == [False, False]
        assert await spool.find([key("a"), key("b")]) == before

    async def test_one_refused_settle_refuses_no_other(self, spool: Spool) -> None:
        """6. In a batch each settle has its own answer."""
        await spool.accept([waiting("a"), waiting("b")])
        first, second = await lease_all(spool)
        await spool.settle([(first, delivered())])
        kept = await spool.settle([(first, bounced()), (second, delivered()), (second, bounced())])
        assert list(kept) == [False, True, False]

    async def test_an_operator_takes_part_in_the_fence(self, spool: Spool) -> None:
        """6. What was seized after a lease ran out is the operator's: a late settle is refused."""
        await spool.accept([waiting("a")])
        lost = await lease_one(spool)
        [seized] = await spool.seize([key("a")], now=LEASED_UNTIL, until=later(DAY))
        assert seized is not None
        if spool.promises.fences:
            assert list(await spool.settle([(lost, delivered())])) == [False]
        assert list(await spool.settle([(seized, held())])) == [True]

    async def test_a_settle_of_what_is_unknown(self, spool: Spool) -> None:
        """6. An entry that is gone cannot be settled."""
        stranger = Lease(replace(waiting("a"), attempt=1), LEASED_UNTIL)
        assert list(await spool.settle([(stranger, delivered())])) == [False]
        assert await found(spool, "a") is None


class Settle(Suite):
    async def test_delivered_keeps_the_answer(self, spool: Spool) -> None:
        """7. Delivered ends custody: the answer is kept, byte for byte, and never leased again."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), delivered("yes"))])
        entry = await found(spool, "a")
        assert entry is not None
        assert entry.state is State.DELIVERED
        assert entry.answer == answer("yes")
        assert entry.trail == delivered().trail
        assert (entry.keep_until, entry.answer_until) == (later(30 * DAY), later(DAY))
        assert entry.leased_until == 0
        assert await lease_all(spool, now=later(DAY), until=later(2 * DAY)) == []

    async def test_two_verdicts_in_one_batch(self, spool: Spool) -> None:
        """7, 6. As if one after the other: the second ends what the first has left."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        pairs: list[tuple[Lease, Verdict]]
        pairs = [(lease, deferred(later(SECOND))), (lease, delivered("yes")), (lease, bounced())]
        assert list(await spool.settle(pairs)) == [True, True, False]
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.due_at) == (State.DELIVERED, later(SECOND))
        assert entry.answer == answer("yes")

    async def test_delivered_drops_the_request(self, spool: Spool) -> None:
        """7. A request is kept no longer than it is needed."""
        await spool.accept([waiting("a"), waiting("b")])
        first, second = await lease_all(spool)
        await spool.settle([(first, delivered()), (second, bounced())])
        entries = await spool.browse(Query(), after=None, limit=9, requests=True)
        assert [entry.message.request for entry in entries] == [None, None]

    async def test_an_answer_too_large_to_keep(self, spool: Spool) -> None:
        """7. Of an answer that was not stored the fact and the head are kept."""
        await spool.accept([waiting("a")])
        head = replace(answer(""), body=b"", length=10_000_000)
        verdict = Delivered(head, later(DAY), later(DAY), (), stored=False)
        await spool.settle([(await lease_one(spool), verdict)])
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.answer, entry.stored) == (head, False)

    async def test_bounced_says_why(self, spool: Spool) -> None:
        """7. Bounced ends custody, with its reason and its trail."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), bounced())])
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.reason) == (State.BOUNCED, Reason.EXPIRED)
        assert (entry.answer, entry.trail) == (None, bounced().trail)
        assert entry.keep_until == later(30 * DAY)

    async def test_deferred_is_free_at_once_and_due_then(self, spool: Spool) -> None:
        """7. Deferred makes it waiting, due at its due_at, free at once."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), deferred(later(SECOND)))])
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.due_at, entry.leased_until) == (
            State.WAITING,
            later(SECOND),
            0,
        )
        assert entry.trail == deferred(NOW).trail
        assert await lease_all(spool) == []
        assert names_of(await lease_all(spool, now=later(SECOND))) == ["a"]

    async def test_a_waiting_message_is_not_forgotten(self, spool: Spool) -> None:
        """7. Forgotten of a message that waits is refused: we have promised it (I1)."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        assert list(await spool.settle([(lease, Forgotten())])) == [False]
        assert await found(spool, "a") == shown(lease.entry)
        assert list(await spool.settle([(lease, delivered())])) == [True]

    async def test_a_verdict_outlives_a_restart(self, spool: Spool) -> None:
        """8. A settle is durable when it returns: no answer that was shown is taken back."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), delivered("yes"))])
        before = await found(spool, "a")
        await spool.aclose()
        again = await self.open()
        after = await found(again, "a")
        await again.aclose()
        survived = again.promises.survives is not Survives.NOTHING
        assert after == (before if survived else None)


class Renewal(Suite):
    async def test_a_renewed_lease_holds_for_longer(self, spool: Spool) -> None:
        """15. The message stays its owner's until the new end, and comes due there by itself."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        assert list(await spool.renew([lease], until=later(2 * MINUTE))) == [True]
        assert await lease_all(spool, now=later(2 * MINUTE - 1), until=later(DAY)) == []
        [again] = await lease_all(spool, now=later(2 * MINUTE), until=later(DAY))
        assert again.abandoned

    async def test_a_renewed_claim_is_not_taken_over(self, spool: Spool) -> None:
        """15, 3. Nor is it swept while it is held."""
        [claim] = await spool.accept([claimed("a")])
        lease = Lease(claim.entry, LEASED_UNTIL)
        assert list(await spool.renew([lease], until=later(2 * MINUTE))) == [True]
        assert await spool.sweep(now=later(2 * MINUTE - 1), limit=9) == 0
        [other] = await spool.accept([claimed("a", at=later(2 * MINUTE - 1))])
        assert isinstance(other, Duplicate)
        [other] = await spool.accept([claimed("a", at=later(2 * MINUTE), until=later(DAY))])
        assert isinstance(other, New)
        assert other.entry.attempt == 2

    async def test_a_lost_lease_is_not_renewed(self, spool: Spool) -> None:
        """15, 6. Somebody else has it by now: nothing is changed, and it says so (I3)."""
        [first] = await spool.accept([claimed("a")])
        [second] = await spool.accept([claimed("a", at=LEASED_UNTIL, until=later(2 * MINUTE))])
        lost = Lease(first.entry, LEASED_UNTIL)
        held = Lease(second.entry, later(2 * MINUTE))
        assert list(await spool.renew([lost, held], until=later(DAY))) == [False, True]
        assert list(await spool.settle([(held, delivered())])) == [True]

    async def test_a_lease_that_has_ended_is_not_renewed(self, spool: Spool) -> None:
        """15. Neither settled, nor put off, nor forgotten."""
        await spool.accept([waiting("a"), waiting("b")])
        a, b = await lease_all(spool)
        [claim] = await spool.accept([claimed("c")])
        c = Lease(claim.entry, LEASED_UNTIL)
        await spool.settle([(a, delivered()), (b, deferred(later(SECOND))), (c, Forgotten())])
        assert list(await spool.renew([a, b, c], until=later(DAY))) == [False] * 3
        assert names_of(await lease_all(spool, now=later(SECOND))) == ["b"]

    async def test_a_late_renewal_is_good(self, spool: Spool) -> None:
        """15. Its end had passed, and nobody had overtaken it."""
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        assert list(await spool.renew([lease], until=later(DAY))) == [True]
        assert await lease_all(spool, now=later(MINUTE + 1), until=later(2 * DAY)) == []
