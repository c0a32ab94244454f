"""The portal: one thread with an event loop, for code that blocks.

    portal = Portal("unspool")
    result = portal.call(work, …)             await work(…) there, wait for it here
    result = portal.between(work, …)          the same; `work(hand, …)` may have things done here:
                                              await hand(function, …)

So WSGI, Django and plain functions use what the others use, with one implementation of each verb,
and the threads of a server share commits (`committer`). A handler runs in the thread that asked,
where its framework wants it; claims are renewed meanwhile by the loop.

The thread is made at the first call, and anew after a fork: gunicorn may load the application
before it forks. It is a daemon: a program that forgets to close it ends all the same.

Bugs: a loop that is given blocking work blocks everybody. Nothing of ours does.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class Hand(Protocol):
    """Has a function called in the thread that waits at the portal."""

    async def __call__(self, function: Callable[..., R], /, *arguments: Any) -> R: ...


class Portal:
    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._making = threading.Lock()

    def _there(self) -> asyncio.AbstractEventLoop:
        """The loop, made where there is none in this process."""
        if self._loop is None or self._pid != os.getpid():
            if self._pid != os.getpid():
                self._making = threading.Lock()  # another thread's, before the fork, may be locked
            with self._making:
                if self._loop is None or self._pid != os.getpid():
                    self._make()
        assert self._loop is not None
        return self._loop

    def _make(self) -> None:
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(ready.set)
            loop.run_forever()

        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()
        ready.wait()
        self._loop, self._pid = loop, os.getpid()

    def call(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await it there. Interrupted here, it is cancelled there."""

        async def awaited() -> T:
            return await work(*args, **kwargs)

        future = asyncio.run_coroutine_threadsafe(awaited(), self._there())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def between(
        self,
        work: Callable[Concatenate[Hand, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Await `work(hand, …)` there, and do here what it hands over."""
        errands: SimpleQueue[_Errand | None] = SimpleQueue()

        async def hand(function: Callable[..., R], /, *arguments: Any) -> R:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[R] = loop.create_future()
            errands.put((function, arguments, loop, future))
            return await future

        async def awaited() -> T:
            return await work(hand, *args, **kwargs)

        future = asyncio.run_coroutine_threadsafe(awaited(), self._there())
        future.add_done_callback(lambda _: errands.put(None))
        try:
            while (errand := errands.get()) is not None:
                _do(errand)
        except BaseException:  # an interrupt: what was handed over did not end
            future.cancel()
            raise
        return future.result()

    def close(self) -> None:
        """End the thread. Twice does nothing; a later call makes another."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or self._pid != os.getpid():
            return
        self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


_Errand = tuple[
    Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, "asyncio.Future[Any]"
]


def _do(errand: _Errand) -> None:
    """Call it, and tell whoever waits in the loop what came of it."""
    function, arguments, loop, future = errand
    try:
        result = function(*arguments)
    except BaseException as error:
        loop.call_soon_threadsafe(_tell, future, None, error)
        if not isinstance(error, Exception):
            raise
    else:
        loop.call_soon_threadsafe(_tell, future, result, None)


def _tell(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # whoever handed it over was cancelled
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.cancel()
