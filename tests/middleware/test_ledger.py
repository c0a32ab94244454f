"""The ledger on a spool in memory and in virtual time: one runs for each key, whatever happens."""

from __future__ import annotations

import asyncio
import gc

import pytest
from asgikit import LEASE_MS, OK, SharedMemory, ask, claimed, ledger, loop_ms, taken
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.core.idempotency import REUSED, UNKNOWN, Do
from unspool.core.lifecycle import Keeping, State
from unspool.core.message import Response
from unspool.core.tenure import Abandoned
from unspool.errors import Corrupt, Unavailable
from unspool.ledger import Claim, Taken
from unspool.testing.clock import VirtualClock, virtually

SECOND = 1_000
HOUR = 3_600_000


def entry_of(spool: SharedMemory, name: str = "k"):
    return spool.entries.get(ask(name).key)


@virtually
async def test_a_key_runs_once_and_is_answered_again() -> None:
    """A key that is known is never run again, and its answer is kept without what belongs to the
    one exchange (B1, B3, B4)."""
    clock = VirtualClock()
    spool = SharedMemory()
    one, other = ledger(spool, clock), ledger(spool, clock)
    claim = await claimed(one)
    assert claim.attempt == 1
    assert await claim.done(OK)
    for each in (one, other):
        found = await taken(each)
        assert found.recall.do is Do.REPLAY
        assert found.entry is not None
        assert found.entry.answer is not None
        assert found.entry.answer.body == b"made"
        assert found.entry.answer.fields == ((b"Location", b"/orders/7"),)


@virtually
async def test_a_shared_key_costs_two_commits_and_a_private_one_one() -> None:
    """What a keyed request costs (issue 3, Cost): counted in commits of the spool."""
    clock = VirtualClock()
    for shared, alone, commits in ((True, False, 2), (True, True, 1), (False, False, 1)):
        spool = SharedMemory(shared=shared)
        one = ledger(spool, clock, alone=alone)
        claim = await claimed(one)
        await claim.done(OK)
        assert spool.commits == commits
        await taken(one)
        assert spool.commits <= commits + (0 if one.alone else 1)  # a replay is not waited for


@virtually
async def test_what_is_released_runs_again_and_costs_nothing_alone() -> None:
    """Nothing came of it: the key is free at once (F7), with no trace."""
    clock = VirtualClock()
    for alone in (False, True):
        spool = SharedMemory()
        one = ledger(spool, clock, alone=alone)
        await (await claimed(one)).release()
        assert entry_of(spool) is None
        assert alone is (spool.commits == 0)
        await (await claimed(one)).done(OK)


@virtually
async def test_what_may_have_had_an_effect_is_told_and_not_run() -> None:
    """F8: unknown ends the key, alone or not."""
    clock = VirtualClock()
    for alone in (False, True):
        one = ledger(SharedMemory(), clock, alone=alone)
        assert await (await claimed(one)).unknown()
        assert (await taken(one)).recall == UNKNOWN


@virtually
async def test_another_request_under_the_key_is_refused_at_once() -> None:
    """C8: while the first runs, here or in another process, and whoever waits meanwhile."""
    clock = VirtualClock()
    spool = SharedMemory()
    one, other = ledger(spool, clock), ledger(spool, clock)
    await claimed(one)
    waiting = asyncio.create_task(other.claim(ask(), wait_ms=60_000))
    await asyncio.sleep(0.5)
    for each in (one, other):
        began = loop_ms()
        assert (await taken(each, ask(body=b"different"), wait_ms=60_000)).recall == REUSED
        assert (await taken(each)).recall.do is Do.WAIT
        assert loop_ms() == began, "told at once, though somebody waits here"
    waiting.cancel()


@virtually
async def test_one_who_waits_gets_the_answer() -> None:
    """E4: in the same process at once, in another within a look."""
    clock = VirtualClock()
    spool = SharedMemory()
    one, other = ledger(spool, clock), ledger(spool, clock)
    claim = await claimed(one)
    waits = [asyncio.create_task(each.claim(ask(), wait_ms=10_000)) for each in (one, other)]
    await asyncio.sleep(2)
    await claim.done(OK)
    for found in await asyncio.gather(*waits):
        assert isinstance(found, Taken)
        assert found.recall.do is Do.REPLAY
    assert loop_ms() < 2_200


