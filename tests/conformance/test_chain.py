"""The custody chain in trouble: real spools behind switches that take them away in every way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from unspool.core.lifecycle import Bounced, Delivered, Forgotten, Reason, State
from unspool.core.message import NEVER, Instant
from unspool.errors import InDoubt, Misconfigured, Refused, Unavailable
from unspool.spools.blocking import BlockingSpool
from unspool.spools.chain.custodian import Custodian
from unspool.spools.chain.spool import ChainSpool
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Duplicate, Entry, Lease, Mismatch, New, Query, Survives
from unspool.spools.secret import SECRET_KEY, secret_entry
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.testing.conformance.values import (
    HERE,
    LEASED_UNTIL,
    NOW,
    bounced,
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

from .switch import Switch

DEADLINE_MS = 100
"""Of those who may hang. In memory nobody takes any time; on a disk one has `DISK_MS`."""
DISK_MS = 10_000
OTHER = b"another nonce..."


class Pair:
    """A chain of two, each behind a switch."""

    def __init__(self, first: Switch, second: Switch, *, deadline_ms: int = DEADLINE_MS) -> None:
        self.first, self.second = first, second
        self.chain = ChainSpool(
            [
                Custodian(name="first", open=self._open(first), deadline_ms=deadline_ms),
                Custodian(
                    name="second", open=self._open(second), deadline_ms=deadline_ms, private=True
                ),
            ],
            now=lambda: NOW,
        )
        self.chain.homing.pause_s, self.chain.homing.share = 0.05, 0

    def _open(self, switch: Switch) -> Callable[[], Any]:
        async def open_() -> Any:
            if switch.mode in ("down", "slow"):
                raise Unavailable("switched off")
            return switch

        return open_

    async def down(self) -> None:
        """The first is down, and that is known."""
        self.first.mode = "down"
        await self.chain.find([key("nobody's")])

    async def back(self, *, home: bool = True) -> None:
        """The first is well again, has been found to be, and everything is where it belongs."""
        self.first.mode = "well"
        await until(lambda: self.chain.ranks.home.up and not self.chain.ranks.home.returning)
        await until(lambda: self.chain.homing.compared)
        if home:
            await until(lambda: self.chain.ranks.all[1].clear)


async def until(true: Callable[[], bool], *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def pair_of(
    first: Switch | None = None, second: Switch | None = None, *, keeps: bool = True,
    patient: bool = False,
) -> AsyncIterator[Pair]:  # fmt: skip
    given = first or second
    patient = patient or (given is not None and isinstance(given.spool, BlockingSpool))
    pair = Pair(
        first or Switch(MemorySpool()), second or Switch(MemorySpool()),
        deadline_ms=DISK_MS if patient else DEADLINE_MS,
    )  # fmt: skip
    await pair.chain.begin()
    if keeps:
        pair.chain.keep()
        if pair.chain.ranks.home.up:
            await until(lambda: pair.chain.homing.compared)
            await until(lambda: pair.chain.ranks.clear)
    try:
        yield pair
    finally:
        pair.first.mode = pair.second.mode = "well"
        await pair.chain.aclose()


async def at(spool: Any, name: str) -> Entry | None:
    return await found(spool.spool, name)


# --- who takes it -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["down", "slow", "full", "lost", "mute"])
async def test_what_the_first_cannot_take_the_next_takes(mode: str) -> None:
    """In every way of failing: the answer is New, it is found, leased and settled where it lies."""
    async with pair_of() as pair:
        pair.first.mode = mode
        [answer] = await pair.chain.accept([waiting("a")])
        assert isinstance(answer, New)
        assert await at(pair.second, "a")
        assert await found(pair.chain, "a")
        if mode in ("lost", "mute", "slow", "down"):
            assert names_of(await lease_all(pair.chain)) == ["a"]


async def test_one_that_is_down_is_asked_by_nobody_but_the_probe() -> None:
    """Else each request would wait for it: an outage costs the deadline once."""
    async with pair_of() as pair:
        pair.first.mode = "slow"
        await pair.chain.accept([waiting("a")])
        asked = pair.first.asked["accept"], pair.first.asked["lease"]
        took_s = []
        for number in range(50):
            began = time.monotonic()
            await pair.chain.accept([waiting(f"b{number}")])
            await lease_all(pair.chain, limit=1)
            took_s.append(time.monotonic() - began)
        assert sorted(took_s)[25] < DEADLINE_MS / 1000, "but where all stood still"
        assert (pair.first.asked["accept"], pair.first.asked["lease"]) == asked


async def test_all_are_down() -> None:
    """Nothing is taken, and that is said with the causes; it comes back by itself."""
    async with pair_of() as pair:
        pair.first.mode = pair.second.mode = "down"
        with pytest.raises(Unavailable, match=r"no spool takes anything.*switched off"):
            await pair.chain.accept([waiting("a")])
        with pytest.raises(Refused, match="It was not taken"):
            await pair.chain.accept([waiting("a", repeat=False)])  # nobody was asked this time
        with pytest.raises(Unavailable):
            await pair.chain.find([key("a")])
        with pytest.raises(Unavailable):
            await pair.chain.survey(after=None, limit=9)
        pair.second.mode = "well"
        await until(lambda: pair.chain.ranks.all[1].up)
        assert isinstance((await pair.chain.accept([waiting("a")]))[0], New)


async def test_what_may_not_be_repeated_is_in_one_place() -> None:
    """Where the first may have written it, the sender keeps it; else the next takes it. The others
    of its batch are taken all the same."""
    async with pair_of() as pair:
        pair.first.mode = "lost"
        once, again = await pair.chain.accept_each([waiting("a", repeat=False), waiting("b")])
        assert isinstance(once, InDoubt)
        assert "may or may not have been taken" in str(once)
        assert isinstance(again, New)
        assert await at(pair.second, "a") is None
        # Now it is known to be down: nothing is asked of it, so there is no doubt.
        assert isinstance((await pair.chain.accept([waiting("c", repeat=False)]))[0], New)


@pytest.mark.parametrize("mode", ["full", "refuses"])
async def test_what_surely_did_not_happen_is_no_doubt(mode: str) -> None:
    """12. After `Full` and `NotDone` the next may have what may not be repeated."""
    async with pair_of() as pair:
        pair.first.mode = mode
        [answer] = await pair.chain.accept([waiting("a", repeat=False)])
        assert isinstance(answer, New)


async def test_one_that_is_full_says_so() -> None:
    async with pair_of() as pair:
        pair.first.mode = "full"
        await pair.chain.accept([waiting("a")])
        assert pair.chain.views()[0].state == "full"
        assert "no room" in pair.chain.views()[0].cause


async def test_the_full_one_goes_on_with_what_it_has() -> None:
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "full"
        await pair.chain.accept([waiting("b")])
        leases = await lease_all(pair.chain)
        assert sorted(names_of(leases)) == ["a", "b"]
        assert list(await pair.chain.settle([(one, delivered()) for one in leases])) == [True] * 2


async def test_a_lower_grade_takes_nothing() -> None:
    """`survives` holds for each of them."""

    async def memory() -> Any:
        return Switch(MemorySpool())

    custodian = Custodian(
        name="memory", open=memory, deadline_ms=DEADLINE_MS, required=Survives.POWER
    )
    chain = ChainSpool([custodian], now=lambda: NOW)
    await chain.begin()
    with pytest.raises(Refused, match="keeps less than `survives` asks"):
        await chain.accept([waiting("a")])
    assert chain.views()[0].state == "below"
    await chain.aclose()


async def test_a_disk_that_is_nearly_full_is_passed_over() -> None:
    """Before responsibility is taken, as with one spool."""
    first, second = Switch(MemorySpool()), Switch(MemorySpool())

    def opens(switch: Switch) -> Any:
        async def open_() -> Any:
            return switch

        return open_

    chain = ChainSpool(
        [
            Custodian(name="a", open=opens(first), deadline_ms=DEADLINE_MS, room=lambda: False),
            Custodian(name="b", open=opens(second), deadline_ms=DEADLINE_MS, room=lambda: True),
        ],
        now=lambda: NOW,
    )
    await chain.begin()
    assert isinstance((await chain.accept([waiting("a")]))[0], New)
    assert await at(second, "a")
    assert first.asked["accept"] == 0
    assert "nearly full" in chain.views()[0].cause
    await chain.aclose()


# --- starting ---------------------------------------------------------------------------------


async def test_it_starts_on_the_second_and_opens_the_first_in_the_background() -> None:
    """A relay that cannot start while its database is down is no relay."""
    async with pair_of(Switch(MemorySpool(), mode="down")) as pair:
        assert [view.state for view in pair.chain.views()] == ["down", "up"]
        assert "switched off" in pair.chain.blind
        await pair.chain.accept([waiting("a")])
        await pair.back()
        assert pair.chain.blind == ""
        assert await at(pair.first, "a")


async def test_nothing_can_be_opened() -> None:
    pair = Pair(Switch(MemorySpool(), mode="down"), Switch(MemorySpool(), mode="down"))
    with pytest.raises(Unavailable, match="no spool can be opened"):
        await pair.chain.begin()


async def test_one_that_hangs_while_it_is_opened_holds_nobody_up() -> None:
    """A first that takes connections and never answers: the relay starts on the second."""

    async def hangs() -> Any:
        await asyncio.Event().wait()

    async def well() -> Any:
        return MemorySpool()

    chain = ChainSpool(
        [
            Custodian(name="a", open=hangs, deadline_ms=DEADLINE_MS),
            Custodian(name="b", open=well, deadline_ms=DEADLINE_MS),
        ],
        now=lambda: NOW,
    )
    began = time.monotonic()
    await chain.begin()
    assert time.monotonic() - began < 10
    assert "could not be opened within" in chain.blind
    await chain.aclose()


async def test_what_no_waiting_mends_ends_the_start() -> None:
    async def wrong() -> Any:
        raise Misconfigured("the password is wrong")

    async def well() -> Any:
        return MemorySpool()

    chain = ChainSpool(
        [
            Custodian(name="a", open=wrong, deadline_ms=DEADLINE_MS),
            Custodian(name="b", open=well, deadline_ms=DEADLINE_MS),
        ],
        now=lambda: NOW,
    )
    with pytest.raises(Misconfigured):
        await chain.begin()


# --- identity ---------------------------------------------------------------------------------


async def test_a_key_that_is_known_away_is_known() -> None:
    """2. The first is back, and what was taken away is not there yet: no second New."""
    async with pair_of() as pair:
        await pair.down()
        await pair.chain.accept([waiting("a", repeat=False), waiting("b"), settled("s")])
        pair.first.mode = "well"
        await until(lambda: pair.chain.ranks.home.up)
        again = [waiting(name, nonce=OTHER, repeat=False) for name in "ab"] + [settled("s")]
        answers = await pair.chain.accept(again)
        assert [type(answer) for answer in answers] == [Duplicate] * 3
        print_ = b"another one....."
        [answer] = await pair.chain.accept([waiting("a", fingerprint=print_)])
        assert isinstance(answer, Mismatch)


async def test_a_key_that_was_brought_home_is_known_though_home_is_down() -> None:
    """A note is left: the same receipt, and waiting as far as anybody can tell."""
    async with pair_of() as pair:
        pair.first.mode = "down"
        await pair.chain.accept([waiting("a")])
        await pair.back()
        pair.first.mode = "down"
        [answer] = await pair.chain.accept([waiting("a", nonce=OTHER)])
        assert isinstance(answer, Duplicate)
        assert answer.entry.state is State.WAITING
        assert answer.entry.message.nonce == waiting("a").message.nonce
        entry = await found(pair.chain, "a")
        assert entry is not None
        assert entry.state is State.WAITING


async def test_a_key_that_only_the_unreachable_one_knows_is_taken_again() -> None:
    """What cannot be known: the destination may see the key twice. When home is back its record
    stands, and the receipt that was given away follows it there."""
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "down"
        await pair.chain.find([key("z")])
        [answer] = await pair.chain.accept([waiting("a", nonce=OTHER)])
        assert isinstance(answer, New)
        await pair.back()
        entry = await found(pair.chain, "a")
        assert entry is not None
        assert entry.message.nonce != OTHER
        assert await pair.chain.other(key("a"), OTHER) == entry, "the other receipt leads there"
        assert names_of(await lease_all(pair.chain)) == ["a"], "it goes out once"


async def test_a_claim_away_is_taken_over_where_it_lies() -> None:
    """3. Its lease has run out: the next accept takes it over, attempt and all."""
    async with pair_of() as pair:
        pair.first.mode = "down"
        await pair.chain.accept([claimed("a")])
        pair.first.mode = "well"
        await until(lambda: pair.chain.ranks.home.up)
        [answer] = await pair.chain.accept([claimed("a", nonce=OTHER)])
        assert isinstance(answer, Duplicate)
        [answer] = await pair.chain.accept([claimed("a", at=LEASED_UNTIL, nonce=OTHER)])
        assert isinstance(answer, New)
        assert answer.entry.attempt == 2
        assert list(
            await pair.chain.settle([(Lease(answer.entry, later(99_999)), Forgotten())])
        ) == [True]
        assert await found(pair.chain, "a") is None


# --- bringing home ----------------------------------------------------------------------------


async def test_what_was_taken_elsewhere_is_brought_home() -> None:
    """With its attempts, its due time, held or not; an answer too. Away only a note is left, and
    the receipt is the same."""
    async with pair_of() as pair:
        pair.first.mode = "down"
        held = waiting("h", due_at=NEVER)
        await pair.chain.accept([waiting("a"), held, settled("s"), waiting("d")])
        leases = {names_of([one])[0]: one for one in await lease_all(pair.chain)}
        await pair.chain.settle([(leases["a"], deferred(later(5_000)))])
        await pair.chain.settle([(leases["d"], delivered("there"))])
        await pair.back()
        [a, h, s, d] = await pair.first.spool.find([key(name) for name in "ahsd"])
        assert (a.due_at, len(a.trail), a.message.nonce) == (
            later(5_000), 1, waiting("a").message.nonce,
        )  # fmt: skip
        assert h.due_at == NEVER
        assert s.answer == settled("s").answer
        assert (d.state, d.answer) == (State.DELIVERED, delivered("there").answer)
        shown = await pair.chain.browse(Query(), after=None, limit=99)
        assert sorted(names_of(list(shown))).count("a") == 1, "the note is nobody's business"
        note = await at(pair.second, "a")
        assert (note.state, note.reason) == (State.BOUNCED, Reason.MOVED)
        assert pair.chain.views()[1].settled


async def test_what_may_not_be_repeated_stays_and_is_delivered_from_there() -> None:
    async with pair_of() as pair:
        await pair.down()
        await pair.chain.accept([waiting("a", repeat=False), waiting("b")])
        await pair.back(home=False)
        await until(lambda: bool(pair.chain.homing.moved))
        assert await at(pair.first, "a") is None
        leases = await lease_all(pair.chain)
        assert sorted(names_of(leases)) == ["a", "b"]
        assert list(await pair.chain.settle([(one, delivered()) for one in leases])) == [True] * 2
        await until(lambda: pair.chain.ranks.all[1].clear)


@pytest.mark.parametrize("ends", ["delivered", "deferred"])
@pytest.mark.parametrize("mode", ["lost", "mute"])
async def test_what_was_written_in_doubt_goes_out_once(mode: str, ends: str) -> None:
    """It was written at the first after all, and delivered from the second: when the first is back
    its copy ends with the same answer before anything is leased."""
    async with pair_of() as pair:
        pair.first.mode = mode
        await pair.chain.accept([waiting("a"), waiting("b")])
        pair.first.mode = "down"
        a, b = await lease_all(pair.chain)
        await pair.chain.settle([(a, delivered("once"))])
        copy = await at(pair.first, "a")
        assert copy is not None, "it was written"
        assert copy.state is State.WAITING
        pair.first.mode = "well"
        await until(lambda: pair.chain.ranks.home.up)
        await until(lambda: pair.chain.homing.compared)
        copy = await at(pair.first, "a")
        assert copy is not None
        assert (copy.state, copy.answer) == (State.DELIVERED, delivered("once").answer)
        assert await lease_all(pair.chain) == [], "b is at the destination: its copy is held"
        end = delivered("b, once") if ends == "delivered" else deferred(later(5_000))
        assert list(await pair.chain.settle([(b, end)])) == [True]
        await until(lambda: pair.chain.ranks.all[1].clear)
        leases = await lease_all(pair.chain, now=later(5_000), until=later(10**9))
        assert names_of(leases) == ([] if ends == "delivered" else ["b"])
        assert len(leases) == 0 or len(leases[0].entry.trail) == 1


async def test_nothing_is_leased_before_it_was_compared() -> None:
    """Between home's return and the comparison nothing goes out from either."""
    async with pair_of(keeps=False) as pair:
        pair.first.mode = "lost"
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "well"
        pair.chain.ranks.home.pulse.answered()
        pair.chain.homing.shut()
        assert await lease_all(pair.chain) == []
        assert list(await pair.chain.survey(after=None, limit=9)) == []
        await pair.chain.homing.look(move=False)
        pair.chain.homing.compared = True
        assert names_of(await lease_all(pair.chain)) == ["a"]
        assert await lease_all(pair.chain) == []


