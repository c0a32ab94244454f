"""The committer: many calls in, few commits out, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from unspool.errors import Corrupt, Full, NotDone, Unavailable
from unspool.spools.committer import COMING_TURNS_MAX, Committer
from unspool.testing.clock import virtually


class Disk:
    """Commits when it is let; remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.syncs = asyncio.Semaphore(0)
        self.bad: dict[int, Exception] = {}

    def commit(self, items: Sequence[int]) -> asyncio.Task[list[int]]:
        self.batches.append(list(items))
        return asyncio.create_task(self._sync(list(items)))

    async def _sync(self, items: list[int]) -> list[int]:
        await self.syncs.acquire()
        for item in items:
            if item in self.bad:
                raise self.bad[item]
        return [item * 10 for item in items]

    def sync(self, times: int = 1) -> None:
        for _ in range(times):
            self.syncs.release()


def committer(disk: Disk, *, batch_max: int = 100, waiting_max: int = 1_000) -> Committer[int, int]:
    return Committer(disk.commit, batch_max=batch_max, waiting_max=waiting_max)


async def test_the_first_is_handed_over_at_once() -> None:
    disk = Disk()
    many = committer(disk)
    future = many.submit(1)
    assert disk.batches == [[1]], "before the loop has turned"
    disk.sync()
    assert await future == 10


async def test_the_next_batch_fills_while_one_is_in_flight() -> None:
    disk = Disk()
    many = committer(disk)
    futures = [many.submit(number) for number in range(50)]
    await asyncio.sleep(0.01)
    assert disk.batches == [[0]]
    assert many.waiting == 49
    disk.sync(2)
    assert await asyncio.gather(*futures) == [number * 10 for number in range(50)]
    assert disk.batches == [[0], list(range(1, 50))]


async def test_the_next_commit_begins_before_the_last_callers_wake() -> None:
    disk = Disk()
    many = committer(disk)
    seen: list[int] = []
    first = many.submit(1)
    first.add_done_callback(lambda _: seen.append(len(disk.batches)))
    second = many.submit(2)
    disk.sync(2)
    await asyncio.gather(first, second)
    assert seen == [2]


async def test_a_batch_has_a_limit() -> None:
    disk = Disk()
    many = committer(disk, batch_max=4)
    futures = [many.submit(number) for number in range(11)]
    disk.sync(99)
    await asyncio.gather(*futures)
    assert [len(batch) for batch in disk.batches] == [1, 4, 4, 2]
    assert [item for batch in disk.batches for item in batch] == list(range(11))


async def test_the_queue_has_a_limit() -> None:
    disk = Disk()
    many = committer(disk, waiting_max=3)
    futures = [many.submit(number) for number in range(4)]
    with pytest.raises(Full, match="not taken"):
        many.submit(99)
    disk.sync(9)
    assert await asyncio.gather(*futures) == [0, 10, 20, 30]
    assert await many.submit(5) == 50, "there is room again"
    assert 99 not in [item for batch in disk.batches for item in batch]