@virtually
async def test_waiting_is_bounded_whatever_the_wall_clock_does() -> None:
    """A wait lasts as long as was asked, also when the clock is set back meanwhile."""
    for here in (True, False):
        clock = VirtualClock()
        spool = SharedMemory()
        one, other = ledger(spool, clock), ledger(spool, clock)
        await claimed(one)
        each = one if here else other
        began = loop_ms()
        waits = asyncio.create_task(each.claim(ask(), wait_ms=2_000))
        await asyncio.sleep(0.5)
        clock.step(-HOUR)
        found = await waits
        assert isinstance(found, Taken)
        assert found.recall.do is Do.WAIT
        assert 2_000 <= loop_ms() - began < 2_300


@virtually
async def test_one_who_waits_runs_when_nothing_came_of_it() -> None:
    """E7: a waiter whose holder let go claims the key; one of them, not all."""
    clock = VirtualClock()
    spool = SharedMemory()
    ledgers = [ledger(spool, clock) for _ in range(3)]
    claim = await claimed(ledgers[0])
    waits = [
        asyncio.create_task(each.claim(ask(), wait_ms=1_000)) for each in ledgers for _ in range(5)
    ]
    await asyncio.sleep(0.2)
    await claim.release()
    found = await asyncio.gather(*waits)
    assert sum(isinstance(each, Claim) for each in found) == 1


@virtually
async def test_a_long_run_is_renewed() -> None:
    """F2: a handler may take many leases; nobody takes the key over."""
    clock = VirtualClock()
    spool = SharedMemory()
    one, other = ledger(spool, clock), ledger(spool, clock)
    claim = await claimed(one)
    for _ in range(20):
        await asyncio.sleep(LEASE_MS / 2 / 1000)
        assert (await taken(other)).recall.do is Do.WAIT
    assert await claim.done(OK)
    assert not claim.lost


@virtually
async def test_a_dead_owners_key_is_free_after_its_lease_and_not_before() -> None:
    """F1: seconds, not a day; and the newcomer's token is higher."""
    clock = VirtualClock()
    spool = SharedMemory()
    dead, other = ledger(spool, clock), ledger(spool, clock)
    await claimed(dead)
    await dead.aclose()
    await asyncio.sleep((LEASE_MS - 10) / 1000)
    assert (await taken(other)).recall.do is Do.WAIT
    await asyncio.sleep(0.02)
    assert (await claimed(other)).attempt == 2


@virtually
async def test_an_abandoned_key_ends_as_unknown_where_that_is_asked() -> None:
    """With abandoned="unknown" nobody runs it again; alone, a claim is written for that."""
    clock = VirtualClock()
    for alone in (False, True):
        spool = SharedMemory()
        dead, other = (ledger(spool, clock, abandoned=Abandoned.UNKNOWN, alone=alone) for _ in "12")
        await claimed(dead)
        await dead.aclose()
        await asyncio.sleep(LEASE_MS * 20 / 1000)  # swept or not
        for _ in range(2):
            assert (await taken(other)).recall == UNKNOWN


@virtually
async def test_a_paused_owner_changes_nothing_when_it_wakes() -> None:
    """F3: its completion and its release are refused, and the other's record is unharmed."""
    clock = VirtualClock()
    for ends in ("done", "release", "unknown"):
        spool = SharedMemory()
        paused, other = ledger(spool, clock), ledger(spool, clock)
        slept = await claimed(paused)
        await paused.aclose()  # nothing of it runs any more
        await asyncio.sleep(LEASE_MS / 1000 + 0.1)
        claim = await claimed(other)
        assert claim.attempt > slept.attempt
        if ends == "done":
            assert await slept.done(Response(200, b"", [], b"stale")) is False
        elif ends == "release":
            await slept.release()
        else:
            assert await slept.unknown() is False
        entry = entry_of(spool)
        assert entry is not None
        assert entry.state is State.CLAIMED
        assert await claim.done(OK)
        found = await taken(paused)
        assert found.entry is not None
        assert found.entry.answer is not None
        assert found.entry.answer.body == b"made"


