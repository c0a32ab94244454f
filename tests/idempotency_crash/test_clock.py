"""Clocks that step by an hour (F11). A step is nobody's death: nothing runs a second time.

On one machine all processes have one wall clock, so a step is everybody's; that one process alone
is off (`SteppedClock`) is harsher than what can happen there, and holds for the lease in which it
is not believed yet.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from crash.launch import Quick

from .fleet import Fleet, Process, busy, replayed, stored

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LEASE_MS = 6_000
"""Renewed each 2 s; so long a step is not believed."""
LEASE_S = LEASE_MS / 1000
HOUR_MS = 3_600_000


async def all_busy(processes: list[Process], key: str, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for process in processes:
            told = await process.ask(key)
            assert busy(told), (seconds - (until - time.monotonic()), told)
        await asyncio.sleep(0.1)


class Clocks:
    """One file for each process, or one for all."""

    def __init__(self, folder: Path, *names: str) -> None:
        folder.mkdir(exist_ok=True)
        self._paths = [folder / f"clock-{name}" for name in names]
        self.step(0)

    def __getitem__(self, place: int) -> str:
        return str(self._paths[place])

    def step(self, ms: int, *, place: int | None = None) -> None:
        for number, path in enumerate(self._paths):
            if place in (None, number):
                new = path.with_suffix(".new")
                new.write_text(str(ms))
                new.rename(path)  # read whole, before or after


async def test_a_step_of_one_clock_is_not_believed_at_once(tmp_path: Path, launcher: Quick) -> None:
    """F11: the owner's clock steps, or that of one who asks, while a handler runs. For much of a
    lease, with a sweep and a renewal in it, nobody takes the key; then the clock is set right."""
    await asyncio.gather(
        *(
            one_step(tmp_path / f"{steps}{ms}", launcher, ms, steps)
            for steps in ("owner", "other")
            for ms in (HOUR_MS, -HOUR_MS)
        )
    )


async def one_step(folder: Path, launcher: Quick, ms: int, steps: str) -> None:
    clocks = Clocks(folder, "owner", "other")
    fleet = Fleet(launcher, folder, lease_ms=LEASE_MS)
    try:
        owner = await fleet.start(clock=clocks[0])
        other = await fleet.start(clock=clocks[1])
        assert (await other.ask("warm")).status == 201
        asking = asyncio.create_task(owner.ask("k", do="hold"))
        await fleet.began("k")
        clocks.step(ms, place=0 if steps == "owner" else 1)
        await all_busy([owner, other], "k", seconds=LEASE_S * 0.4)
        clocks.step(0)
        await all_busy([owner, other], "k", seconds=0.5)
        fleet.go("k")
        told = await asking
        assert (told.status, stored(told)) == (201, True)
        for process in (owner, other):
            again = await process.ask("k")
            assert (replayed(again), again.body) == (True, told.body)
        assert fleet.ledger.begun("k") == 1
    finally:
        await fleet.end()


async def test_a_step_of_the_machine_s_clock_costs_nobody_a_key(
    tmp_path: Path, launcher: Quick
) -> None:
    """F11, as it happens: all processes see the step, for good. A handler that runs on until after
    the lease in which it is not believed, and the renewal that follows, keeps its key; what was
    answered before is still replayed."""
    await asyncio.gather(
        *(all_step(tmp_path / str(ms), launcher, ms) for ms in (HOUR_MS, -HOUR_MS))
    )


async def all_step(folder: Path, launcher: Quick, ms: int) -> None:
    clocks = Clocks(folder, "all")
    fleet = Fleet(launcher, folder, lease_ms=LEASE_MS)
    try:
        owner = await fleet.start(clock=clocks[0])
        other = await fleet.start(clock=clocks[0])
        before = await other.ask("before")
        asking = asyncio.create_task(owner.ask("k", do="hold"))
        await fleet.began("k")
        clocks.step(ms)
        await all_busy([owner, other], "k", seconds=1.4 * LEASE_S)
        fleet.go("k")
        told = await asking
        assert (told.status, stored(told)) == (201, True)
        for key, first in (("k", told), ("before", before)):
            again = await other.ask(key)
            assert (replayed(again), again.body) == (True, first.body)
            assert fleet.ledger.begun(key) == 1
    finally:
        await fleet.end()
