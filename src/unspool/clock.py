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
    """For leases: asking whether another's has run out, and saying until when ours lasts.

    A wall clock that steps forward makes every lease look abandoned at once, while its owner lives;
    one that steps back makes ours end before it has begun, for those who have not seen the step
    yet. So a step is not believed for `hold_ms`, one lease: the owners renew meanwhile, by the same
    wall clock, and then it is.

    Bugs: believes a machine's clock, which all its processes share, and not one process's alone: a
    host whose clock is wrong for longer than a lease is outside SKEW_MS, and the protocol. After a
    step back by an hour the leases of an owner who dies within one lease of it last an hour longer.
    """

    __slots__ = ("_clock", "_doubt_until_ms", "_hold_ms", "_monotonic_ms", "_offset_ms")

    def __init__(self, clock: Clock, *, hold_ms: int, monotonic_ms: Callable[[], int]) -> None:
        self._clock = clock
        self._hold_ms = hold_ms
        self._monotonic_ms = monotonic_ms
        self._offset_ms = clock.now() - monotonic_ms()
        self._doubt_until_ms: int | None = None

    def now(self) -> Instant:
        """For asking, and for forgetting. Never ahead of the time that passed."""
        return Instant(min(self._wall_and_passed()))

    def later(self) -> Instant:
        """For saying until when. Never behind the time that passed."""
        return Instant(max(self._wall_and_passed()))

    def _wall_and_passed(self) -> tuple[int, int]:
        """What the wall clock says, and what it would say had it not stepped; once a step is
        believed they are one."""
        wall, passed_ms = self._clock.now(), self._monotonic_ms()
        offset_ms = wall - passed_ms
        if abs(offset_ms - self._offset_ms) > SKEW_MS:
            if self._doubt_until_ms is None:
                self._doubt_until_ms = passed_ms + self._hold_ms
            if passed_ms < self._doubt_until_ms:
                return wall, passed_ms + self._offset_ms
        self._offset_ms = offset_ms  # it is slewed a little all the time
        self._doubt_until_ms = None
        return wall, wall
