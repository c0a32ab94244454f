"""The scheduler: whom to serve next, how many, and when to look again.

    scheduler.lane(destination)            its lane, made on first sight
    scheduler.wants(lanes_due, now)        how many messages to lease, for whom
    scheduler.wakes_at(lanes_due, now)     when something may be startable
    scheduler.place                        where the survey goes on: round and round, by name

Lease exactly what can start now: the free window of each open lane, within the room that is left
for all. No prefetch, so one dead destination can fill nothing but its own window. While several
destinations wait, one gets at most a quarter of the attempts (Postfix's weakness is the slow
destination, not the dead one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from .lane import Conduct, Lane, View
from .message import Destination, Instant, Value

ATTEMPTS_MAX: Final = 100
SHARE_MIN: Final = 5
LANES_MAX: Final = 256
"""Destinations looked at in one survey."""
POLL_MS: Final = 30_000
"""The truth is a slow look; triggers may get lost."""


class LaneDue(Value, frozen=True):
    """A destination with messages waiting, and its earliest due time (a lease's end counts)."""

    destination: Destination
    due_at: Instant


class Statistics(Value, frozen=True):
    """The scheduler as people see it."""

    busy: int
    attempts_max: int
    lanes: Mapping[Destination, View]


class Scheduler(msgspec.Struct):
    attempts_max: int = ATTEMPTS_MAX
    conduct: Conduct = Conduct()
    poll_ms: int = POLL_MS
    place: Destination | None = None
    """After which destination the next survey begins; None: at the first."""
    _lanes: dict[Destination, Lane] = msgspec.field(default_factory=dict)

    def lane(self, destination: Destination) -> Lane:
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = Lane(conduct=self.conduct)
        return lane

    @property
    def busy(self) -> int:
        return sum(lane.busy for lane in self._lanes.values())

    def moved(self, lanes: Sequence[LaneDue], *, limit: int) -> None:
        """A survey came back: the next goes on behind it, or begins again."""
        self.place = lanes[-1].destination if len(lanes) == limit else None

    def wants(self, lanes: Sequence[LaneDue], *, now: Instant) -> dict[Destination, int]:
        """How many messages of each destination to lease (I7, I8). Empty: nothing can start."""
        due = [lane.destination for lane in lanes if lane.due_at <= now]
        free = self.attempts_max - self.busy
        share = free if len(due) <= 1 else max(SHARE_MIN, self.attempts_max // 4)
        wants: dict[Destination, int] = {}
        for destination in due:
            lane = self.lane(destination)
            room = min(lane.room(now), max(0, share - lane.busy) if len(due) > 1 else share, free)
            if room > 0:
                wants[destination] = room
                free -= room
        return wants

    def wakes_at(self, lanes: Sequence[LaneDue], *, now: Instant) -> Instant:
        """The next instant at which something may start, as far as is known now.

        A lane with no room is not waited for here: an attempt that ends wakes the dispatcher.
        """
        if self.place is not None:
            return now
        wake = Instant(now + self.poll_ms)
        for due in lanes:
            lane = self.lane(due.destination)
            at = max(due.due_at, lane.opens_at(now))
            if at > now or lane.room(now):
                wake = min(wake, Instant(at))
        return wake

    def statistics(self) -> Statistics:
        return Statistics(
            busy=self.busy,
            attempts_max=self.attempts_max,
            lanes={name: lane.view() for name, lane in sorted(self._lanes.items())},
        )
