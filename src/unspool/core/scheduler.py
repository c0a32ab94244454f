"""The scheduler: whom to serve next, how many, and when to look again.

    scheduler.lane(destination)            its lane, made on first sight
    scheduler.heed(lanes_due)              an operator's word opens a shut lane for one message
    scheduler.wants(lanes_due, now)        how many messages to lease, for whom
    scheduler.served(wants)                they were leased: next time others come first
    scheduler.wakes_at(lanes_due, now)     when something may be startable
    scheduler.place                        where the survey goes on: round and round, by name

Lease exactly what can start now: the free window of each open lane, within the room that is left
for all. No prefetch, so one dead destination can fill nothing but its own window. While several
destinations wait, one gets at most a quarter of the attempts (Postfix's weakness is the slow
destination, not the dead one). Where there is not room for all, they take turns by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from .lane import Conduct, Lane, View
from .message import AT_ONCE, NEVER, Destination, Instant, Value

ATTEMPTS_MAX: Final = 100
SHARE_MIN: Final = 5
FEW: Final = 16
"""Free places are few until there are so many to each that is taken. A commit costs as much as ten
messages in it, so nearly the whole window at once is best; that holds with two cores, too, where
half a window at a time would keep both at work."""
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
    _turn: Destination = Destination("")
    """Who was served last."""
    _wake_at: Instant = NEVER
    """The earliest that the pages of this survey have shown so far."""
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

    def heed(self, lanes: Sequence[LaneDue]) -> None:
        """Somebody wants a message tried at once: it is the next probe of a lane that is shut. One
        after the other, so that many such words are no flood."""
        for due in lanes:
            if due.due_at == AT_ONCE and not self.lane(due.destination).busy:
                self.lane(due.destination).wake()

    def wants(self, lanes: Sequence[LaneDue], *, now: Instant) -> dict[Destination, int]:
        """How many messages of each destination to lease (I7, I8). Empty: nothing can start."""
        due = [lane.destination for lane in lanes if lane.due_at <= now]
        free = self.attempts_max - self.busy
        share = free if len(due) <= 1 else max(SHARE_MIN, self.attempts_max // 4)
        wants: dict[Destination, int] = {}
        for destination in sorted(due, key=lambda name: (name <= self._turn, name)):
            if free <= 0:
                break
            lane = self.lane(destination)
            room = min(lane.room(now), max(0, share - lane.busy) if len(due) > 1 else share, free)
            if room > 0:
                wants[destination] = room
                free -= room
        return wants

    def few(self) -> bool:
        """Are the free places few beside those that are taken? Then it is worth a moment to see
        whether more of them come free (see FEW)."""
        busy = windows = 0
        for lane in self._lanes.values():
            if lane.busy:
                busy += lane.busy
                windows += max(lane.busy, lane.window)
        return FEW * busy > min(windows, self.attempts_max) - busy

    def served(self, wants: Mapping[Destination, int]) -> None:
        """These were leased, in this order: the next turn is behind the last of them."""
        self._turn = next(reversed(list(wants)), self._turn)

    def wakes_at(self, lanes: Sequence[LaneDue], *, now: Instant) -> Instant:
        """The next instant at which something may start, as far as is known now.

        What is due and has no room is not waited for: an attempt that ends wakes the dispatcher.
        Within a survey of several pages that is now, for the next page, and then the earliest of
        them all.
        """
        wake = now if self.wants(lanes, now=now) else Instant(now + self.poll_ms)
        for due in lanes:
            at = max(due.due_at, self.lane(due.destination).opens_at(now))
            if at > now:
                wake = min(wake, Instant(at))
        wake = min(wake, self._wake_at)
        if self.place is not None:
            self._wake_at = wake
            return now
        self._wake_at = NEVER
        return max(now, wake)

    def statistics(self) -> Statistics:
        return Statistics(
            busy=self.busy,
            attempts_max=self.attempts_max,
            lanes={name: lane.view() for name, lane in sorted(self._lanes.items())},
        )
