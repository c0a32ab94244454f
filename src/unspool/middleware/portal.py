"""The portal: one thread with an event loop, for code that blocks.

    portal = Portal("unspool", on_close=opening.aclose)
    result = portal.call(work, …)             await work(…) there, wait for it here
    result = portal.between(work, …)          the same; `work(hand, …)` may have things done here:
                                              await hand(function, …)
    result = await portal.reach(work, …)      the same from another event loop; `hand` takes
                                              coroutine functions, which are awaited here
    portal.close()                            `on_close` there, then the thread ends

So WSGI, Django and plain functions use what the others use, with one implementation of each verb,
and the threads of a server share commits (`committer`). A handler runs in the thread that asked,
where its framework wants it; claims are renewed meanwhile by the loop.

The thread is made at the first call, and anew after a fork: gunicorn may load the application
before it forks. Before this process forks, an idle portal closes, and so lets go of its spool:
SQLite must not be carried over a fork, for the child would hold locks that it does not have. One
that is in use cannot close; the child is then refused, and its parent goes on.

An interrupt (KeyboardInterrupt, a server's SystemExit, GreenletExit) of the thread that waits is
told to the work there as `Interrupted`, or cancels it. Either way the work has some seconds to
write down how it ended, and then the interrupt goes on.

The thread is a daemon: a program that forgets to close it ends all the same. At the interpreter's
exit it is closed.

Refuses with a sentence: a call from its own loop, which would wait for itself for ever; a call
where gevent or eventlet has replaced threads, for theirs are no threads.

Bugs: a loop that is given blocking work blocks everybody. Nothing of ours does. A handler that is
still running when the portal closes ends with `Unavailable`, whatever it did.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from ..errors import Misconfigured, Unavailable
from .visit import ENDS_S, AsyncHand, Errand, Hand, Visit

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

CLOSES_S: Final = 5.0
"""How long the end of the loop may take."""

GREEN: Final = (("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched"))
"""Who may have replaced threads, and whom to ask."""


class Portal:
    def __init__(
        self,
        name: str,
        *,
        on_close: Callable[[], Awaitable[None]] | None = None,
        closes_s: float = CLOSES_S,
        lets_go_s: float = CLOSES_S,
    ) -> None:
        """`closes_s`: how long `close` waits for calls that are under way; `lets_go_s`: how long
        `on_close` may take."""
        self._name: Final = name
        self._closes_s = closes_s
        self._lets_go_s = lets_go_s
        self._on_close = on_close
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._making = threading.Lock()
        self._busy: set[Visit[Any]] = set()
        self._watched = self._forking = False

    def call(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await it there. Interrupted here, it is cancelled there."""

        async def awaited() -> T:
            return await work(*args, **kwargs)

        visit = self._start(awaited)
        try:
            return visit.ended.result()
        except BaseException:
            visit.call_off()
            raise

    def between(
        self,
        work: Callable[Concatenate[Hand, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Await `work(hand, …)` there, and do here what it hands over."""
        errands: SimpleQueue[Errand | None] = SimpleQueue()

        async def hand(function: Callable[..., R], /, *arguments: Any) -> R:
            errand = Errand(function, arguments)
            errands.put(errand)
            result: R = await errand.told
            return result

        async def awaited() -> T:
            return await work(hand, *args, **kwargs)

        visit = self._start(awaited)
        visit.ended.add_done_callback(lambda _: errands.put(None))
        told = False
        try:
            while (errand := errands.get()) is not None:
                if (interrupt := errand.do()) is not None:
                    told = True
                    raise interrupt
            return visit.ended.result()
        except BaseException:
            visit.call_off(after_s=ENDS_S if told else 0)
            raise

    async def reach(
        self,
        work: Callable[Concatenate[AsyncHand, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """`between` for a caller who has an event loop of its own: what is handed over is awaited
        in the task that called, with its context. Cancelled here, it is cancelled there, too."""
        here = asyncio.get_running_loop()
        errands: asyncio.Queue[Errand | None] = asyncio.Queue()

        def put(errand: Errand | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop that called has closed
                here.call_soon_threadsafe(errands.put_nowait, errand)

        async def hand(function: Callable[..., Awaitable[R]], /, *arguments: Any) -> R:
            errand = Errand(function, arguments)
            put(errand)
            result: R = await errand.told
            return result

        async def awaited() -> T:
            return await work(hand, *args, **kwargs)

        visit = self._start(awaited)
        visit.ended.add_done_callback(lambda _: put(None))
        told = False
        try:
            while (errand := await errands.get()) is not None:
                if (interrupt := await errand.await_it()) is not None:
                    told = True
                    raise interrupt
            return visit.ended.result()
        except BaseException:
            if not told:
                visit.cancel()
            raise

    # --- the thread -------------------------------------------------------------------------

    def _start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Visit[T]:
        if self._pid == os.getpid() and threading.current_thread() is self._thread:
            raise RuntimeError(
                f"This is the loop of the portal {self._name!r}: waiting here for it would wait for"
                " ever. Nothing was run. Await the work itself instead of calling it"
            )
        with self._making:
            visit = Visit(self._there(), work)
            self._busy.add(visit)
            visit.begin()
        visit.ended.add_done_callback(lambda _: self._busy.discard(visit))
        return visit

    def _there(self) -> asyncio.AbstractEventLoop:
        """The loop, made where there is none in this process."""
        if self._loop is not None and self._pid == os.getpid():
            return self._loop
        if self._loop is not None:
            raise Unavailable(
                f"This process was forked while the portal {self._name!r} was in use, and its spool"
                " cannot be carried over. Nothing was run. Fork before the first request, as"
                " servers do, or start the process anew (multiprocessing: spawn)"
            )
        _refuse_green()
        if not self._watched:
            self._watched = True
            _watch(self)
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(ready.set)
            try:
                loop.run_forever()
            finally:
                loop.close()

        thread = threading.Thread(target=run, name=self._name, daemon=True)
        thread.start()
        ready.wait()
        self._loop, self._thread, self._pid = loop, thread, os.getpid()
        return loop

    def close(self) -> None:
        """End the thread, after calls under way have had some seconds to end. Twice does nothing;
        a later call makes another."""
        if threading.current_thread() is self._thread and self._pid == os.getpid():
            raise RuntimeError(f"The portal {self._name!r} cannot be closed from its own loop")
        if self._pid != os.getpid():
            return
        concurrent.futures.wait([visit.ended for visit in list(self._busy)], timeout=self._closes_s)
        with self._making:
            self._close()

    def _close(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None
        visits = list(self._busy)
        ending = asyncio.run_coroutine_threadsafe(_wind_up(visits, self._on_close), loop)
        try:
            ending.result(timeout=CLOSES_S + self._lets_go_s)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=CLOSES_S)
            for visit in visits:
                visit.give_up()

    # --- forks and exits: see `_watch` --------------------------------------------------------

    def before_fork(self) -> None:
        self._making.acquire()
        self._forking = True
        within = threading.current_thread() is self._thread
        if self._pid == os.getpid() and not self._busy and not within:
            with contextlib.suppress(Exception):  # whoever forks has nothing to do with it
                self._close()

    def after_fork(self) -> None:
        if self._forking:  # else it has come to be while another thread forked
            self._forking = False
            self._making.release()

    def in_child(self) -> None:
        self._making = threading.Lock()  # another thread's, before the fork
        self._busy = set()
        self._forking = False

    def at_exit(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def _watch(portal: Portal) -> None:
    """Tell a portal of forks and of the end, for as long as there is one."""
    there = weakref.ref(portal)

    def tell(verb: Callable[[Portal], None]) -> Callable[[], None]:
        def told() -> None:
            if (one := there()) is not None:
                verb(one)

        return told

    os.register_at_fork(
        before=tell(Portal.before_fork),
        after_in_parent=tell(Portal.after_fork),
        after_in_child=tell(Portal.in_child),
    )
    atexit.register(tell(Portal.at_exit))


def _refuse_green() -> None:
    """A thread that is none: the loop would wait in the middle of somebody's request."""
    for module, question in GREEN:
        asked = getattr(sys.modules.get(module), question, None)
        if asked is not None and asked("threading" if module.startswith("gevent") else "thread"):
            raise Misconfigured(
                f"{module.partition('.')[0]} has replaced this process's threads, and an event loop"
                " needs one. Nothing was run. Use threads instead:"
                " gunicorn --worker-class gthread --threads 8"
            )


async def _wind_up(
    visits: list[Visit[Any]], on_close: Callable[[], Awaitable[None]] | None
) -> None:
    """End the visits while there is a spool to write it down in; then let go of that."""
    tasks = [visit.task for visit in visits if visit.task is not None]
    await _end(tasks)
    try:
        if on_close is not None:
            await on_close()
    finally:
        await _end([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
        await asyncio.get_running_loop().shutdown_asyncgens()


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSES_S)
