"""Groups custody, identity and claims: what `accept` promises (clauses 1, 2, 3)."""

from __future__ import annotations

from msgspec.structs import replace

from ...core.lifecycle import Forgotten, Reason, State
from ...core.message import NEVER, Instant
from ...spools.protocol import Duplicate, Lease, Mismatch, New, Query, Spool, Survives
from .values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    MINUTE,
    NOW,
    SECOND,
    Suite,
    attempt,
    claimed,
    deferred,
    delivered,
    found,
    key,
    later,
    lease_all,
    lease_one,
    names_of,
    settled,
    shown,
    waiting,
)


class Custody(Suite):
    async def test_an_accepted_entry_is_found(self, spool: Spool) -> None:
        """1. When accept returns, each New entry is found by anyone who looks."""
        entries = [waiting("a"), claimed("b"), settled("c")]
        answers = await spool.accept(entries)
        assert answers == [New(entry) for entry in entries]
        keys = [key(name) for name in "abc"]
        assert list(await spool.find(keys)) == [shown(entry) for entry in entries]

    async def test_what_is_leased_is_what_was_accepted(self, spool: Spool) -> None:
        """1. A message comes back whole: method, target, every field in its order, body."""
        entry = waiting("a", order_key="line", repeat=False)
        await spool.accept([entry])
        lease = await lease_one(spool)
        assert lease.entry.message == entry.message

    async def test_it_outlives_what_is_promised_and_no_more(self, spool: Spool) -> None:
        """1. Each New entry outlives what `promises.survives` says, and the table is no boast."""
        await spool.accept([waiting("a"), claimed("b"), settled("c")])
        await spool.aclose()
        again = await self.open()
        entries = await again.find([key(name) for name in "abc"])
        await again.aclose()
        if again.promises.survives is Survives.NOTHING:
            assert list(entries) == [None, None, None]
        else:
            states = [entry.state if entry else None for entry in entries]
            assert states == [State.WAITING, State.CLAIMED, State.DELIVERED]

    async def test_a_message_that_outlived_can_be_leased(self, spool: Spool) -> None:
        """1. Custody is of the request, not of the fact."""
        entry = waiting("a")
        await spool.accept([entry])
        await spool.aclose()
        again = await self.open()
        leases = await lease_all(again)
        await again.aclose()
        survived = again.promises.survives is not Survives.NOTHING
        assert [lease.entry.message for lease in leases] == ([entry.message] if survived else [])

    async def test_an_empty_batch_is_a_batch(self, spool: Spool) -> None:
        """1. Every verb takes batches; one of nothing does nothing."""
        assert list(await spool.accept([])) == []
        assert list(await spool.settle([])) == []
        assert list(await spool.find([])) == []
        assert list(await spool.seize([], now=NOW, until=LEASED_UNTIL)) == []
        assert list(await spool.lease({}, now=NOW, until=LEASED_UNTIL)) == []
        assert list(await spool.expire(now=NOW, until=LEASED_UNTIL, limit=9)) == []

    async def test_a_large_batch(self, spool: Spool) -> None:
        """1. The answers are in the order of the entries, however many there are."""
        entries = [waiting(f"{number:04}") for number in range(1_000)]
        answers = await spool.accept(entries)
        assert [answer.entry.message.key for answer in answers] == [
            entry.message.key for entry in entries
        ]
        assert len(await lease_all(spool, limit=2_000)) == 1_000


