"""Where instants come from: the one place in the shell that asks what time it is.

Everything that decides takes `now` as an argument. Tests pass a clock of their own; the loop's
timers then go by that loop's time.
"""

from __future__ import annotations

import time
from typing import Protocol

from .core.message import Instant


class Clock(Protocol):
    def now(self) -> Instant:
        """Milliseconds since 1970, UTC."""
        ...


class SystemClock:
    """The machine's wall clock. It may step; nothing accepted depends on it but times of retry."""

    __slots__ = ()

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000_000)
