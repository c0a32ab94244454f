"""The owner of a key dies, sleeps, or takes long (F1, F2, F3).

A claim is a lease of seconds, renewed while its owner lives: a crash frees the key in seconds and
not in a day, a slow handler keeps it for hours, and one who slept through it changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from crash.launch import Quick
from crash.processes import ROUNDS
from crash.wire import Severed

from .fleet import Fleet, busy, busy_or_late, problem, replayed, stored, until_not_busy

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LEASE_MS = 1_500
"""Renewed each 500 ms: an owner that does not have the processor for a moment keeps its key."""
LEASE_S = LEASE_MS / 1000
WORKS = {"lease_ms": 30_000}
"""Of those who neither die nor sleep, while the machine may be held up at any place."""
PATIENCE_S = LEASE_S + 20
LONG_LEASE_MS = 4_000
"""Of one whom others ask all the time: held up for 2.6 s it keeps its key."""
KILLS = 2 * ROUNDS


async def test_a_killed_owner_blocks_its_key_for_a_lease_and_no_longer(
    tmp_path: Path, launcher: Quick
) -> None:
    """F1: kill -9 in mid-handler. Within the lease 409; then the key is usable, at another
    process; and what it then answers is what everybody gets."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS)
    try:
        other = await fleet.start()
        for number in range(KILLS):
            key = f"k-{number}"
            owner = await fleet.start()
            asked_at = time.monotonic()
            asking = asyncio.create_task(owner.ask(key, do="hold"))
            await fleet.began(key)
            await asyncio.sleep(LEASE_S / 3 * number)  # before and after the first renewals
            killed_at = time.monotonic()
            held_up_s = killed_at - asked_at - LEASE_S / 3 * number
            owner.kill()
            with pytest.raises(Severed):
                await asking
            if await busy_or_late(other, key, since=asked_at, lease_s=LEASE_S):
                told, _ = await until_not_busy(other, key, seconds=PATIENCE_S)
                took = time.monotonic() - killed_at
                assert (told.status, replayed(told)) == (201, False)
                # The lease is from the last renewal, and a poll and an execution are on top.
                assert LEASE_S / 2 - held_up_s < took < PATIENCE_S, took
            else:
                told = await other.ask(key)
            again = await other.ask(key)
            assert (replayed(again), again.body) == (True, told.body)
            assert (fleet.ledger.begun(key), fleet.ledger.ended(key)) == (2, 1)
    finally:
        await fleet.end()


async def test_a_killed_owner_leaves_an_unknown_outcome_where_that_is_asked_for(
    tmp_path: Path, launcher: Quick
) -> None:
    """F1 with abandoned="unknown": after the lease a repeat is told so, whenever it comes and
    wherever; it never runs again."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS, abandoned="unknown")
    try:
        other, owner = await fleet.start(), await fleet.start()
        asked_at = time.monotonic()
        asking = asyncio.create_task(owner.ask("k", do="hold"))
        await fleet.began("k")
        owner.kill()
        with pytest.raises(Severed):
            await asking
        await busy_or_late(other, "k", since=asked_at, lease_s=LEASE_S)
        told, _ = await until_not_busy(other, "k", seconds=PATIENCE_S)
        assert (told.status, problem(told)) == (409, "outcome-unknown")
        third = await fleet.start()
        for process in (other, third):
            assert problem(await process.ask("k")) == "outcome-unknown"
        assert fleet.ledger.begun("k") == 1
        assert (await other.ask("another")).status == 201
    finally:
        await fleet.end()


@pytest.mark.parametrize(
    ("abandoned", "after"), [("run", (201, "")), ("unknown", (409, "outcome-unknown"))]
)
async def test_a_restart_frees_what_the_dead_held(
    tmp_path: Path, launcher: Quick, abandoned: str, after: tuple[int, str]
) -> None:
    """F1: who opens the spool alone knows that every claim in it is a dead process's. Nobody
    waits for a lease of half a minute; an answer that was given is still there."""
    fleet = Fleet(launcher, tmp_path, lease_ms=30_000, abandoned=abandoned)
    try:
        owner = await fleet.start()
        before = await owner.ask("before")
        asking = asyncio.create_task(owner.ask("k", do="hold"))
        await fleet.began("k")
        owner.kill()
        with pytest.raises(Severed):
            await asking
        await owner.gone()
        restarted = await fleet.start()
        told = await restarted.ask("k")
        assert (told.status, problem(told)) == after
        again = await restarted.ask("before")
        assert (replayed(again), again.body) == (True, before.body)
        assert fleet.ledger.begun("before") == 1
    finally:
        await fleet.end()


async def test_a_slow_handler_keeps_its_key(tmp_path: Path, launcher: Quick) -> None:
    """F2: a handler that takes longer than a lease, alive. All that time others are told 409, in
    every process; one who waits gets the answer; it runs once."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LONG_LEASE_MS)
    try:
        owner, other = await fleet.start(), await fleet.start()
        asking = asyncio.create_task(owner.ask("k", do="hold"))
        await fleet.began("k")
        waiting = asyncio.create_task(other.ask("k", wait_s=50))
        until = time.monotonic() + 1.5 * LONG_LEASE_MS / 1000  # longer than one renewal lasts
        polls = 0
        while time.monotonic() < until:
            for process in (owner, other):
                assert busy(await process.ask("k"))
                polls += 1
            await asyncio.sleep(0.1)
        fleet.go("k")
        told, waited = await asking, await waiting
        assert (told.status, stored(told)) == (201, True)
        assert (replayed(waited), waited.body) == (True, told.body)
        assert fleet.ledger.begun("k") == 1
        assert polls > 10
    finally:
        await fleet.end()