class MovedIn(Suite):
    async def test_what_waited_elsewhere_is_kept_as_it_was(self, spool: Spool) -> None:
        """1. With its attempts and its trail: the next attempt has the next number (6)."""
        entry = replace(waiting("a"), attempt=3, trail=(attempt(1), attempt(3)))
        assert isinstance((await spool.accept([entry]))[0], New)
        assert await found(spool, "a") == shown(entry)
        lease = await lease_one(spool)
        assert (lease.entry.attempt, lease.abandoned) == (4, False)
        assert lease.entry.message.request == entry.message.request
        assert list(await spool.settle([(lease, delivered())])) == [True]

    async def test_what_comes_with_a_lease_is_leased(self, spool: Spool) -> None:
        """4. Whoever accepts it is trying it: nobody else gets it before the lease ends, and who
        gets it then is told that it was abandoned. The verdict of the first is good until then."""
        ours = [
            replace(waiting(name, repeat=name != "c"), attempt=1, leased_until=LEASED_UNTIL)
            for name in ("a", "b", "c")
        ]
        assert list(await spool.accept(ours)) == [New(entry) for entry in ours]
        first, second, third = [Lease(entry, LEASED_UNTIL) for entry in ours]
        assert not await spool.lease({HERE: 5}, now=later(SECOND), until=later(MINUTE))
        assert list(await spool.seize([key("a")], now=later(SECOND), until=later(MINUTE))) == [None]
        assert list(await spool.settle([(first, delivered())])) == [True]
        assert list(await spool.settle([(second, deferred(due_at=later(2 * SECOND)))])) == [True]
        [again] = await spool.lease({HERE: 5}, now=later(3 * SECOND), until=LEASED_UNTIL)
        assert (names_of([again]), again.abandoned) == (["b"], False)
        after = Instant(LEASED_UNTIL + SECOND)
        leases = list(await spool.lease({HERE: 5}, now=after, until=Instant(after + MINUTE)))
        attempts = [lease.entry.attempt for lease in leases]
        assert sorted(zip(names_of(leases), attempts, strict=True)) == [("b", 3), ("c", 2)]
        assert all(lease.abandoned for lease in leases)
        assert list(await spool.settle([(third, delivered())])) == [False]

    async def test_what_was_held_elsewhere_is_held(self, spool: Spool) -> None:
        """1, 9. Due NEVER: not leased and not surveyed, but by an operator."""
        entry = waiting("a", due_at=NEVER)
        await spool.accept([entry])
        assert await found(spool, "a") == shown(entry)
        assert list(await spool.survey(after=None, limit=9)) == []
        assert await lease_all(spool) == []
        assert names_of(list(await spool.browse(Query(held=True), after=None, limit=9))) == ["a"]
        [lease] = await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL)
        assert lease is not None

    async def test_what_ended_elsewhere_has_ended(self, spool: Spool) -> None:
        """1, 3, 7. Bounced, or delivered with the answer forgotten: known, not tried, and swept."""
        told = replace(settled("b"), answer=None, answer_until=NOW)
        given_up = replace(
            settled("a"), state=State.BOUNCED, answer=None, reason=Reason.EXPIRED.value,
            answer_until=Instant(0),
        )  # fmt: skip
        answers = await spool.accept([given_up, told])
        assert [type(one) for one in answers] == [New, New]
        assert await found(spool, "a") == shown(given_up)
        assert await found(spool, "b") == shown(told)
        assert isinstance((await spool.accept([waiting("a")]))[0], Duplicate)
        assert await lease_all(spool) == []
        assert names_of(list(await spool.browse(Query(), after=None, limit=9))) == ["a", "b"]
        assert await spool.sweep(now=later(31 * DAY), limit=9) == 2
        assert await found(spool, "a") is None


class Identity(Suite):
    async def test_a_known_key_does_not_create(self, spool: Spool) -> None:
        """2. A message that was accepted twice is there once."""
        first = waiting("a")
        await spool.accept([first])
        [answer] = await spool.accept([waiting("a", at=later(SECOND), due_at=later(SECOND))])
        assert answer == Duplicate(shown(first))
        assert names_of(await lease_all(spool, now=later(MINUTE), until=later(DAY))) == ["a"]

    async def test_a_known_key_does_not_alter(self, spool: Spool) -> None:
        """2. A repeat changes nothing of what is there (I5)."""
        first = waiting("a")
        await spool.accept([first])
        await spool.accept([waiting("a", due_at=NEVER, order_key="x", nonce=b"another nonce...")])
        assert await found(spool, "a") == shown(first)
        assert (await lease_one(spool)).entry.message == first.message

    async def test_another_request_under_a_key_is_a_mismatch(self, spool: Spool) -> None:
        """2. A fingerprint that differs makes a Mismatch, and changes nothing."""
        first = waiting("a")
        await spool.accept([first])
        [answer] = await spool.accept([waiting("a", fingerprint=b"another print...")])
        assert answer == Mismatch(shown(first))
        assert await found(spool, "a") == shown(first)

    async def test_two_of_one_key_in_one_batch(self, spool: Spool) -> None:
        """2. Two entries with one key in one batch: the second is Duplicate or Mismatch."""
        first = waiting("a")
        repeat = waiting("a", at=later(SECOND))
        reuse = waiting("a", fingerprint=b"another print...")
        answers = await spool.accept([first, repeat, waiting("b"), reuse])
        assert list(answers) == [
            New(first),
            Duplicate(shown(first)),
            New(waiting("b")),
            Mismatch(shown(first)),
        ]

    async def test_a_key_is_remembered_or_not_as_promised(self, spool: Spool) -> None:
        """2. Once settled, a repeat is given the same answer again; where nothing is remembered,
        the table says so."""
        await spool.accept([waiting("a")])
        await spool.settle([(await lease_one(spool), delivered("the answer"))])
        [answer] = await spool.accept([waiting("a", at=later(MINUTE))])
        if spool.promises.remembers:
            assert isinstance(answer, Duplicate)
            assert answer.entry.answer == delivered("the answer").answer
        else:
            assert isinstance(answer, New)

    async def test_a_settled_entry_can_be_accepted(self, spool: Spool) -> None:
        """2. An answer to remember is an entry as any other: it is repeated, and never leased."""
        await spool.accept([settled("a")])
        [answer] = await spool.accept([claimed("a")])
        assert answer == Duplicate(settled("a"))
        assert await lease_all(spool) == []

    async def test_keys_are_compared_exactly(self, spool: Spool) -> None:
        """2. Keys that differ in case or in one character are two."""
        answers = await spool.accept([waiting("a"), waiting("A"), waiting("a "), waiting("ä")])
        assert all(isinstance(answer, New) for answer in answers)


