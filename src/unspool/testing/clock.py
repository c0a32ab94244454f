"""Virtual time: an event loop on which waiting takes no time, and a clock that goes by it.

    run(main())               run a coroutine to its end in virtual time
    @virtually                the same for an async test: to pytest it is a plain function
    clock = VirtualClock()    unspool's Clock on such a loop; clock.step(ms) is somebody who sets it
    VirtualLoop               the loop itself, for those who have a Runner of their own

Instead of waiting for a timer the loop is there: five days of delivery are run in the time that
their work takes, and every run sees the same instants in the same order. When nothing is ready and
no timer is set, nothing can ever happen: that is a `Deadlock`, raised out of `run` at once, where
real time would hang. When much happens and no time passes, that is a `Livelock`: a loop that asks
again and again for what only time can bring.

What does not go in: threads, executors and sockets, for they live in real time. A spool that works
on a thread (SQLite) is tested on a real loop.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from ..core.message import Instant

__all__ = ["EPOCH", "Deadlock", "Livelock", "VirtualClock", "VirtualLoop", "run", "virtually"]

EPOCH: Final = Instant(1_750_000_000_000)
"""The instant at which every virtual day begins: 2025-06-15T15:06:40Z."""
TURNS_MAX: Final = 100_000
"""So many turns of the loop at one instant are a livelock."""

P = ParamSpec("P")
T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: everybody waits for everybody."""


class Livelock(RuntimeError):
    """Everybody is busy and no time passes."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting for the timeout, be there."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            self._turns += 1
            if self._turns > TURNS_MAX:
                self._turns = 0
                raise Livelock(f"{TURNS_MAX} turns of the loop, and no time has passed")
            return ready
        if timeout is None:
            raise Deadlock("nothing is ready, no timer is set: nothing can ever happen again")
        self._turns = 0
        self.now_ns += max(1, round(timeout * 1e9))  # whole nanoseconds: nothing adds up
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while there is work, and jumps when there is none."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jump.now_ns / 1e9

    def run_in_executor(self, *_args: Any) -> Any:  # type: ignore[override]
        """Not here."""
        raise RuntimeError("a thread lives in real time; it has no place on a virtual loop")


class VirtualClock:
    """unspool's clock on a virtual loop; outside one it shows the instant at which it was set."""

    def __init__(self, start: Instant = EPOCH) -> None:
        self._base_ms = int(start)

    def now(self) -> Instant:
        """Milliseconds since 1970, by the running loop's time."""
        try:
            passed = asyncio.get_running_loop().time()
        except RuntimeError:
            passed = 0.0
        # A timer may fire a hair before its millisecond is full.
        return Instant(self._base_ms + int(passed * 1000 + 1e-3))

    def step(self, ms: int) -> None:
        """The wall clock is set, forwards or back; timers do not notice."""
        self._base_ms += ms


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end in virtual time. Raises what it raises, and `Deadlock` and `Livelock`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as virtual:
        return virtual.run(main)


def virtually(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """An async function as a plain one that runs in virtual time: a test, fixtures and all."""

    @functools.wraps(test)
    def plain(*args: P.args, **named: P.kwargs) -> T:
        return run(test(*args, **named))

    return plain