@pytest.mark.parametrize("late", ["hold", "fail", "5xx"])
async def test_an_owner_who_slept_through_its_lease_changes_nothing(
    tmp_path: Path, launcher: Quick, late: str
) -> None:
    """F3: stopped past its lease; another takes over and finishes; it wakes, and ends well or
    badly. Its record and its release are refused, its caller is told, the other's answer stands.
    """
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS)
    try:
        sleeper, other = await fleet.start(), await fleet.start()
        asked_at = time.monotonic()
        asking = asyncio.create_task(sleeper.ask("k", do=late))
        await fleet.began("k")
        sleeper.pause()
        if await busy_or_late(other, "k", since=asked_at, lease_s=LEASE_S):
            told, _ = await until_not_busy(other, "k", seconds=PATIENCE_S)
            assert (told.status, replayed(told)) == (201, False)
        else:
            told = await other.ask("k")
        sleeper.resume()
        await asyncio.sleep(0.05)
        fleet.go("k")
        slept = await asking
        assert slept.status == {"hold": 201, "fail": 500, "5xx": 503}[late]
        if late == "hold":
            assert not stored(slept), "its caller must be told that this answer is nobody else's"
            assert slept.body != told.body
        for process in (sleeper, other):
            again = await process.ask("k")
            assert (replayed(again), again.body) == (True, told.body)
        assert fleet.ledger.begun("k") == 2
    finally:
        await fleet.end()


async def test_an_owner_who_wakes_while_another_runs_does_not_end_its_claim(
    tmp_path: Path, launcher: Quick
) -> None:
    """F3, in the middle: the one who took over still runs when the sleeper ends. Nobody else
    comes in, and the answer is that of the one who has the key."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS)
    try:
        sleeper, other = await fleet.start(), await fleet.start(options=WORKS)
        sleeping = asyncio.create_task(sleeper.ask("k", do="nap"))
        await fleet.began("k")
        sleeper.pause()
        await asyncio.sleep(LEASE_S + 0.2)
        asking = asyncio.create_task(other.ask("k", do="hold"))
        await fleet.began("k", times=2)
        fleet.go("nap-k")
        sleeper.resume()
        slept = await sleeping
        assert (slept.status, stored(slept)) == (201, False)
        for process in (sleeper, other):
            assert busy(await process.ask("k"))
        fleet.go("k")
        told = await asking
        assert (told.status, stored(told)) == (201, True)
        again = await sleeper.ask("k")
        assert (replayed(again), again.body) == (True, told.body)
        assert fleet.ledger.begun("k") == 2
    finally:
        await fleet.end()


async def test_a_late_owner_whom_nobody_overtook_keeps_its_answer(
    tmp_path: Path, launcher: Quick
) -> None:
    """Asleep for longer than its lease, and nobody asked meanwhile: its answer stands."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS)
    try:
        sleeper, other = await fleet.start(), await fleet.start()
        asking = asyncio.create_task(sleeper.ask("k", do="nap"))
        await fleet.began("k")
        sleeper.pause()
        await asyncio.sleep(1.2 * LEASE_S)
        fleet.go("nap-k")
        sleeper.resume()
        told = await asking
        assert (told.status, stored(told)) == (201, True)
        again = await other.ask("k")
        assert (replayed(again), again.body) == (True, told.body)
        assert fleet.ledger.begun("k") == 1
    finally:
        await fleet.end()


async def test_a_renewal_under_way_loses_no_answer(tmp_path: Path, launcher: Quick) -> None:
    """F5: handlers that end at any moment of the beat in which their claims are renewed. Each
    answer is stored, and is the answer afterwards."""
    fleet = Fleet(launcher, tmp_path, lease_ms=120)  # renewed every 40 ms
    try:
        owner, other = await fleet.start(), await fleet.start()
        keys = [f"k-{ms}" for ms in range(30, 150, 2)]
        told = await asyncio.gather(
            *(owner.ask(key, do=f"sleep-{key.removeprefix('k-')}") for key in keys)
        )
        for key, first in zip(keys, told, strict=True):
            assert (first.status, stored(first)) == (201, True), key
            again = await other.ask(key)
            assert (replayed(again), again.body) == (True, first.body)
            assert fleet.ledger.begun(key) == 1
    finally:
        await fleet.end()