class Claims(Suite):
    async def test_a_claim_is_not_leased_or_surveyed(self, spool: Spool) -> None:
        """3. Nothing was promised for a claim: it is not surveyed and not leased, ever."""
        await spool.accept([claimed("a")])
        assert list(await spool.survey(after=None, limit=10)) == []
        assert await lease_all(spool, now=later(DAY), until=later(2 * DAY)) == []
        assert list(await spool.seize([key("a")], now=later(DAY), until=later(2 * DAY))) == [None]

    async def test_a_claim_in_force_is_a_duplicate(self, spool: Spool) -> None:
        """3. While somebody tries it, a repeat is told so."""
        first = claimed("a")
        await spool.accept([first])
        [answer] = await spool.accept([claimed("a", at=later(MINUTE - 1), until=later(DAY))])
        assert answer == Duplicate(shown(first))

    async def test_a_claim_that_ran_out_is_taken_over(self, spool: Spool) -> None:
        """3. If its lease has run out by the newcomer's accepted_at, it is New, one higher."""
        await spool.accept([claimed("a")])
        newcomer = claimed("a", at=LEASED_UNTIL, until=later(DAY), nonce=b"the second nonce")
        [answer] = await spool.accept([newcomer])
        assert answer == New(replace(newcomer, attempt=2))
        assert await found(spool, "a") == shown(replace(newcomer, attempt=2))

    async def test_a_message_may_take_over_a_claim(self, spool: Spool) -> None:
        """3. The newcomer may come in any form: now it waits, and can be leased."""
        await spool.accept([claimed("a")])
        newcomer = waiting("a", at=LEASED_UNTIL, nonce=b"the second nonce")
        assert list(await spool.accept([newcomer])) == [New(replace(newcomer, attempt=2))]
        lease = await lease_one(spool, now=LEASED_UNTIL, until=later(DAY))
        assert lease.entry.attempt == 3

    async def test_a_taken_over_claim_cannot_be_settled(self, spool: Spool) -> None:
        """3, 6. Whoever lost the claim cannot end it."""
        [first] = await spool.accept([claimed("a")])
        [second] = await spool.accept([claimed("a", at=LEASED_UNTIL, until=later(DAY))])
        if not spool.promises.fences:
            return
        assert list(await spool.settle([(Lease(first.entry, LEASED_UNTIL), delivered())])) == [
            False
        ]
        assert list(await spool.settle([(Lease(second.entry, later(DAY)), delivered())])) == [True]

    async def test_another_request_does_not_take_over(self, spool: Spool) -> None:
        """2, 3. A fingerprint that differs makes a Mismatch, whatever else."""
        first = claimed("a")
        await spool.accept([first])
        reuse = claimed("a", at=later(DAY), fingerprint=b"another print...")
        assert list(await spool.accept([reuse])) == [Mismatch(shown(first))]

    async def test_a_claim_can_be_delivered(self, spool: Spool) -> None:
        """3, 7. The answer of a request that was claimed is kept for its repeats."""
        [claim] = await spool.accept([claimed("a")])
        [kept] = await spool.settle([(Lease(claim.entry, LEASED_UNTIL), delivered("yes"))])
        assert kept
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.answer) == (State.DELIVERED, delivered("yes").answer)

    async def test_a_claim_can_become_a_message(self, spool: Spool) -> None:
        """3, 7. Deferred makes a claim a waiting message: custody begins, with its request."""
        [claim] = await spool.accept([claimed("a")])
        await spool.settle([(Lease(claim.entry, LEASED_UNTIL), deferred(later(SECOND)))])
        assert [lane.destination for lane in await spool.survey(after=None, limit=9)] == [HERE]
        lease = await lease_one(spool, now=later(SECOND))
        assert lease.entry.message == claimed("a").message
        assert (lease.entry.attempt, lease.abandoned) == (2, False)

    async def test_a_forgotten_claim_frees_its_key(self, spool: Spool) -> None:
        """7. Forgotten removes a claim: the next is New, from the beginning."""
        [claim] = await spool.accept([claimed("a")])
        assert list(await spool.settle([(Lease(claim.entry, LEASED_UNTIL), Forgotten())])) == [True]
        assert await found(spool, "a") is None
        newcomer = claimed("a", fingerprint=b"another print...", nonce=b"the second nonce")
        assert list(await spool.accept([newcomer])) == [New(newcomer)]

    async def test_forgetting_twice_does_not_forget_the_next(self, spool: Spool) -> None:
        """6, 12. Settling again after trouble is safe: the claim made since under the same key has
        the same number and another nonce, and is not this one."""
        if not spool.promises.fences:
            return
        [claim] = await spool.accept([claimed("a")])
        lease = Lease(claim.entry, LEASED_UNTIL)
        await spool.settle([(lease, Forgotten())])
        await spool.accept([claimed("a", nonce=b"the second nonce")])
        assert list(await spool.settle([(lease, Forgotten())])) == [False]
        assert await found(spool, "a") is not None
