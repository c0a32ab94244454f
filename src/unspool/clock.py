"""Where instants come from: the one place in the shell that asks what time it is.

Everything that decides takes `now` as an argument. Tests pass a clock of their own; the loop's
timers then go by that loop's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from .core.message import SKEW_MS, Instant


class Clock(Protocol):
    def now(self) -> Instant:
        """Milliseconds since 1970, UTC."""
        ...


class SystemClock:
    """The machine's wall clock. It may step; nothing accepted depends on it but times of retry."""

    __slots__ = ()

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000_000)


class CarefulClock:
    """For asking whether somebody else's lease has run out. Never ahead of the time that passed.

    A wall clock that steps forward makes every lease look abandoned at once, while its owner lives.
    So a step is not believed for `hold_ms`, one lease: the owners renew meanwhile, by the same wall
    clock, and then it is. A step back is believed at once: it makes leases last longer.
    """

    __slots__ = ("_clock", "_doubt_until_ms", "_hold_ms", "_monotonic_ms", "_offset_ms")

    def __init__(self, clock: Clock, *, hold_ms: int, monotonic_ms: Callable[[], int]) -> None:
        self._clock = clock
        self._hold_ms = hold_ms
        self._monotonic_ms = monotonic_ms
        self._offset_ms = clock.now() - monotonic_ms()
        self._doubt_until_ms: int | None = None

    def now(self) -> Instant:
        wall, passed_ms = self._clock.now(), self._monotonic_ms()
        offset_ms = wall - passed_ms
        if abs(offset_ms - self._offset_ms) > SKEW_MS:
            if self._doubt_until_ms is None:
                self._doubt_until_ms = passed_ms + self._hold_ms
            if passed_ms < self._doubt_until_ms:
                return Instant(min(wall, passed_ms + self._offset_ms))
        self._offset_ms = offset_ms  # it is slewed a little all the time
        self._doubt_until_ms = None
        return wall
