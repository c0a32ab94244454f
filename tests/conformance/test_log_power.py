"""The log's power is cut at every write and every sync, and nothing that was promised is lost.

A history of accepts, leases, verdicts and sweeps runs over a simulated disk with small segments, so
that it rolls and compacts all the time. It is run once to count what is done to the disk, and then
once for each of those things, with the power cut right there; what was not synced is lost, kept, or
torn, each write by itself. The next boot must find everything that had been promised by then (I1),
every verdict as it was shown (I3), and no key twice (I5). Every second cut is followed by another
in the middle of reading the log again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from unspool.core.lifecycle import Deferred, Delivered, State
from unspool.core.message import NEVER, Instant, Key
from unspool.errors import Full, Unavailable
from unspool.spools.keyed.store import KeyedStore
from unspool.spools.log.shelf import LogShelf
from unspool.spools.protocol import Duplicate, Entry, Lease, New, Query
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    NOW,
    deferred,
    delivered,
    later,
    shown,
    waiting,
)
from unspool.testing.disk import FaultyDisk, How, PowerCut

SEGMENT = 3_000
STEPS = 14
SEEDS = 3


def opened(disk: FaultyDisk, seed: int = 0) -> KeyedStore:
    salts = Random(f"{seed} {disk.done}")
    shelf = LogShelf.open(disk, segment_bytes=SEGMENT, salt=salts.randbytes)
    return KeyedStore(shelf, Path("log"))


class Told:
    """What somebody was told, and is therefore true for ever."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        """Accepted, as it was accepted."""
        self.settled: dict[Key, Delivered] = {}
        self.deferred: dict[Key, Deferred] = {}
        self.begun: dict[Key, Delivered | Deferred | None] = {}
        """What was under way when the power failed: it may be there or not."""
        self.swept: set[Key] = set()
        self.broom = False
        """Answers may have gone."""


def history(store: KeyedStore, told: Told, random: Random) -> None:
    """Until it ends, or the power does."""
    made = 0
    for _ in range(STEPS):
        batch = [
            waiting(f"{made + number}", nonce=random.randbytes(16), repeat=random.random() < 0.7)
            for number in range(random.randrange(1, 4))
        ]
        made += len(batch)
        told.begun |= {entry.message.key: None for entry in batch}
        answers = store.accept(batch)
        assert all(isinstance(answer, New) for answer in answers)
        told.entries |= {entry.message.key: entry for entry in batch}
        told.begun = {}
        leases = store.lease({HERE: random.randrange(3)}, now=NOW, until=LEASED_UNTIL)
        pairs = [(lease, _verdict(lease, random)) for lease in leases]
        told.begun = {lease.entry.message.key: verdict for lease, verdict in pairs}
        assert all(store.settle(pairs))
        for lease, verdict in pairs:
            key = lease.entry.message.key
            if isinstance(verdict, Delivered):
                told.settled[key] = verdict
                told.deferred.pop(key, None)
            else:
                told.deferred[key] = verdict
        told.begun = {}
        if random.random() < 0.3:
            now = later(DAY)
            told.swept = {k for k, v in told.settled.items() if v.keep_until <= now}
            told.broom = True
            store.sweep(now=now, limit=100)


def short_lives(store: KeyedStore, told: Told, random: Random) -> None:
    """Two that stay, and many that come, are delivered and are swept: segments go all the time."""
    told.broom = True
    for number in range(24):
        stays = number < 2
        entry = waiting(f"{number}", due_at=NEVER if stays else NOW, nonce=random.randbytes(16))
        told.begun = {entry.message.key: None}
        store.accept([entry])
        told.entries[entry.message.key] = entry
        told.begun = {}
        if stays:
            continue
        [lease] = store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
        verdict = delivered("answer " + "x" * random.randrange(300), keep_ms=1)
        told.begun = {entry.message.key: verdict}
        assert all(store.settle([(lease, verdict)]))
        told.settled[entry.message.key] = verdict
        told.begun = {}
        told.swept = set(told.settled)
        store.sweep(now=later(DAY), limit=100)
    shelf: Any = store.shelf
    assert min(shelf._segments) > 3, "nothing was cleaned"


def _verdict(lease: Lease, random: Random) -> Delivered | Deferred:
    number = lease.entry.attempt
    if random.random() < 0.3:
        return deferred(Instant(NOW + number))
    text = "answer " + "x" * random.randrange(300)
    return delivered(text, number=number, keep_ms=random.choice((DAY, 30 * DAY)))


def check(store: KeyedStore, told: Told) -> None:
    """I1, I3, I5."""
    assert store.corrupt == 0, "a power cut is no corruption"
    requests = {
        entry.message.key: entry.message.request
        for entry in store.browse(Query(), after=None, limit=999, requests=True)
    }
    keys = list(told.entries)
    for key, found in zip(keys, store.find(keys), strict=True):
        entry = told.entries[key]
        if key in told.swept:
            assert found is None or found.state is State.DELIVERED
            continue
        assert found is not None, f"lost: {key}"
        assert found.message == shown(entry).message
        if key in told.settled:
            assert found.state is State.DELIVERED, f"taken back: {key}"
            verdict = told.settled[key]
            assert found.trail == verdict.trail
            if found.answer is not None or not told.broom:
                assert found.answer == verdict.answer
            continue
        begun = told.begun.get(key)
        if found.state is State.DELIVERED:
            assert isinstance(begun, Delivered)
            continue
        assert found.state is State.WAITING
        assert requests[key] == entry.message.request
        due = {told.deferred[key].due_at if key in told.deferred else entry.due_at}
        if isinstance(begun, Deferred):
            due.add(begun.due_at)
        assert found.due_at in due
        [again] = store.accept([entry])
        assert isinstance(again, Duplicate)
    # Whatever waits can be leased, once, and nothing else.
    leased = [
        lease.entry.message.key
        for lease in store.lease({HERE: 999}, now=later(DAY), until=later(2 * DAY))
    ]
    assert len(leased) == len(set(leased))
    waits = {key for key, found in zip(keys, store.find(keys), strict=True)
             if found and found.state is State.WAITING and found.due_at != NEVER}  # fmt: skip
    assert waits <= set(leased)
    assert set(leased) <= waits | told.begun.keys()


HISTORIES = {"all sorts": history, "short lives": short_lives}


def run(seed: int, *, cut_at: int, kind: str = "all sorts") -> tuple[FaultyDisk, Told, bool]:
    disk, told = FaultyDisk(), Told()
    disk.cut_at = cut_at
    try:
        store = opened(disk, seed)
        HISTORIES[kind](store, told, Random(seed))
        store.close()
    except PowerCut:
        return disk, told, True
    return disk, told, False


def cuts(seed: int, kind: str = "all sorts") -> Iterator[tuple[int, FaultyDisk, Told]]:
    for number in range(1, 10_000):
        disk, told, cut = run(seed, cut_at=number, kind=kind)
        if not cut:
            return
        yield number, disk, told


@pytest.mark.parametrize(("kind", "seed"), [*((kind, 0) for kind in HISTORIES), ("all sorts", 1)])
def test_the_power_fails_at_every_write_and_every_sync(kind: str, seed: int) -> None:
    states = torn = 0
    for number, disk, told in cuts(seed, kind):
        for how, tries in ((How.LOST, 1), (How.KEPT, 1), (How.TORN, 3)):
            for again in range(tries):
                random = Random(f"{seed} {number} {again}")
                after = disk.after_cut(how, random)
                if number % 2:
                    after = cut_again(after, random)
                store = opened(after, number)
                torn += store.shelf.torn  # type: ignore[attr-defined]
                check(store, told)
                store.close()
                # And once more: what was found is found again.
                check(opened(after.after_cut(How.LOST, random), 1), told)
                states += 1
    print(f"\npower cuts in the log: {states} states of the disk; {torn} had torn batches")
    assert states > 300
    assert torn > 20, "nothing was torn"


def cut_again(disk: FaultyDisk, random: Random) -> FaultyDisk:
    """While the log is read again, and a new segment begun."""
    disk.cut_at = random.randrange(1, 6)
    try:
        opened(disk, 7)
    except PowerCut:
        return disk.after_cut(random.choice(list(How)), random)
    return disk.after_cut(How.LOST, random)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_kill_loses_nothing_at_all(seed: int) -> None:
    """The kernel lives: what was written is there, synced or not, and is synced when it is read."""
    for _number, disk, told in cuts(seed):
        after = disk.after_kill()
        store = opened(after, 5)
        check(store, told)
        # The power fails right after, before anything else is promised.
        check(opened(after.after_cut(How.LOST, Random(1)), 6), told)


def test_without_syncs_the_cuts_lose() -> None:
    """The control: a disk that says it has synced, and has not."""

    class Lying(FaultyDisk):
        def sync(self, name: str) -> None:
            """It does nothing."""

    lost = 0
    for number in range(5, 60):
        disk, told = Lying(), Told()
        disk.cut_at = number
        try:
            history(opened(disk), told, Random(0))
        except PowerCut:
            after = disk.after_cut(How.LOST, Random(0))
            try:
                check(opened(after), told)
            except AssertionError:
                lost += 1
    assert lost > 30


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_failed_sync_closes_the_spool(seed: int) -> None:
    """12. The kernel forgets what it could not write, and would say that all is well the next time:
    nothing is synced again, nothing more is accepted, reading goes on, and what comes back when the
    log is read again is what had been promised, even when the power fails after that."""
    whole, _, _ = run(seed, cut_at=0)
    failed = 0
    for number in range(1, whole.done):
        disk, told = FaultyDisk(), Told()
        disk.fail(number, errno.EIO)
        try:
            store = opened(disk, seed)
        except (Unavailable, OSError):
            continue
        try:
            history(store, told, Random(seed))
        except Unavailable:
            failed += 1
            syncs = disk.syncs
            with pytest.raises(Unavailable, match="unspool serve"):
                store.accept([waiting("more")])
            keys = list(told.entries)
            store.find(keys)
            store.close()
            assert disk.syncs == syncs, "it was synced again"
        after = disk.after_kill()
        again = opened(after, 3)
        check(again, told)
        promised = [entry.message.key for entry in again.browse(Query(), after=None, limit=999)]
        last = opened(after.after_cut(How.LOST, Random(0)), 4)
        assert all(last.find(promised)), "it was told, and only the page cache had it"
        check(last, told)
    assert failed > 20


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_full_disk_is_no_trouble_once_there_is_room(seed: int) -> None:
    """12. Full: it did not happen; what was written of it is taken back, and the next goes on."""
    random = Random(seed)
    disk, told = FaultyDisk(), Told()
    store = opened(disk, seed)
    full = 0
    for number in range(60):
        disk.room_bytes = random.randrange(1_200) if number % 2 else None
        entry = waiting(f"{number}")
        try:
            store.accept([entry])
        except Full:
            full += 1
            assert store.find([entry.message.key]) == [None]
            continue
        told.entries[entry.message.key] = entry
    disk.room_bytes = None
    assert full > 5
    check(store, told)
    check(opened(disk.after_cut(How.LOST, random), 2), told)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_full_disk_while_it_is_cleaned(seed: int) -> None:
    """12. What was to be copied and could not be is not forgotten: its segment stays."""
    random = Random(seed)
    disk = FaultyDisk()
    store = opened(disk, seed)
    stays = [waiting(f"stays{number}", due_at=NEVER) for number in range(3)]
    store.accept(stays)
    full = 0
    for number in range(150):
        disk.room_bytes = random.randrange(4_000) if number % 2 else None
        try:
            store.accept([waiting(f"{number}")])
            leases = store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
            store.settle([(lease, delivered(keep_ms=1)) for lease in leases])
            store.sweep(now=later(DAY), limit=9)
        except Full:
            full += 1
    shelf: Any = store.shelf
    assert full > 10
    assert min(shelf._segments) > 3, "nothing was cleaned"
    held = store.browse(Query(held=True), after=None, limit=9, requests=True)
    assert [entry.message for entry in held] == [entry.message for entry in stays]
    disk.room_bytes = None
    store.close()
    assert opened(disk.after_cut(How.LOST, random), 2).find([stays[0].message.key]) != [None]


def test_a_held_message_outlives_every_compaction() -> None:
    """What is old and still holds is written again; in the end only the new segments are left."""
    disk = FaultyDisk()
    store = opened(disk)
    store.accept([waiting("held", due_at=NEVER)])
    for number in range(400):
        store.accept([waiting(f"{number}")])
        [lease] = store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
        store.settle([(lease, delivered(keep_ms=1))])
        store.sweep(now=later(DAY), limit=10)
    segments = [name for name in disk.names() if name.endswith(".log")]
    assert len(segments) < 8, "it does not grow with what has gone"
    assert int(segments[0][:8]) > 50
    store.close()
    store = opened(disk.after_cut(How.LOST, Random(0)), 2)
    [held] = store.browse(Query(), after=None, limit=9, requests=True)
    assert held.message.request == waiting("held").message.request
    assert store.corrupt == 0
