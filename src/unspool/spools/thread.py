"""One thread that does what it is told, in order, for whichever loop asks.

    thread = OneThread("unspool-sqlite")
    result = await thread.soon(function, *arguments)     the work is on its way when soon() returns
    result = await thread.joined(function, *arguments)   the same, perhaps together with others
    await thread.stop()                                  after everything told so far is done
    thread.leave()                                       the same, and nobody waits for it

`soon` hands the work over when it is called, not when it is awaited: a loop that is busy with its
next request and a disk that is busy with the last one overlap.

Work that is `joined` and has queued up meanwhile is done in one go, in its order, by the `together`
that the thread was given: so one sync is enough for all of it.

A caller who is cancelled learns nothing more; the work may be done all the same, and harms nobody.
The thread is a daemon: a program that forgets to close ends all the same, and loses nothing that
was promised, for promises are given after the work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from ..errors import NotDone

T = TypeVar("T")
Work = Callable[[], Any]
Outcome = tuple[Any, BaseException | None]

JOINED_MAX: Final = 64


class _Call:
    __slots__ = ("future", "joins", "loop", "work")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        work: Work,
        joins: bool,
    ) -> None:
        self.loop = loop
        self.future = future
        self.work = work
        self.joins = joins


def alone(work: Work) -> Outcome:
    """Do it; what went wrong is its caller's to see."""
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _report(future: asyncio.Future[Any], outcome: Outcome) -> None:
    result, error = outcome
    if future.done():  # its caller was cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class OneThread:
    def __init__(
        self, name: str, *, together: Callable[[Sequence[Work]], Sequence[Outcome]] | None = None
    ) -> None:
        self.together = together
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.stopped = False
        self._thread.start()

    def soon(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return self._soon(False, function, *arguments)

    def joined(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return self._soon(True, function, *arguments)

    def _soon(self, joins: bool, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # asyncio.run(spool.find(…)): the loop comes later
            return self._once_awaited(joins, function, *arguments)
        future: asyncio.Future[T] = loop.create_future()
        if self.stopped:
            future.set_exception(
                NotDone(
                    "The spool is closed. Nothing was accepted by this call; what was accepted"
                    " before is on the disk. Start again: unspool serve"
                )
            )
        else:
            self._calls.put(_Call(loop, future, partial(function, *arguments), joins))
        return future

    async def _once_awaited(self, joins: bool, function: Callable[..., T], *arguments: Any) -> T:
        return await self._soon(joins, function, *arguments)

    async def stop(self) -> None:
        """End the thread. Called twice, it does nothing the second time."""
        if not self.stopped:
            last = self.soon(lambda: None)
            self.leave()
            await last
        self._thread.join()

    def leave(self) -> None:
        """It ends when it has done what it was told; a disk that hangs may keep it for ever."""
        if not self.stopped:
            self.stopped = True
            self._calls.put(None)

    def _run(self) -> None:
        calls: list[_Call | None] = [self._calls.get()]
        while (call := calls.pop(0)) is not None:
            group = [call]
            if call.joins and self.together is not None:
                self._gather(calls)
                while calls and (other := calls[0]) is not None and other.joins:
                    group.append(other)
                    del calls[0]
            if len(group) > 1 and self.together is not None:
                outcomes = self.together([one.work for one in group])
            else:
                outcomes = [alone(call.work)]
            for one, outcome in zip(group, outcomes, strict=True):
                with suppress(RuntimeError):  # the loop that asked has closed: nobody waits
                    one.loop.call_soon_threadsafe(_report, one.future, outcome)
            del call, group, outcomes, one, outcome
            if not calls:
                calls.append(self._calls.get())

    def _gather(self, calls: list[_Call | None]) -> None:
        """What has queued up meanwhile."""
        with suppress(Empty):
            while len(calls) < JOINED_MAX:
                calls.append(self._calls.get_nowait())
