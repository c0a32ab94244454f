"""The careful clock: a wall clock that steps is not believed for one lease (F11)."""

from __future__ import annotations

import pytest

from unspool.clock import CarefulClock
from unspool.core.message import SKEW_MS, Instant

HOLD_MS = 3_000
HOUR_MS = 3_600_000
START = 1_700_000_000_000


class Wall:
    """A wall clock and the time that passes, by hand."""

    def __init__(self) -> None:
        self.passed_ms = 50
        self.off_ms = 0
        self.careful = CarefulClock(self, hold_ms=HOLD_MS, monotonic_ms=lambda: self.passed_ms)

    def now(self) -> Instant:
        return Instant(START + self.passed_ms + self.off_ms)

    def passed(self) -> Instant:
        return Instant(START + self.passed_ms)


def test_it_is_the_wall_clock_while_that_does_not_step() -> None:
    """Slewing, by less than SKEW_MS at a look, is followed at once."""
    wall = Wall()
    for _ in range(10):
        wall.passed_ms += 1_000
        wall.off_ms += SKEW_MS - 1
        assert wall.careful.now() == wall.careful.later() == wall.now()


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
def test_a_step_is_believed_after_one_lease(step_ms: int) -> None:
    """Until then `now` is never ahead of the time that passed, and `later` never behind it."""
    wall = Wall()
    wall.off_ms = step_ms
    for _ in range(3):
        assert wall.careful.now() == min(wall.now(), wall.passed())
        assert wall.careful.later() == max(wall.now(), wall.passed())
        wall.passed_ms += HOLD_MS // 3
    assert wall.careful.now() == wall.careful.later() == wall.now()


def test_a_step_that_is_taken_back_was_none() -> None:
    """NTP sets the clock right within the lease: nothing was ever believed."""
    wall = Wall()
    wall.off_ms = HOUR_MS
    assert wall.careful.now() == wall.passed()
    wall.passed_ms += HOLD_MS // 2
    wall.off_ms = 0
    assert wall.careful.now() == wall.careful.later() == wall.now()
    wall.off_ms = HOUR_MS  # and a new one is doubted for a whole lease again
    wall.careful.now()
    wall.passed_ms += HOLD_MS - 1
    assert wall.careful.now() == wall.passed()