async def test_another_request_under_the_key_is_kept_in_sight() -> None:
    """Mismatch at home: it was promised, so it is delivered from where it lies, and listed."""
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "down"
        await pair.chain.find([key("z")])
        print_ = b"another one....."
        [answer] = await pair.chain.accept([waiting("a", fingerprint=print_, nonce=OTHER)])
        assert isinstance(answer, New)
        await pair.back(home=False)
        await asyncio.sleep(0.05)
        rows = await pair.chain.browse(Query(state=State.WAITING), after=None, limit=9)
        assert [row.message.nonce == OTHER for row in rows] == [False, True]
        assert [pair.chain.place(row) for row in rows] == ["first", "second"]
        leases = await lease_all(pair.chain)
        assert len(leases) == 2
        assert list(await pair.chain.settle([(one, delivered()) for one in leases])) == [True] * 2
        other = await pair.chain.other(key("a"), OTHER)
        assert other is not None
        assert other.state is State.DELIVERED


async def test_a_key_that_ended_away_as_cancelled_does_not_go_out_at_home() -> None:
    async with pair_of() as pair:
        pair.first.mode = "lost"
        await pair.chain.accept([waiting("a")])
        pair.first.mode = "down"
        [lease] = await pair.chain.seize([key("a")], now=NOW, until=LEASED_UNTIL)
        assert lease is not None
        end = replace(bounced(), reason=Reason.CANCELLED)
        await pair.chain.settle([(lease, end)])
        await pair.back(home=False)
        entry = await found(pair.chain, "a")
        assert entry is not None
        assert (entry.state, entry.reason) == (State.BOUNCED, Reason.CANCELLED)
        assert await lease_all(pair.chain) == []