@virtually
async def test_an_owner_that_was_overtaken_learns_it() -> None:
    """A renewal that is refused marks the claim as lost, and it is renewed no more."""
    clock = VirtualClock()
    spool = SharedMemory()
    one, other = ledger(spool, clock), ledger(spool, clock)
    claim = await claimed(one)
    spool.down = True  # its renewals do not arrive
    await asyncio.sleep(LEASE_MS * 1.2 / 1000)
    spool.down = False
    assert (await claimed(other)).attempt == 2
    await asyncio.sleep(LEASE_MS / 1000)
    assert claim.lost
    assert await claim.done(OK) is False


@virtually
async def test_the_attempts_are_counted_on_though_a_sweep_comes_between() -> None:
    """The fencing token of an abandoned claim outlives the sweep: the next one's is higher."""
    clock = VirtualClock()
    spool = SharedMemory()
    dead, other = ledger(spool, clock), ledger(spool, clock)
    await claimed(dead)
    await dead.aclose()
    await asyncio.sleep(60)
    await spool.sweep(now=clock.now(), limit=1000)
    assert (await claimed(other)).attempt == 2


@virtually
async def test_a_clock_that_steps_forward_does_not_make_everybody_dead() -> None:
    """F11: an hour forward, and the owner lives: nobody takes its key over."""
    clock = VirtualClock()
    spool = SharedMemory()
    one, other = ledger(spool, clock), ledger(spool, clock)
    claim = await claimed(one)
    await asyncio.sleep(0.1)
    clock.step(HOUR)
    for _ in range(10):
        assert (await taken(other)).recall.do is Do.WAIT
        await asyncio.sleep(LEASE_MS / 3 / 1000)
    assert await claim.done(OK)
    clock.step(-2 * HOUR)
    assert (await taken(other)).recall.do is Do.REPLAY


@virtually
async def test_a_clock_that_steps_does_not_keep_a_dead_owners_key_for_ever() -> None:
    """The doubt lasts one lease: then the step is believed, and the key is free."""
    clock = VirtualClock()
    spool = SharedMemory()
    dead, other = ledger(spool, clock), ledger(spool, clock)
    await claimed(dead)
    await dead.aclose()
    clock.step(HOUR)
    assert (await taken(other)).recall.do is Do.WAIT
    await asyncio.sleep(LEASE_MS / 1000 + 0.1)
    await claimed(other)


@virtually
async def test_a_cancelled_claim_leaves_nothing_claimed() -> None:
    """E8: cancelled while the claim is on its way to the disk, it is given back."""
    clock = VirtualClock()
    spool = SharedMemory()
    one = ledger(spool, clock)
    spool.hold = asyncio.Event()
    claiming = asyncio.create_task(one.claim(ask()))
    await asyncio.sleep(0.01)
    assert entry_of(spool) is not None
    claiming.cancel()
    await asyncio.sleep(0.01)
    assert claiming.cancelled()
    spool.hold.set()
    await asyncio.sleep(0.01)
    assert entry_of(spool) is None
    await claimed(one)


@virtually
async def test_an_end_whose_caller_is_cancelled_is_written_all_the_same() -> None:
    """A handler ran and its caller went away in that very moment: the answer is stored, and the
    key is not held for ever."""
    clock = VirtualClock()
    for alone in (False, True):
        spool = SharedMemory()
        one = ledger(spool, clock, alone=alone)
        claim = await claimed(one)
        spool.hold = asyncio.Event()
        ending = asyncio.create_task(claim.done(OK))
        await asyncio.sleep(0.01)
        ending.cancel()
        await asyncio.sleep(0.01)
        spool.hold.set()
        await asyncio.sleep(0.01)
        assert (await taken(one)).recall.do is Do.REPLAY
        await asyncio.sleep(60)
        assert not claim.lost


@virtually
async def test_an_answer_that_could_not_be_written_is_written_later() -> None:
    """F10: the caller is told; nobody runs it again; the answer is there when the spool is."""
    clock = VirtualClock()
    for alone in (False, True):
        spool = SharedMemory()
        one = ledger(spool, clock, alone=alone)
        claim = await claimed(one)
        spool.down = True
        assert await claim.done(OK) is False
        found = await one.claim(ask(), wait_ms=0)
        assert isinstance(found, Taken)
        assert found.recall.do is Do.WAIT
        await asyncio.sleep(2.5)
        spool.down = False
        await asyncio.sleep(1.1)
        assert (await taken(one)).recall.do is Do.REPLAY


