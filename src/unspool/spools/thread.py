"""One thread that does what it is told, in order, for whichever loop asks.

    thread = OneThread("unspool-sqlite")
    result = await thread.soon(function, *arguments)     the work is on its way when soon() returns
    await thread.stop()                                  after everything told so far is done

`soon` hands the work over when it is called, not when it is awaited: a loop that is busy with its
next request and a disk that is busy with the last one overlap.

A caller who is cancelled learns nothing more; the work may be done all the same, and harms nobody.
The thread is a daemon: a program that forgets to close ends all the same, and loses nothing that
was promised, for promises are given after the work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from ..errors import Unavailable

T = TypeVar("T")
_Call = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


def _report(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # its caller was cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class OneThread:
    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.stopped = False
        self._thread.start()

    def soon(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # asyncio.run(spool.find(…)): the loop comes later
            return self._once_awaited(function, *arguments)
        future: asyncio.Future[T] = loop.create_future()
        if self.stopped:
            future.set_exception(
                Unavailable(
                    "The spool is closed. Nothing was accepted by this call; what was accepted"
                    " before is on the disk. Start again: unspool serve"
                )
            )
        else:
            self._calls.put((loop, future, function, arguments))
        return future

    async def _once_awaited(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self.soon(function, *arguments)

    async def stop(self) -> None:
        """End the thread. Called twice, it does nothing the second time."""
        if not self.stopped:
            last = self.soon(lambda: None)
            self.stopped = True
            self._calls.put(None)
            await last
        self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, function, arguments = call
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as problem:  # the caller's to see
                error = problem
            with suppress(RuntimeError):  # the loop that asked has closed: nobody waits any more
                loop.call_soon_threadsafe(_report, future, result, error)
            del call, loop, future, function, arguments, result, error