async def test_our_own_claim_in_doubt_ends_as_it_did_away() -> None:
    """Else the key would be `running` at home until the claim lapsed, and then run again."""
    async with pair_of() as pair:
        pair.first.mode = "lost"
        [answer] = await pair.chain.accept([claimed("a")])
        pair.first.mode = "down"
        assert list(
            await pair.chain.settle([(Lease(answer.entry, LEASED_UNTIL), delivered("mine"))])
        ) == [True]
        await pair.back()
        entry = await at(pair.first, "a")
        assert entry is not None
        assert (entry.state, entry.answer) == (State.DELIVERED, delivered("mine").answer)


@pytest.mark.parametrize("end", [delivered("mine"), deferred(later(5_000))])
@pytest.mark.parametrize("mode", ["down", "lost"])
async def test_what_was_claimed_at_home_ends_at_the_next(mode: str, end: Any) -> None:
    """7. The request is with us, its sender waits, and home went down meanwhile: it is saved away,
    or its answer is; when home is back its claim ends likewise."""
    async with pair_of() as pair:
        [answer] = await pair.chain.accept([claimed("a")])
        pair.first.mode = mode
        lease = Lease(answer.entry, LEASED_UNTIL)
        assert list(await pair.chain.settle([(lease, end)])) == [True]
        entry = await found(pair.chain, "a")
        assert entry is not None
        assert entry.state is (State.DELIVERED if isinstance(end, Delivered) else State.WAITING)
        await pair.back()
        [entry] = await pair.first.spool.browse(Query(), after=None, limit=9, requests=True)
        assert entry.state is (State.DELIVERED if isinstance(end, Delivered) else State.WAITING)
        leases = await lease_all(pair.chain, now=later(5_000), until=later(10**9))
        assert names_of(leases) == ([] if isinstance(end, Delivered) else ["a"])
        assert all(one.entry.message.request is not None for one in leases)


