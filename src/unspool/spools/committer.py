"""Committer: many small calls in, few large commits out. Once, outside every backend.

    committer = Committer(spool.accept, batch_max=512, waiting_max=20_000)
    result = await committer.submit(item)
    committer.submit_for(hears, item)           the same for somebody who is told in his own way
    await committer.drain()                     when everything submitted is done
    committer.give_up(why)                      nobody waits any longer, and nothing more is taken
    committer.close(why)                        nothing more is taken
    committer.hold(seconds) … committer.go()    what comes meanwhile waits for `go`

While one commit is in flight the next batch fills. There is no timer: an idle spool adds no
latency, and where the disk is what all wait for, it is never idle: two batches of like size are on
their ways in turn, one with the disk, one with the callers. A first item is handed over at once,
inside `submit`; `commit` may begin its work when it is called.

Who is `patient` hands over at the end of the first turn of the loop that brought nobody: a commit
costs as much processor as a dozen items, so while callers are still coming, and the processor is
what all wait for, it is worth more to have them all in one than to have the disk busy meanwhile.

Who is about to write to the same store himself holds the next batch until he does, and says `go`
just before: then one commit does for both. Held is for milliseconds, whatever becomes of him.

A caller's cancellation neither undoes nor delays the others' commit. An error reaches each caller
of its batch; but of a batch that failed as `Corrupt` nothing was done and one item is to blame, so
its items are tried one by one, and only that one's caller hears of it. A result that is a `Refused`
is raised to its caller alone: so a commit tells of each item apart.

A commit may hang for as long as its spool does. Whoever has to end gives it up: those of the batch
that is under way are told `Unavailable`, for it may happen yet; those behind it, `NotDone`.

Belongs to the loop that submits. Costs one future a call, or none for those who are told in their
own way, and one task while it is busy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from ..errors import Corrupt, Full, NotDone, Refused, Unavailable

log: Final = logging.getLogger("unspool.spool")

TURNS: Final = 3
"""Of the loop: answers are written, requests are read, requests are submitted."""
COMING_TURNS_MAX: Final = 8
"""So many turns a batch waits for those who are still coming, where each turn brings somebody."""

T = TypeVar("T")
R = TypeVar("R")
Heard = TypeVar("Heard", contravariant=True)


class Hears(Protocol[Heard]):
    """Who is told of a commit: a future, or somebody who goes on at once. Never raises."""

    def done(self) -> bool: ...
    def set_result(self, result: Heard, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...
    def cancel(self) -> object: ...


_Batch = tuple[Sequence[T], Sequence[Hears[R]]]
_Commit = tuple[_Batch[T, R], Awaitable[Sequence[R | Refused]]]


class Committer(Generic[T, R]):
    def __init__(
        self,
        commit: Callable[[Sequence[T]], Awaitable[Sequence[R | Refused]]],
        *,
        batch_max: int,
        waiting_max: int,
        patient: bool = False,
    ) -> None:
        assert batch_max > 0
        assert waiting_max > 0
        self._commit: Final = commit
        self._batch_max: Final = batch_max
        self._waiting_max = waiting_max
        self._patient: Final = patient
        self._items: list[T] = []
        self._futures: list[Hears[R]] = []
        self._flying: Sequence[Hears[R]] = ()
        self._running: asyncio.Task[None] | None = None
        self._begun: Awaitable[Sequence[R | Refused]] | None = None
        self._ready: _Commit[T, R] | None = None
        """What `go` has begun."""
        self._under_way = False
        self._held_until = 0.0
        self._gate: asyncio.Future[None] | None = None
        self._well_at = 0.0
        """When a commit was last done, or the first of a row was begun; by the loop's clock."""
        self._given_up = ""

    @property
    def waiting(self) -> int:
        """Items that no commit has taken up yet."""
        return len(self._items)

    @property
    def busy(self) -> bool:
        return self._running is not None

    def submit(self, item: T) -> asyncio.Future[R]:
        """Await what it returns. Raises `Full` at once: nothing of this item was begun."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.submit_for(future, item)
        return future

    def submit_for(self, hears: Hears[R], item: T) -> None:
        """The same for somebody who is told the result, in the middle of telling all the others."""
        if len(self._items) >= self._waiting_max:
            if self._given_up:
                raise NotDone(f"{self._given_up} This was not given to it; send it again later.")
            raise Full(
                f"{self._waiting_max} requests wait for the spool's disk already. This one was not"
                " taken; send it again later. See how busy the disk is: iostat -x 1"
            )
        self._items.append(item)
        self._futures.append(hears)
        if self._running is None:
            loop = asyncio.get_running_loop()
            self._well_at = loop.time()
            if not self._patient:
                self._ready = self._next()
            self._running = loop.create_task(self._run())
            self._running.add_done_callback(self._ended)

    def hold(self, seconds: float) -> None:
        """What no commit has taken up yet waits for `go`, so long at most."""
        self._held_until = asyncio.get_running_loop().time() + seconds

    def go(self) -> None:
        """What waits begins in this moment; where a commit is under way, after that."""
        self._held_until = 0.0
        if self._items and self._running is not None and not self._under_way:
            self._ready = self._next()
        if self._gate is not None:
            _open(self._gate)

    async def drain(self) -> None:
        """Return once everything that was submitted has its result."""
        while self._running is not None:
            await asyncio.wait([self._running])

    def give_up(self, why: str, *, stuck_s: float = 0.0) -> int:
        """Unless a commit was done within the last `stuck_s`: whoever waits hears so, and whoever
        comes from now on. How many waited. The commit that is under way may happen yet."""
        if self._running is None or not self.hangs(stuck_s):
            return 0
        flying, behind = self._flying, self._futures
        self._items, self._futures, self._flying = [], [], ()
        self.close(why)
        self._running.cancel()
        waited = sum(not one.done() for one in (*flying, *behind))
        _tell(flying, (), Unavailable(f"{why} It may or may not have this; repeat it."))
        _tell(behind, (), NotDone(f"{why} This was not given to it; send it again later."))
        return waited

    def hangs(self, stuck_s: float) -> bool:
        """Somebody waits, and no commit was done within the last `stuck_s`."""
        waited_s = asyncio.get_running_loop().time() - self._well_at
        return self._running is not None and waited_s >= stuck_s

    def close(self, why: str) -> None:
        """Take nothing more: who comes is told `NotDone`, and why."""
        self._waiting_max, self._given_up = 0, why

    def _take(self) -> _Batch[T, R]:
        items, futures = self._items, self._futures
        if len(items) <= self._batch_max:
            self._items, self._futures = [], []
        else:
            self._items, self._futures = items[self._batch_max :], futures[self._batch_max :]
            items, futures = items[: self._batch_max], futures[: self._batch_max]
        self._flying = futures
        return items, futures

    def _next(self) -> _Commit[T, R]:
        self._under_way = True
        batch = self._take()
        return batch, self._begin(batch[0])

    def _begin(self, items: Sequence[T]) -> Awaitable[Sequence[R | Refused]]:
        try:
            self._begun = self._commit(items)
        except Exception as error:
            self._begun = _failed(error)
        return self._begun

    async def _run(self) -> None:
        """Commit after commit, until nobody waits."""
        while True:
            if self._ready is None:
                await self._all_come()
            (items, futures), begun = self._ready or self._next()
            self._ready = None
            results, error = await _outcome(begun, len(items))
            if error is None:
                self._well_at = asyncio.get_running_loop().time()
            if isinstance(error, Corrupt) and len(items) > 1:
                await self._one_by_one(items, futures)
                futures, results, error = (), (), None  # each has been told, once
            many = 2 * len(self._items) >= len(items) and not self._held_s
            if many and await self._nobody_comes():
                # They waited for the disk. The next batch is on its way before these callers wake:
                # disk and loop overlap.
                self._ready = self._next()
                _tell(futures, results, error)
                continue
            _tell(futures, results, error)
            self._under_way = False
            await self._come_back(len(items))
            if not self._items and not self._under_way:
                self._running = None
                return

    @property
    def _held_s(self) -> float:
        """For so long whoever waits is held."""
        return max(0.0, self._held_until - asyncio.get_running_loop().time())

    async def _nobody_comes(self) -> bool:
        """Has a turn of the loop brought nobody?"""
        if not self._patient:
            return True
        count = len(self._items)
        await asyncio.sleep(0)
        return len(self._items) == count

    async def _all_come(self) -> None:
        for _ in range(COMING_TURNS_MAX):
            if len(self._items) >= self._batch_max or await self._nobody_comes():
                break
        loop = asyncio.get_running_loop()
        while not self._under_way and (left_s := self._held_s):
            gate = self._gate = loop.create_future()
            alarm = loop.call_later(left_s, _open, gate)
            await gate
            alarm.cancel()

    async def _come_back(self, count: int) -> None:
        """Let callers that were just answered bring what they have next.

        Without this, 64 busy callers make batches of 1, 63, 1, 63 …: a sync for a single item every
        other time. With half of them back the disk has enough to do while the rest come.
        """
        for _ in range(TURNS):
            await asyncio.sleep(0)
            if self._under_way or 2 * len(self._items) >= count:
                return

    async def _one_by_one(self, items: Sequence[T], futures: Sequence[Hears[R]]) -> None:
        for item, future in zip(items, futures, strict=True):
            results, error = await _outcome(self._begin([item]), 1)
            _tell([future], results, error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Cancelled, with its loop: nobody knows what became of these, so nobody is told."""
        if self._running is task:
            if asyncio.iscoroutine(self._begun):
                self._begun.close()  # it may not have come to its first step
            left = [*self._flying, *self._futures]
            self._running, self._ready, self._under_way = None, None, False
            self._items, self._futures, self._flying = [], [], []
            for future in left:
                future.cancel()


def _open(gate: asyncio.Future[None]) -> None:
    if not gate.done():
        gate.set_result(None)


async def _failed(error: Exception) -> Sequence[R | Refused]:
    raise error


async def _outcome(
    begun: Awaitable[Sequence[R | Refused]], count: int
) -> tuple[Sequence[R | Refused], Exception | None]:
    try:
        results = await begun
        assert len(results) == count, "a commit answers each item, in order"
    except Exception as error:
        return (), error
    return results, None


def _tell(
    futures: Sequence[Hears[R]], results: Sequence[R | Refused], error: Exception | None
) -> None:
    """Each caller gets its own; a caller who was cancelled, or told already, gets nothing."""
    for number, future in enumerate(futures):
        if future.done():
            continue
        try:
            if error is not None:
                future.set_exception(error)
            elif isinstance(result := results[number], Refused):
                future.set_exception(result)
            else:
                future.set_result(result)
        except Exception:
            log.exception("somebody made a mistake with what he was told; the others go on")