async def test_a_cancelled_caller_takes_nobody_along() -> None:
    disk = Disk()
    many = committer(disk)

    async def call(number: int) -> int:
        return await many.submit(number)

    tasks = [asyncio.create_task(call(number)) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    disk.sync(9)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == [10, 30, 50, 70, 90]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert sorted(item for batch in disk.batches for item in batch) == list(range(10))


async def test_an_error_reaches_each_caller_of_its_batch_and_no_other() -> None:
    disk = Disk()
    disk.bad[2] = Unavailable("gone")
    many = committer(disk)
    first = many.submit(0)
    middle = [many.submit(number) for number in (1, 2, 3)]
    disk.sync()
    assert await first == 0
    last = many.submit(4)
    disk.sync(2)
    results = await asyncio.gather(*middle, return_exceptions=True)
    assert [str(result) for result in results] == ["gone"] * 3
    assert await last == 40
    assert disk.batches == [[0], [1, 2, 3], [4]], "it may have happened: it is not tried again"


async def test_one_corrupt_record_is_one_callers_trouble() -> None:
    disk = Disk()
    disk.bad[2] = Corrupt("spoilt")
    many = committer(disk)
    futures = [many.submit(number) for number in range(4)]
    disk.sync(9)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[:2] == [0, 10]
    assert isinstance(results[2], Corrupt)
    assert results[3] == 30
    assert disk.batches == [[0], [1, 2, 3], [1], [2], [3]]


async def test_a_commit_that_fails_when_called() -> None:
    def commit(items: Sequence[int]) -> asyncio.Future[list[int]]:
        raise Unavailable("not even begun")

    many: Committer[int, int] = Committer(commit, batch_max=9, waiting_max=9)
    results = await asyncio.gather(*(many.submit(n) for n in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["not even begun"] * 3


async def test_a_commit_that_answers_too_few() -> None:
    async def commit(items: Sequence[int]) -> list[int]:
        return [0][: len(items) - 1]

    many: Committer[int, int] = Committer(commit, batch_max=9, waiting_max=9)
    results = await asyncio.gather(*(many.submit(n) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [AssertionError] * 3


async def test_drain_waits_for_everything() -> None:
    disk = Disk()
    many = committer(disk, batch_max=2)
    await many.drain()
    futures = [many.submit(number) for number in range(7)]
    drained = asyncio.create_task(many.drain())
    for _ in range(3):
        disk.sync()
        await asyncio.sleep(0.01)
        assert not drained.done()
    disk.sync(9)
    await drained
    assert all(future.done() for future in futures)


async def test_it_goes_on_after_it_was_idle_and_after_an_error() -> None:
    disk = Disk()
    disk.bad[1] = Unavailable("gone")
    disk.sync(99)
    many = committer(disk)
    for number in range(4):
        if number == 1:
            with pytest.raises(Unavailable):
                await many.submit(number)
        else:
            assert await many.submit(number) == number * 10
        await many.drain()
        await asyncio.sleep(0)


def test_a_loop_that_ends_leaves_nobody_hanging() -> None:
    left: list[asyncio.Future[int]] = []

    async def main() -> None:
        many = committer(Disk())
        left.extend(many.submit(number) for number in range(3))
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert all(future.cancelled() for future in left)


@pytest.mark.parametrize("callers", [8, 64])
async def test_busy_callers_share_their_commits(callers: int) -> None:
    """Not 1, 63, 1, 63 …, which would be a sync for nearly nothing every other time."""
    sizes: list[int] = []

    async def commit(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        await asyncio.sleep(0.001)
        return items

    many: Committer[int, int] = Committer(commit, batch_max=512, waiting_max=20_000)

    async def caller() -> None:
        for number in range(20):
            await many.submit(number)

    await asyncio.gather(*(caller() for _ in range(callers)))
    assert sum(sizes) == callers * 20
    assert sum(sizes) / len(sizes) > callers * 0.7


async def test_many_callers_make_few_batches() -> None:
    calls = 0

    async def commit(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)
        return items

    many: Committer[int, int] = Committer(commit, batch_max=512, waiting_max=20_000)
    results = await asyncio.gather(*(many.submit(number) for number in range(5_000)))
    assert results == list(range(5_000))
    assert calls < 20


def patient(disk: Disk, *, batch_max: int = 100) -> Committer[int, int]:
    return Committer(disk.commit, batch_max=batch_max, waiting_max=1_000, patient=True)


async def one_a_turn(many: Committer[int, int], count: int) -> list[asyncio.Future[int]]:
    futures = []
    for number in range(count):
        futures.append(many.submit(number))
        await asyncio.sleep(0)
    return futures


async def test_the_patient_waits_while_turns_bring_somebody() -> None:
    """Who comes turn after turn shares one commit; the first turn without anybody is its end."""
    disk = Disk()
    many = patient(disk)
    futures = await one_a_turn(many, 5)
    assert disk.batches == []
    disk.sync()
    assert await asyncio.gather(*futures) == [0, 10, 20, 30, 40]
    assert disk.batches == [[0, 1, 2, 3, 4]]


async def test_the_patient_does_not_wait_for_ever() -> None:
    """Where each turn brings somebody, a batch goes after so many turns, and when it is full."""
    disk = Disk()
    disk.sync(100)
    futures = await one_a_turn(patient(disk), 4 * COMING_TURNS_MAX)
    assert len(disk.batches) > 1
    assert len(disk.batches[0]) <= COMING_TURNS_MAX + 1
    full = Disk()
    full.sync(100)
    futures += await one_a_turn(patient(full, batch_max=3), 6)
    await asyncio.gather(*futures)
    assert full.batches[0] == [0, 1, 2]


@virtually
async def test_who_is_held_goes_when_he_is_told_to() -> None:
    """And in that moment: whoever tells him to has something for the same commit."""
    disk = Disk()
    many = patient(disk)
    many.hold(0.005)
    futures = await one_a_turn(many, 3)
    await asyncio.sleep(0.004)
    assert disk.batches == []
    many.go()
    assert disk.batches == [[0, 1, 2]]
    many.go()
    assert disk.batches == [[0, 1, 2]]
    disk.sync()
    assert await asyncio.gather(*futures) == [0, 10, 20]
    await many.drain()
    assert not many.busy


@virtually
async def test_who_is_held_and_forgotten_goes_by_himself() -> None:
    disk = Disk()
    disk.sync(9)
    many = patient(disk)
    many.hold(0.005)
    futures = await one_a_turn(many, 3)
    await asyncio.sleep(0.006)
    assert disk.batches == [[0, 1, 2]]
    many.go()  # nobody waits
    assert await asyncio.gather(*futures, many.submit(3)) == [0, 10, 20, 30]


@virtually
async def test_go_during_a_commit_is_for_those_behind_it() -> None:
    """One commit is under way at a time, whoever says go; and those behind it are not held then."""
    disk = Disk()
    many = patient(disk)
    first = many.submit(1)
    many.go()
    assert disk.batches == [[1]]
    second = many.submit(2)
    many.hold(60)
    many.go()
    assert disk.batches == [[1]]
    disk.sync(2)
    assert await asyncio.gather(first, second) == [10, 20]


@virtually
async def test_who_is_held_during_a_commit_is_not_next_by_himself() -> None:
    disk = Disk()
    many = patient(disk)
    first = many.submit(1)
    many.go()
    many.hold(0.005)
    second = many.submit(2)
    disk.sync(2)
    assert await first == 10
    await asyncio.sleep(0.004)
    assert disk.batches == [[1]]
    assert await second == 20


@virtually
async def test_what_has_begun_by_go_is_given_up_as_what_is_under_way() -> None:
    disk = Disk()
    many = patient(disk)
    many.hold(60)
    first = many.submit(1)
    many.go()
    second = many.submit(2)
    assert many.give_up("The disk hangs.") == 2
    with pytest.raises(Unavailable) as caught:
        await first
    assert not isinstance(caught.value, NotDone)
    with pytest.raises(NotDone):
        await second


@virtually
async def test_who_waited_for_the_disk_is_next_before_those_it_has_served_wake() -> None:
    """While nobody comes the disk is what all wait for: it is not left idle, patient or not."""
    disk = Disk()
    many = patient(disk)
    seen: list[int] = []
    first = many.submit(1)
    first.add_done_callback(lambda _: seen.append(len(disk.batches)))
    while not disk.batches:
        await asyncio.sleep(0)
    second = many.submit(2)
    disk.sync(2)
    await asyncio.gather(first, second)
    assert seen == [2]


class Ear:
    """Somebody who hears, and has no way of refusing to hear twice."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        self.heard.append(result)

    def set_exception(self, error: Exception) -> None:
        self.heard.append(type(error).__name__)

    def cancel(self) -> None: ...


async def test_after_a_spoilt_batch_each_is_told_once() -> None:
    """The good ones are told their results, and not the batch's failure on top: a request that is
    answered twice gives its connection's next one the wrong answer (I10)."""

    async def commit(items: Sequence[str]) -> Sequence[str]:
        if "bad" in items:
            raise Corrupt("spoilt")
        return items

    committer: Committer[str, str] = Committer(commit, batch_max=9, waiting_max=9, patient=True)
    good, bad = Ear(), Ear()
    committer.submit_for(good, "good")
    committer.submit_for(bad, "bad")
    await committer.drain()
    assert (good.heard, bad.heard) == (["good"], ["Corrupt"])


async def test_who_waits_for_a_disk_that_hangs_is_told_what_is_known_of_his() -> None:
    """Of what the disk was given nobody knows; of what it was not, that it is not there."""
    disk = Disk()
    many = committer(disk)
    given, behind = many.submit(1), many.submit(2)
    await asyncio.sleep(0)
    assert many.give_up("It hangs.") == 2
    with pytest.raises(Unavailable) as doubt:
        await given
    assert not isinstance(doubt.value, NotDone)
    with pytest.raises(NotDone):
        await behind
    with pytest.raises(NotDone):
        many.submit(3)
    await many.drain()
    disk.sync()
    await asyncio.sleep(0)
    assert disk.batches == [[1]]


@virtually
async def test_a_disk_that_works_is_not_given_up() -> None:
    """However many wait: something was done a moment ago."""
    disk = Disk()
    many = committer(disk)
    futures = [many.submit(number) for number in range(3)]
    await asyncio.sleep(0.03)
    disk.sync()
    await futures[0]
    assert many.give_up("It hangs.", stuck_s=0.02) == 0
    disk.sync()
    assert await asyncio.gather(*futures) == [0, 10, 20]
    assert many.give_up("It hangs.") == 0, "nobody waits"