STEPS = ("browse", "find", "seize", "accept", "settle")


@pytest.mark.parametrize("where", ["first", "second"])
@pytest.mark.parametrize("mode", ["down", "lost"])
@pytest.mark.parametrize("step", STEPS)
async def test_bringing_home_can_be_cut_off_at_every_step(
    tmp_path: Path, step: str, mode: str, where: str
) -> None:
    """And everything opened again: nothing is lost, and it goes out once; whatever the step, done
    or not done."""
    paths = tmp_path / "first.db", tmp_path / "second.db"

    async def opened() -> list[Switch]:
        return [Switch(await SqliteSpool.open(path, test_hook_no_sync=True)) for path in paths]

    first, second = await opened()
    first.mode = "down"
    async with pair_of(first, second, keeps=False) as pair:
        await pair.chain.accept([waiting("a"), waiting("b")])
        first.mode = "well"
        pair.chain.ranks.home.pulse.answered()
        cut = {"first": first, "second": second}[where]
        through = cut._through

        async def once(verb: str, call: Any) -> Any:
            cut.mode = mode if verb == step else "well"
            return await through(verb, call)

        cut._through = once  # type: ignore[method-assign]
        with suppress(Unavailable):
            await pair.chain.homing.look(move=True)
        cut._through = through  # type: ignore[method-assign]
    first, second = await opened()
    async with pair_of(first, second) as pair:
        await pair.back()
        leases = await lease_all(pair.chain)
        assert sorted(names_of(leases)) == ["a", "b"]
        assert list(await pair.chain.settle([(one, delivered()) for one in leases])) == [True] * 2
        rest = await lease_all(pair.chain, now=later(10**8), until=later(10**9))
        assert rest == []