@virtually
async def test_an_unknown_end_that_was_half_written_is_written_whole() -> None:
    """Alone, unknown takes two writes; the spool may be down between them."""
    clock = VirtualClock()
    spool = SharedMemory(shared=False)
    one = ledger(spool, clock)
    claim = await claimed(one)
    spool.settles = False
    assert await claim.unknown() is False
    await asyncio.sleep(1.5)
    spool.settles = True
    await asyncio.sleep(1.1)
    assert (await taken(one)).recall == UNKNOWN


@virtually
async def test_closing_tries_a_last_time() -> None:
    """What waits to be written when the application stops is tried once more, and not for long."""
    clock = VirtualClock()
    spool = SharedMemory()
    one = ledger(spool, clock)
    first, second = await claimed(one), await claimed(one, ask("l"))
    spool.down = True
    assert await first.done(OK) is False
    assert await second.done(OK) is False
    spool.down = False
    await one.aclose()
    assert {entry.state for entry in spool.entries.values()} == {State.DELIVERED}
    three = await claimed(one, ask("m"))
    spool.down = True
    assert await three.done(OK) is False
    began = loop_ms()
    await one.aclose()
    assert loop_ms() - began < 1_000


@virtually
async def test_a_spool_that_is_down_or_spoilt_runs_nothing() -> None:
    """J7, D9: fail closed; and the key is free for the next who asks."""
    clock = VirtualClock()
    for alone in (False, True):
        spool = SharedMemory()
        one = ledger(spool, clock, alone=alone)
        spool.down = True
        with pytest.raises(Unavailable):
            await one.claim(ask())
        spool.down = False
        spool.corrupt = Corrupt("A record is spoilt.")
        with pytest.raises(Corrupt):
            await one.claim(ask())
        spool.corrupt = None
        await claimed(one)


@virtually
async def test_a_spoilt_end_holds_nothing() -> None:
    """A write that can never succeed is not tried for ever, and its key is not held."""
    clock = VirtualClock()
    spool = SharedMemory()
    one = ledger(spool, clock)
    claim = await claimed(one)
    spool.corrupt = Corrupt("A record is spoilt.")
    assert await claim.done(OK) is False
    spool.corrupt = None
    assert (await taken(one)).recall.do is Do.WAIT  # until the lease ends
    await asyncio.sleep(LEASE_MS / 1000 + 0.1)
    await claimed(one)


@virtually
async def test_what_was_kept_long_enough_is_forgotten_in_time() -> None:
    """J6, E6: judged by instants, not by what the sweep has got to, with a claim in the way."""
    clock = VirtualClock()
    spool = SharedMemory()
    keeping = Keeping(answer_ms=1_000, key_ms=5_000)
    one = ledger(spool, clock, keeping=keeping)
    assert await (await claimed(one)).done(OK)
    await asyncio.sleep(1.5)
    found = await taken(one)
    assert found.recall.problem == "expired"
    assert found.entry is not None
    assert found.entry.trail[-1].location == "/orders/7"  # J2
    await asyncio.sleep(4)
    assert (await claimed(one)).attempt == 1


@virtually
async def test_more_is_swept_than_comes() -> None:
    """The broom goes on until it is done: a busy application does not grow for ever."""
    clock = VirtualClock()
    spool = SharedMemory()
    one = ledger(spool, clock, keeping=Keeping(answer_ms=1_000, key_ms=1_000))
    for number in range(2_500):
        await (await claimed(one, ask(f"n{number}"))).done(OK)
    await asyncio.sleep(11)
    await (await claimed(one)).done(OK)
    await asyncio.sleep(1)
    assert len(spool.entries) == 1
    await asyncio.sleep(60)  # and an idle one does nothing: no timer, no task
    assert len(asyncio.all_tasks()) == 1


