"""A visit: what a thread that waits and a loop that works say to one another (see `portal`).

    visit = Visit(loop, work); visit.begin()      `work()` is on its way there
    visit.ended                                   what came of it: a future of threads
    visit.call_off()                              cancel it, and wait until it has ended

    errand = Errand(function, arguments)          made there, by the work
    interrupt = errand.do()                       done here; what interrupted it goes on here
    result = await errand.told                    and there it is known

An exception goes over as itself. What is no `Exception` cannot: KeyboardInterrupt, SystemExit and
GreenletExit would end the loop, and CancelledError would look like somebody's wish. It is told
there as `Interrupted`, and given back to be raised here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, Protocol, TypeVar

from ..errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

ENDS_S: Final = 5.0
"""How long an interrupted thread waits for its work to write down how it ended."""


class Interrupted(Exception):
    """The thread that ran what was handed to it was interrupted: how far it came, nobody knows."""


class Hand(Protocol):
    """Has a function called in the thread that waits at the portal."""

    async def __call__(self, function: Callable[..., R], /, *arguments: Any) -> R: ...


class AsyncHand(Protocol):
    """Has a coroutine function awaited in the loop that waits at the portal."""

    async def __call__(self, function: Callable[..., Awaitable[R]], /, *arguments: Any) -> R: ...


class Visit(Generic[T]):
    """One work in the loop, and what came of it for the thread that waits."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> None:
        self._loop = loop
        self._work = work
        self.ended: Final = concurrent.futures.Future[T]()
        self.task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self.task = self._loop.create_task(self._work())
        self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if self.ended.done():
            return
        if task.cancelled():
            self.give_up()
        elif (error := task.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())

    def give_up(self) -> None:
        """Nobody will say any more what came of it."""
        if not self.ended.done():
            self.ended.set_exception(
                Unavailable(
                    "The portal was closed before the work had ended. It may have had its effect;"
                    " repeat it under its key"
                )
            )

    def cancel(self) -> None:
        """Have it cancelled there. Does not wait."""
        with contextlib.suppress(RuntimeError):  # the loop has closed, and it has ended
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self.task is not None, "the loop does things in the order they were told"
        self.task.cancel()

    def call_off(self, *, after_s: float = 0) -> None:
        """Let it end by itself for `after_s`, then cancel it; wait until it has ended."""
        if not concurrent.futures.wait([self.ended], timeout=after_s).done:
            self.cancel()
            concurrent.futures.wait([self.ended], timeout=ENDS_S)


class Errand:
    """Something to be done here for somebody there."""

    __slots__ = ("_arguments", "_function", "_loop", "told")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()
        self.told: Final[asyncio.Future[Any]] = self._loop.create_future()

    def do(self) -> BaseException | None:
        """Call it, and tell what came of it. What interrupted it is given back, to go on."""
        try:
            result = self._function(*self._arguments)
        except BaseException as error:
            return self._failed(error)
        self._tell(_set_result, result)
        return None

    async def await_it(self) -> BaseException | None:
        try:
            result = await self._function(*self._arguments)
        except BaseException as error:
            return self._failed(error)
        self._tell(_set_result, result)
        return None

    def _failed(self, error: BaseException) -> BaseException | None:
        if isinstance(error, StopIteration | StopAsyncIteration):
            # As in PEP 479: it would end the generator that awaits it, and not be seen as an error.
            wrapped = RuntimeError(f"{type(error).__name__} left the function")
            wrapped.__cause__ = error
            self._tell(_set_exception, wrapped)
        elif isinstance(error, Exception):
            self._tell(_set_exception, error)
        else:
            # An interrupt: set as it is it would end the loop, and everybody else's work.
            told = Interrupted(type(error).__name__)
            told.__cause__ = error
            self._tell(_set_exception, told)
            return error
        return None

    def _tell(self, how: Callable[[asyncio.Future[Any], Any], None], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the portal has closed: nobody waits any more
            self._loop.call_soon_threadsafe(how, self.told, what)


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():  # else whoever handed it over was cancelled
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