# --- leases -----------------------------------------------------------------------------------


async def test_what_another_process_leaves_away_is_seen(tmp_path: Path) -> None:
    """Two relays over two shared files: what one has taken away, the other knows, and leases."""

    async def opened(name: str, mode: str) -> Switch:
        return Switch(await SqliteSpool.open(tmp_path / name, test_hook_no_sync=True), mode=mode)

    pairs = [
        Pair(await opened("first", mode), await opened("second", "well"), deadline_ms=DISK_MS)
        for mode in ("well", "down")
    ]
    for pair in pairs:
        pair.chain.ranks.all[1]._private = False
        await pair.chain.begin()
        pair.chain.keep()
    one, other = (pair.chain for pair in pairs)
    await until(lambda: one.ranks.all[1].settled)
    await other.accept([waiting("a", repeat=False)])
    [answer] = await one.accept([waiting("a", nonce=OTHER)])
    assert isinstance(answer, Duplicate)
    assert names_of(await lease_all(one)) == ["a"]
    for chain in (one, other):
        await chain.aclose()
    await pairs[1].first.aclose()


async def test_a_batch_over_two_is_told_apart() -> None:
    """The one that is down fails its own, and the other's count."""
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a")])
        [home] = await lease_all(pair.chain)
        pair.first.mode = "down"
        await pair.chain.accept([waiting("b")])
        [away] = await lease_all(pair.chain)
        answers = await pair.chain.settle_each([(home, delivered()), (away, delivered())])
        assert isinstance(answers[0], Unavailable)
        assert answers[1] is True
        with pytest.raises(Unavailable):
            await pair.chain.renew([home], until=later(10**6))