@virtually
async def test_nothing_is_left_of_a_thousand_runs() -> None:
    """No task, no turn and no claim outlives its request."""
    clock = VirtualClock()
    one = ledger(SharedMemory(), clock)
    for number in range(500):
        claim = await claimed(one, ask(f"n{number}"))
        await (claim.done(OK) if number % 2 else claim.release())
    del claim
    await asyncio.sleep(60)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Claim and thing._ends is one]
    assert len(asyncio.all_tasks()) == 1


@virtually
async def test_answers_that_wait_are_bounded_in_bytes() -> None:
    """Beyond 64 MiB the fact is kept without its body."""
    clock = VirtualClock()
    spool = SharedMemory()
    one = ledger(spool, clock)
    claims = [await claimed(one, ask(f"n{number}")) for number in range(70)]
    spool.down = True
    large = Response(200, b"", [], bytes(1024 * 1024))
    for claim in claims:
        await claim.done(large)
    spool.down = False
    await asyncio.sleep(1.5)
    entries = [entry_of(spool, f"n{number}") for number in range(70)]
    assert [entry.stored for entry in entries if entry is not None] == [True] * 64 + [False] * 6


@virtually
async def test_a_key_from_a_clock_that_is_ahead_is_kept_until_it_is_too_old() -> None:
    """Between being forgotten and being refused as too old (J3) it would run again."""
    clock = VirtualClock()
    spool = SharedMemory()
    made_at = clock.now() + 4 * 60_000
    name = f"{made_at:012x}"
    name = f"{name[:8]}-{name[8:]}-7000-8000-000000000000"
    one = ledger(spool, clock, keeping=Keeping(answer_ms=1_000, key_ms=HOUR))
    asked = ask("minted")
    asked = type(asked)(asked.key, name, asked.fingerprint, asked.destination)
    assert await (await claimed(one, asked)).done(OK)
    [entry] = spool.entries.values()
    assert entry.keep_until == made_at + HOUR


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_one_at_a_time_whatever_happens(data: st.DataObject) -> None:
    """I4, I5: processes come, die, are paused and lose their spool; each key is run by one at a
    time, and after an answer was stored by nobody."""
    steps = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from(["claim", "done", "release", "die", "down", "up", "step", "wait"]),
                st.integers(1, 40),
            ),
            max_size=40,
        )
    )

    @virtually
    async def play() -> None:
        clock = VirtualClock()
        spool = SharedMemory()
        ledgers = [ledger(spool, clock) for _ in range(3)]
        holds: dict[int, Claim] = {}
        exposed: set[int] = set()
        """Whose renewals may not have arrived: its key may be another's by now."""
        stored = stepped = False
        token = 0
        for who, what, tenths in steps:
            if what == "claim" and who not in holds and not spool.down:
                found = await ledgers[who].claim(ask())
                if isinstance(found, Claim):
                    assert not stored
                    assert not holds.keys() - exposed
                    assert found.attempt > token
                    token = found.attempt
                    holds[who] = found
            elif what in ("done", "release") and (claim := holds.pop(who, None)) is not None:
                exposed.discard(who)
                if what == "release":
                    await claim.release()
                    token = 0  # nothing came of it, and nothing is known of it
                elif await claim.done(OK):
                    assert not stored
                    stored = True
            elif what == "die":
                await ledgers[who].aclose()
                holds.pop(who, None)
                ledgers[who] = ledger(spool, clock)
                if stepped:  # it cannot know of that (the ledger's bugs)
                    exposed |= holds.keys()
            elif what == "down":
                spool.down = True
                exposed |= holds.keys()
            elif what == "up":
                spool.down = False
            elif what == "step":
                clock.step(tenths * 60_000)
                stepped = True
            elif what == "wait":
                await asyncio.sleep(tenths / 10)
        spool.down = False
        for each in ledgers:
            await each.aclose()

    play()


@virtually
async def test_it_closes_over_a_spool_that_hangs() -> None:
    """What a caller who has gone had begun is being given back, and the spool does not answer."""
    spool = SharedMemory()
    one = ledger(spool, VirtualClock())
    spool.hold = asyncio.Event()
    asking = asyncio.create_task(one.claim(ask()))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.wait([asking])
    async with asyncio.timeout(15):
        await one.aclose()
    assert len(asyncio.all_tasks()) == 1
