"""Custody's shortcuts: what was in nobody's way a moment ago is not asked again, and no longer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest

from unspool.admin.collect import _until_told
from unspool.core.admission import Terms
from unspool.core.message import Instant, Key
from unspool.custody import TELL_MS, TROUBLE_MS, Custody
from unspool.errors import Full, NotDone, Unavailable
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry
from unspool.spools.secret import secret_entry
from unspool.testing.clock import virtually

NOW = 1_790_000_000_000


class Disk:
    free_bytes = 1_000
    looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.free_bytes


async def opened(disk: Disk, *, backlog_max: int = 0) -> Custody:
    terms = Terms(survives=0, required=0, backlog_max=backlog_max, disk_free_min_bytes=100)
    return Custody(spool=MemorySpool(), terms=terms, disk_free=disk)


def takes(custody: Custody, at: int) -> bool:
    return custody.admit(Instant(at)) is None


async def test_a_disk_that_fills_is_seen_within_a_second() -> None:
    """However the looks at it and the requests fall: what is believed of it is no older."""
    for asked_at in (0, 1, 500, TROUBLE_MS - 1):
        disk = Disk()
        custody = await opened(disk)
        assert takes(custody, NOW)
        disk.free_bytes = 0
        assert takes(custody, NOW + asked_at)
        assert not takes(custody, NOW + TROUBLE_MS)


async def test_a_full_disk_is_seen_when_the_clock_was_set_back() -> None:
    """And one that has room again is."""
    disk = Disk()
    custody = await opened(disk)
    assert takes(custody, NOW)
    disk.free_bytes = 0
    assert not takes(custody, NOW - 3_600_000)
    disk.free_bytes = 1_000
    assert takes(custody, NOW - 2 * 3_600_000)


async def test_the_disk_is_looked_at_once_a_second() -> None:
    disk = Disk()
    custody = await opened(disk)
    assert all(takes(custody, NOW + ms) for ms in range(0, 10_000, 7))
    assert disk.looks <= 10


async def test_trouble_and_a_limit_are_seen_at_once() -> None:
    custody = await opened(Disk(), backlog_max=10)
    assert takes(custody, NOW)
    custody.backlog = 10
    assert not takes(custody, NOW)
    custody = await opened(Disk())
    assert takes(custody, NOW)
    custody.failed(Full("simulated"), Instant(NOW))
    assert not takes(custody, NOW + 1)


async def test_the_log_says_when_nothing_is_taken_and_when_that_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, however many are refused: at first, and every few minutes."""
    disk = Disk()
    custody = await opened(disk)
    assert takes(custody, NOW)
    assert not caplog.messages
    for ms in range(0, TELL_MS, 1_000):
        custody.failed(Full("The disk is full. Make room."), Instant(NOW + ms))
        assert not takes(custody, NOW + ms + 1)
    [told] = caplog.messages
    assert "nothing is taken into custody: The disk is full. Make room. Senders" in told
    disk.free_bytes = 10
    assert not takes(custody, NOW + TELL_MS + 2 * TROUBLE_MS)
    assert "the disk of the spool is nearly full" in caplog.messages[1]
    disk.free_bytes = 1_000
    await custody.accept(secret_entry(b"s" * 32, now=Instant(NOW)), now=Instant(NOW))
    await custody.accept(secret_entry(b"s" * 32, now=Instant(NOW)), now=Instant(NOW))
    assert caplog.messages[2:] == ["custody is taken again"]


async def test_trouble_is_told_in_a_whole_sentence() -> None:
    """A file's name has a full stop in it."""
    custody = await opened(Disk())
    custody.failed(Full("The disk of /var/orders.db is full. Nothing was done."), Instant(NOW))
    reject = custody.admit(Instant(NOW + 1))
    assert reject is not None
    assert reject.detail.endswith(": The disk of /var/orders.db is full")


async def test_trouble_is_over_when_the_clock_was_set_back() -> None:
    """Nobody is refused for an hour because the spool was in trouble for a second."""
    custody = await opened(Disk())
    custody.failed(Full("simulated"), Instant(NOW))
    assert not takes(custody, NOW + 1)
    assert takes(custody, NOW - 3_600_000)


@pytest.mark.parametrize(("takes_s", "code"), [(0.2, os.EX_OK), (30.0, os.EX_TEMPFAIL)])
@virtually
async def test_a_spool_that_is_slow_is_none_that_hangs(takes_s: float, code: int) -> None:
    """However short the time that a collector has to stop in."""

    class Slow(MemorySpool):
        async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
            await asyncio.sleep(takes_s)
            return [None for _ in keys]

    custody = Custody(spool=Slow(), terms=Terms(survives=0, required=0))

    async def work() -> int:
        await custody.find(Key("k"))
        return os.EX_OK

    told = asyncio.Event()
    told.set()
    assert await _until_told(asyncio.create_task(work()), told, custody, 0) == code


class Hanging(MemorySpool):
    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_who_hears_that_the_spool_hangs_does_not_wait_for_it_again() -> None:
    """A look that follows is refused at once, though nobody had looked when it was given up."""
    terms = Terms(survives=0, required=0, backlog_max=0, disk_free_min_bytes=0)
    custody = Custody(spool=Hanging(), terms=terms)
    entry = secret_entry(b"s" * 32, now=Instant(NOW))

    async def accepts_or_looks() -> None:
        with pytest.raises(Unavailable):
            await custody.accept(entry, now=Instant(NOW))
        await custody.find(entry.message.key)

    asking = asyncio.create_task(accepts_or_looks())
    while not (given_up := custody.give_up(stuck_s=0.02)):
        await asyncio.sleep(0.01)
    assert given_up == 1
    async with asyncio.timeout(60):
        with pytest.raises(NotDone):
            await asking
        assert await custody.drain()