async def test_a_settle_at_one_that_is_down_waits_for_nobody() -> None:
    """It is known to be down: the caller is told at once, and does it again."""
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a")])
        [lease] = await lease_all(pair.chain)
        pair.first.mode = "slow"
        await pair.chain.find([key("a")])
        asked = pair.first.asked["settle"]
        for _ in range(5):
            [answer] = await pair.chain.settle_each([(lease, delivered())])
            assert isinstance(answer, Unavailable)
        assert pair.first.asked["settle"] == asked
        await pair.back()
        assert list(await pair.chain.settle([(lease, delivered())])) == [True]


async def test_a_settle_finds_its_lease_wherever_it_lies() -> None:
    """Where it lies is remembered of so many, and looked for of the rest."""
    async with pair_of() as pair:
        await pair.down()
        await pair.chain.accept([waiting("a", repeat=False)])
        await pair.back(home=False)
        [lease] = await lease_all(pair.chain)
        pair.chain.ranks._lies.clear()
        assert list(await pair.chain.settle([(lease, delivered())])) == [True]


async def test_a_key_that_home_gets_meanwhile_is_not_dropped_away() -> None:
    """Another relay takes another request under the key, between the look and the move: what lies
    away is free again, and stays in sight."""
    async with pair_of(keeps=False) as pair:
        await pair.down()
        await pair.chain.accept([waiting("a", nonce=OTHER)])
        pair.first.mode = "well"
        pair.chain.ranks.home.pulse.answered()
        through = pair.first._through

        async def late(verb: str, call: Any) -> Any:
            if verb == "accept":
                other = waiting("a", fingerprint=b"another one.....")
                await pair.first.spool.accept([other])
            return await through(verb, call)

        pair.first._through = late  # type: ignore[method-assign]
        await pair.chain.homing.look(move=True)
        entry = await at(pair.second, "a")
        assert entry is not None
        assert (entry.state, entry.leased_until) == (State.WAITING, 0)


