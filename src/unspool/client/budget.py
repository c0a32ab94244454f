"""Budgets: how much more than its callers ask for a client may send. Knows no clock: told `now`.

    budget.tokens(now) · budget.pay(cost, now) · budget.good(paid)      for second attempts
    throttle.asks(now) · throttle.accepted(now) · throttle.drop(now)    for first ones
    usual.took(ms) · usual.p95()                                        how long answers take
    hedges.may(now) · hedges.asks(now)                                  for asking two at once

One of each for all callers of a client, so that many threads do not add up to a storm.

Budget is AWS's: 500 tokens, of which a further attempt takes 14 (5 after a 429), a success gives
back what was paid, and one more if nothing was. From full it lasts for 35 attempts at a service
that is dead. Beside it further attempts are at most a tenth of the requests of the last ten
seconds, or three at a time (SRE book, Envoy). Throttle is the SRE book's: requests are dropped
here, before they cost anybody anything, with the chance (requests - 2 · accepted) / (requests + 1)
over half a minute, at most 0.75, so that recovery is noticed, and only above 5 a second. The book
has two minutes: then it begins after a minute of trouble, and goes on for as long when all is well
again (docs/explanation/retries.md). What is dropped goes on to the queues and the outbox: to keep
it is the useful alternative to failing."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

CAPACITY: Final = 500
PART: Final = 0.1
TOGETHER_MIN: Final = 3
PERIOD_MS: Final = 10_000
THROTTLE_MS: Final = 30_000
THROTTLE_K: Final = 2
THROTTLE_RPS: Final = 5
DROP_MAX: Final = 0.75
HEDGE_PART: Final = 0.01
USUAL_OF: Final = 200
USUAL_MIN: Final = 20
SLOTS: Final = 12


class Window(msgspec.Struct):
    """How many in the last `period_ms`, counted in a dozen slots."""

    period_ms: int
    _slots: deque[tuple[int, float]] = msgspec.field(default_factory=deque)
    _sum: float = 0.0

    def add(self, now: int, count: float = 1) -> None:
        slot = now * SLOTS // self.period_ms
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1] = (slot, self._slots[-1][1] + count)
        else:
            self._forget(slot)
            self._slots.append((slot, count))
        self._sum += count

    def count(self, now: int) -> float:
        self._forget(now * SLOTS // self.period_ms)
        return self._sum

    def _forget(self, slot: int) -> None:
        while self._slots and self._slots[0][0] <= slot - SLOTS:
            self._sum -= self._slots.popleft()[1]
        if not self._slots:
            self._sum = 0.0


def _window(period_ms: int) -> Window:
    return msgspec.field(default_factory=lambda: Window(period_ms))


class Budget(msgspec.Struct):
    """For second attempts."""

    level: int = CAPACITY
    _together: int = 0
    _requests: Window = _window(PERIOD_MS)
    _further: Window = _window(PERIOD_MS)

    def asks(self, now: int) -> None:
        """A request begins."""
        self._requests.add(now)

    def tokens(self, now: int) -> int:
        """What a further attempt may cost now; 0: none may be begun."""
        many = self._further.count(now) >= PART * self._requests.count(now)
        return 0 if many and self._together >= TOGETHER_MIN else self.level

    def pay(self, cost: int, now: int) -> None:
        """A further attempt begins; it ends with `done`."""
        self.level = max(0, self.level - cost)
        self._together += 1
        self._further.add(now)

    def done(self) -> None:
        self._together -= 1

    def good(self, paid: int) -> None:
        """A request succeeded, after it had paid so much for its last attempt."""
        self.level = min(CAPACITY, self.level + (paid or 1))


class Throttle(msgspec.Struct):
    """For first attempts."""

    _requests: Window = _window(THROTTLE_MS)
    _accepted: Window = _window(THROTTLE_MS)
    _recent: Window = _window(PERIOD_MS)

    def asks(self, now: int) -> None:
        """Counted before it is sent or dropped: what is dropped keeps the pressure known."""
        self._requests.add(now)
        self._recent.add(now)

    def accepted(self, now: int) -> None:
        self._accepted.add(now)

    def drop(self, now: int) -> float:
        """With which chance a request is not sent at all."""
        if self._recent.count(now) <= THROTTLE_RPS * PERIOD_MS / 1000:
            return 0.0
        requests = self._requests.count(now)
        over = requests - THROTTLE_K * self._accepted.count(now)
        return max(0.0, min(DROP_MAX, over / (requests + 1)))


class Usual(msgspec.Struct):
    """How long answers take, of the last few hundred."""

    _took: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=USUAL_OF))

    def took(self, ms: int) -> None:
        self._took.append(ms)

    def p95(self) -> int | None:
        """None: too few to tell."""
        if len(self._took) < USUAL_MIN:
            return None
        return sorted(self._took)[len(self._took) * 95 // 100]


class Hedges(msgspec.Struct):
    """For asking two at once: one in a hundred requests, and none where the budget is low."""

    _requests: Window = _window(PERIOD_MS)
    _asked: Window = _window(PERIOD_MS)

    def request(self, now: int) -> None:
        self._requests.add(now)

    def asks(self, now: int) -> None:
        self._asked.add(now)

    def may(self, now: int, budget: Budget) -> bool:
        allowed = HEDGE_PART * self._requests.count(now)
        return budget.level >= CAPACITY // 2 and self._asked.count(now) + 1 <= allowed
