"""Health: which servers may be tried, and in which order.

    health.open(now)                the indices of those that may, the best first
    health.spare()                  one by chance, where none may: somebody has to find out
    health.began(i, now) · health.ended(i, answer, …)

Each server has a lane of the core (five failures close it; it is probed with one request after 5 s,
then ever later up to 300 s; 429, and 503 with Retry-After, park it). Of the open ones two are drawn
and the better goes first: first who answers well (four in five of the last half minute), then who
has less to do. So a crowd of clients does not follow one another to the best server of a moment
(Mitzenmacher, the power of two choices).

A server that says that nothing is left of a rate limit is parked as if it had said 429.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from ..core.lane import Lane
from ..core.message import Answer, Instant, Key
from ..core.outcome import NOT_ITS_FAULT, STATUSES, Outcome, cause_of, judge, retry_after
from ..core.ratelimit import exhausted_ms
from .budget import Window

POOR_MS: Final = 30_000
POOR_BELOW: Final = 0.8
POOR_OF: Final = 5


class Standing(msgspec.Struct):
    """One server."""

    lane: Lane = msgspec.field(default_factory=Lane)
    busy: int = 0
    asked: Window = msgspec.field(default_factory=lambda: Window(POOR_MS))
    good: Window = msgspec.field(default_factory=lambda: Window(POOR_MS))

    def poor(self, now: int) -> bool:
        asked = self.asked.count(now)
        return asked >= POOR_OF and self.good.count(now) < POOR_BELOW * asked


class Health:
    def __init__(self, count: int, *, luck: Callable[[], float]) -> None:
        self.servers: Final = [Standing() for _ in range(count)]
        self._luck = luck

    def open(self, now: Instant) -> tuple[int, ...]:
        """Those that may be tried. Asking changes nothing."""
        may = [i for i, one in enumerate(self.servers) if one.lane.is_open(now)]
        if len(may) < 2:
            return tuple(may)
        for at in range(len(may) - 1, 0, -1):  # Fisher and Yates, with the luck that we were given
            other = int(self._luck() * (at + 1))
            may[at], may[other] = may[other], may[at]
        first, second, *rest = may
        if self._rank(second, now) < self._rank(first, now):
            first, second = second, first
        return (first, second, *sorted(rest, key=lambda i: self.servers[i].poor(now)))

    def _rank(self, i: int, now: Instant) -> tuple[bool, int]:
        return self.servers[i].poor(now), self.servers[i].busy

    def spare(self) -> int:
        return int(self._luck() * len(self.servers))

    def began(self, i: int, now: Instant) -> None:
        one = self.servers[i]
        one.busy += 1
        one.lane.probe(now)

    def given_up(self, i: int, now: Instant) -> None:
        """Nobody waited for its answer any longer. It says nothing; another may be the probe."""
        one = self.servers[i]
        one.busy -= 1
        if not one.lane.calm:
            one.lane.saw(NOT_ITS_FAULT, key=Key(""), now=now, chance=self._luck())

    def ended(self, i: int, answer: Answer, *, key: Key, now: Instant) -> bool:
        """An attempt is over. True: the server, or one that was not known to be well, is well."""
        one = self.servers[i]
        one.busy -= 1
        judgement = judge(answer)
        good = judgement.outcome is not Outcome.ERROR
        one.asked.add(now)
        if good:
            one.good.add(now)
        better = good and not one.lane.calm
        if better or not good:
            one.lane.saw(
                judgement,
                key=key,
                now=now,
                chance=self._luck(),
                hint_ms=retry_after(answer, now=now),
                detail=cause_of(answer)[1],
            )
        if good and (wait_ms := exhausted_ms(answer)) is not None:
            one.lane.saw(
                STATUSES[429], key=key, now=now, chance=self._luck(), hint_ms=wait_ms,
                detail="nothing is left of its rate limit",
            )  # fmt: skip
        return better