async def test_the_order_of_the_two_may_be_changed() -> None:
    """A note at what is home now stands for what lies away: that is not dropped, and it is what a
    repeat is told of."""
    first, second = Switch(MemorySpool()), Switch(MemorySpool())
    async with pair_of(first, second) as pair:
        await pair.down()
        await pair.chain.accept([waiting("a"), waiting("b")])
        await pair.back()
        [b] = [one for one in await lease_all(pair.chain) if names_of([one]) == ["b"]]
        await pair.chain.settle([(b, delivered("b"))])
    changed = Pair(second, first)
    await changed.chain.begin()
    changed.chain.keep()
    await until(lambda: changed.chain.homing.compared)
    await asyncio.sleep(0.05)
    for name, state in (("a", State.WAITING), ("b", State.DELIVERED)):
        entry = await found(changed.chain, name)
        assert entry is not None
        assert entry.state is state
        [answer] = await changed.chain.accept([waiting(name, nonce=OTHER)])
        assert isinstance(answer, Duplicate)
        assert answer.entry.state is state
    leases = await lease_all(changed.chain, now=later(10**8), until=later(10**9))
    assert names_of(leases) == ["a"]
    await changed.chain.aclose()


async def test_the_survey_and_the_tally_are_of_all() -> None:
    async with pair_of() as pair:
        await pair.chain.accept([waiting("a", due_at=later(50))])
        pair.first.mode = "full"
        await pair.chain.accept([waiting("b", due_at=later(20)), waiting("h", due_at=NEVER)])
        [lane] = await pair.chain.survey(after=None, limit=9)
        assert lane.due_at == later(20)
        [row] = await pair.chain.tally([Instant(0)])
        assert (row.counts, row.held) == ((2, 0), 1)
        rows = []
        after = None
        while page := await pair.chain.browse(Query(), after=after, limit=1):
            rows += page
            after = page[-1].message.key
        assert names_of(rows) == ["a", "b", "h"]


async def test_what_arrives_at_the_next_wakes_who_waits() -> None:
    async with pair_of() as pair:
        pair.first.mode = "slow"
        waiter = asyncio.create_task(pair.chain.wait_arrival())
        await asyncio.sleep(0.01)
        await pair.chain.accept([waiting("a")])
        await asyncio.wait_for(waiter, 5)


# --- the secret -------------------------------------------------------------------------------


async def secret_of(chain: ChainSpool, body: bytes) -> bytes:
    [answer] = await chain.accept([secret_entry(body, now=NOW)])
    assert answer.entry.answer is not None
    return answer.entry.answer.body


async def test_there_is_one_secret_and_it_is_the_first_ones() -> None:
    """Or a key would be another at each. One that had its own learns it beside that."""
    first, second = Switch(MemorySpool()), Switch(MemorySpool())
    await second.spool.accept([secret_entry(b"2" * 32, now=NOW)])
    async with pair_of(first, second) as pair:
        assert await secret_of(pair.chain, b"1" * 32) == b"1" * 32
    async with pair_of(Switch(first.spool, mode="down"), second) as pair:
        assert await secret_of(pair.chain, b"3" * 32) == b"1" * 32, "known with the first down"
        await pair.back(home=False)
        assert pair.chain.blind == ""


async def test_a_first_that_turns_out_to_have_another_is_left_alone() -> None:
    """It was down at the very first start: keys made since would not be known there."""
    first, second = Switch(MemorySpool(), mode="down"), Switch(MemorySpool())
    await first.spool.accept([secret_entry(b"1" * 32, now=NOW)])
    async with pair_of(first, second) as pair:
        assert await secret_of(pair.chain, b"2" * 32) == b"2" * 32
        first.mode = "well"
        await until(lambda: "another secret" in pair.chain.blind)
        await pair.chain.accept([waiting("a")])
        assert await at(second, "a")
        rows = await pair.chain.browse(Query(), after=None, limit=9)
        assert SECRET_KEY not in [row.message.key for row in rows]


async def test_a_full_chain_says_so() -> None:
    async with pair_of() as pair:
        pair.first.mode = pair.second.mode = "full"
        with pytest.raises(Refused, match="no room"):
            await pair.chain.accept([waiting("a")])


def test_verdicts_of_settled_entries() -> None:
    """What teaches home is what came to be away; also where the answer is not kept any more."""
    from unspool.spools.chain.homing import _verdict

    ended = settled("a")
    verdict = _verdict(ended)
    assert isinstance(verdict, Delivered)
    assert verdict.answer == ended.answer
    verdict = _verdict(replace(ended, answer=None))
    assert isinstance(verdict, Delivered)
    assert (verdict.answer.status, verdict.stored) == (200, False)
    verdict = _verdict(replace(ended, state=State.BOUNCED, reason="expired", answer=None))
    assert isinstance(verdict, Bounced)
    assert verdict.reason is Reason.EXPIRED
    assert HERE
