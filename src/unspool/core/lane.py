"""A lane: what we know of one destination's weather, and how many attempts it may have.

    lane.room(now)                     how many more deliveries may start
    lane.is_open(now)                  may a request that came just now be tried?
    lane.probe(now)                    the same, and it is the probe if the lane is due for one
    lane.began() … lane.ended(…)       a delivery from the spool
    lane.saw(…)                        how a request that came just now went

Postfix's rules (qmgr_queue.c), with HTTP's words. The window opens by 1/window for each success and
closes by 1/window for each blamed failure. Failures also fill a cohort by 1/window each: when it is
full, after at least FAILURES_MIN failures of at least MESSAGES_MIN different messages, the lane
closes. A closed lane is probed with one message after 5 s, doubling to 300 s. A probe that succeeds
reopens it with a window of 1 that doubles with each clean cohort up to its start: slow start, never
a flush.

429, and 503 with Retry-After, park the lane until then; that is not being dead. One caller's quota
is not the destination's weather, so a park is short (PARK_MAX_MS), whatever was asked for, and is
probed as a closed lane is: the first success ends it. The message that was told to wait does wait
for as long as it was told (schedule.py).

A pause remembers when it began. A clock that is set back to before that cannot keep a lane shut:
the pause counts as over, and costs one probe too many at worst.

The window is for deliveries from the spool. A request that came just now has a sender who waits
for it, and is limited by the transport's connections; it shares the lane's health, not its window.

Knows nothing of messages' contents, HTTP or time of day. Everything here is a hint: it is kept in
memory and may be lost (Exim's word for it).
Bugs: a destination behind many addresses has one weather.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from .message import Instant, Key, Value
from .outcome import Judgement, Weather

WINDOW_START: Final = 5
WINDOW_MAX: Final = 20
FAILURES_MIN: Final = 3
MESSAGES_MIN: Final = 2
PROBE_FIRST_MS: Final = 5_000
PROBE_MAX_MS: Final = 300_000
PARK_MAX_MS: Final = 60_000
PROBE_TERM_MS: Final = 60_000
"""A probe that has not come back by then is given up, and another may go."""


class Phase(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"
    REOPENING = "reopening"


class Conduct(Value, frozen=True):
    """How a lane behaves: the route's settings."""

    window_start: int = WINDOW_START
    window_max: int = WINDOW_MAX
    cohort_max: float = 1.0
    """Windows' worth of failures before the lane closes. Fragile destinations want more."""


class Pause(Value, frozen=True):
    """From when until when nothing goes. Both, for the clock may be set back (see above)."""

    since: Instant = Instant(0)
    until: Instant = Instant(0)

    def over(self, now: Instant) -> bool:
        return not self.since <= now < self.until

    def ends(self, now: Instant) -> Instant:
        """When it is over, as seen from `now`."""
        return now if self.over(now) else self.until


NO_PAUSE: Final = Pause()


class View(Value, frozen=True):
    """A lane as people see it."""

    phase: str
    window: int
    busy: int
    closed_until: Instant
    parked_until: Instant
    last_trouble: str


class Lane(msgspec.Struct):
    conduct: Conduct = Conduct()
    phase: Phase = Phase.OPEN
    window: int = 0
    busy: int = 0
    last_trouble: str = ""
    _gain: float = 0.0
    _loss: float = 0.0
    _cohort: float = 0.0
    _failures: int = 0
    _failing: set[Key] = msgspec.field(default_factory=set)
    _suspects: dict[int, list[Key]] = msgspec.field(default_factory=dict)
    _parked: Pause | None = None
    _quiet: Pause = NO_PAUSE
    """While closed or parked: not even a probe before this is over."""
    _probing: Pause = NO_PAUSE
    """A probe is out."""
    _probe_ms: int = PROBE_FIRST_MS
    _same: Pause = NO_PAUSE
    """Until it is over, more trouble is the same trouble: the pauses do not grow."""
    _clean: int = 0

    def __post_init__(self) -> None:
        self.window = self.window or self._start

    @property
    def _start(self) -> int:
        """The window to begin with, and to climb back to."""
        return max(1, min(self.conduct.window_start, self.conduct.window_max))

    @property
    def closed_until(self) -> Instant:
        return self._quiet.until if self.phase is Phase.CLOSED else Instant(0)

    @property
    def parked_until(self) -> Instant:
        return Instant(0) if self._parked is None else self._parked.until

    # --- may something start? -------------------------------------------------------------

    def room(self, now: Instant) -> int:
        """How many more deliveries from the spool may start at `now` (I7, I8)."""
        if self._shut(now):
            return 1 if self._probe_due(now) else 0
        return max(0, self.window - self.busy)

    @property
    def calm(self) -> bool:
        """Nothing to remember of one more success: all is as well as it can be."""
        return (
            self.phase is Phase.OPEN
            and not self._failures
            and not self._suspects
            and self._parked is None
        )

    def is_open(self, now: Instant) -> bool:
        """May a request that came just now be tried? Costs nothing while all is well."""
        if self.phase is Phase.OPEN and self._parked is None:
            return True
        return not self._shut(now) or self._probe_due(now)

    def probe(self, now: Instant) -> bool:
        """As `is_open`; and where the lane is shut, whoever gets True is its one probe."""
        if not self.is_open(now):
            return False
        self._probes(now)
        return True

    def opens_at(self, now: Instant) -> Instant:
        """When room may be found again: for waking, and for Retry-After. `now` if there is some."""
        if not self._shut(now):
            return now
        at = max(self._quiet.ends(now), self._probing.ends(now))
        return at if self._parked is None else min(at, self._parked.ends(now))

    def _shut(self, now: Instant) -> bool:
        """Closed or parked: nothing goes but a probe."""
        return self.phase is Phase.CLOSED or (
            self._parked is not None and not self._parked.over(now)
        )

    def _probe_due(self, now: Instant) -> bool:
        return self._quiet.over(now) and self._probing.over(now)

    def _probes(self, now: Instant) -> None:
        """What starts now is the probe, where there has to be one."""
        if self._shut(now):
            self._probing = Pause(now, Instant(now + PROBE_TERM_MS))

    # --- what happened --------------------------------------------------------------------

    def began(self, now: Instant) -> None:
        """A delivery from the spool starts."""
        assert self.room(now) > 0, "I7: an attempt beyond the window"
        self.busy += 1
        self._probes(now)

    def ended(
        self, judgement: Judgement, *, key: Key, now: Instant, chance: float,
        hint_ms: int | None = None, detail: str = "",
    ) -> None:  # fmt: skip
        """A delivery from the spool is over."""
        self.busy -= 1
        assert self.busy >= 0, "I7: more endings than beginnings"
        self.saw(judgement, key=key, now=now, chance=chance, hint_ms=hint_ms, detail=detail)

    def saw(
        self, judgement: Judgement, *, key: Key, now: Instant, chance: float,
        hint_ms: int | None = None, detail: str = "",
    ) -> None:  # fmt: skip
        """An attempt was judged. `chance` in [0, 1) spreads the probe; `hint_ms` is Retry-After."""
        weather = judgement.weather
        if weather is Weather.GOOD:
            self._good(now)
            return
        if weather is Weather.UNKNOWN:
            self._probing = NO_PAUSE  # it was not asked: another may be the probe
            return
        self.last_trouble = detail or judgement.why
        if weather is Weather.SUSPECT:
            weather = self._weigh(judgement.suspects, key)
        if weather is Weather.BAD:
            self._bad(key, now=now, chance=chance)
        elif weather is Weather.PARKED:
            self._park(hint_ms, now=now, chance=chance)
        elif self.phase is Phase.CLOSED:
            if weather is Weather.ALIVE:
                self._reopen()  # it answered something: it is there, which is what a probe asks
            else:
                self._close(now, chance=chance)
        elif weather is Weather.ALIVE:
            self._unpark(now)  # the same: it answered something else than "later"
        parked = self._parked is not None and not self._probing.over(now)
        if parked and weather in (Weather.BAD, Weather.SUSPECT):
            self._rest(now, chance=chance)  # that was the probe

    def _weigh(self, limit: int, key: Key) -> Weather:
        """Trouble with this message, or with the destination? The latter after several."""
        row = self._suspects.setdefault(limit, [])
        if key not in row:
            row.append(key)
        if len(row) < limit:
            return Weather.ALIVE if limit > 2 else Weather.SUSPECT
        del row[:-limit]
        return Weather.BAD

    def _good(self, now: Instant) -> None:
        if (
            self.phase is Phase.OPEN
            and self._failures == 0
            and self.window >= (self.conduct.window_max)
        ):
            if self._parked is not None:
                self._unpark(now)
            if self._suspects:
                self._suspects.clear()
            return
        self._failures = 0
        self._cohort = 0.0
        self._failing.clear()
        self._suspects.clear()
        self._unpark(now)
        if self.phase is Phase.CLOSED:
            self._reopen()
        elif self.phase is Phase.REOPENING:
            self._climb()
        elif self.window < self.busy + self.conduct.window_start:
            # Beyond what is in use, growing would let trouble be noticed too late.
            self._gain += 1 / self.window
            if self._gain >= 1 and self.window < self.conduct.window_max:
                self.window += 1
                self._gain = 0.0
                self._loss = 0.0

    def _climb(self) -> None:
        """Slow start: double after each clean cohort."""
        self._clean += 1
        if self._clean >= self.window:
            self._clean = 0
            self.window = min(self.window * 2, self._start)
        if self._clean == 0 and self.window >= self._start:
            self.phase = Phase.OPEN
            self._probe_ms = PROBE_FIRST_MS

    def _bad(self, key: Key, *, now: Instant, chance: float) -> None:
        self._failures += 1
        if len(self._failing) < MESSAGES_MIN:
            self._failing.add(key)
        if self.phase is Phase.CLOSED or self.phase is Phase.REOPENING:
            self._close(now, chance=chance)
            return
        self._cohort += 1 / self.window
        # Trouble counts at the beginning of a cycle, success at its end (reverse hysteresis).
        self._loss += 1 / self.window
        self._gain = 0.0
        if self._loss > 0.5 and self.window > 1:
            self.window -= 1
            self._loss -= 1.0
        if (
            self._cohort >= self.conduct.cohort_max - 1e-9
            and self._failures >= FAILURES_MIN
            and len(self._failing) >= MESSAGES_MIN
        ):
            self._close(now, chance=chance)

    def _park(self, hint_ms: int | None, *, now: Instant, chance: float) -> None:
        wait_ms = min(PROBE_FIRST_MS if hint_ms is None else hint_ms, PARK_MAX_MS)
        before = self._parked
        again = before is not None and not before.over(now)
        until = max(now + wait_ms, before.until) if before and again else now + wait_ms
        self._parked = Pause(now, Instant(until))
        if not again or not self._probing.over(now):  # else it began before we knew
            self._rest(now, chance=chance)
            granted = min(until, now + PROBE_FIRST_MS)  # a short wish is not probed at all
            self._quiet = Pause(now, Instant(max(self._quiet.until, granted)))
        self.window = max(1, self.window - 1)
        if self.phase is Phase.CLOSED:
            self._reopen()

    def _unpark(self, now: Instant) -> None:
        """Something succeeded. What began before the park says nothing of it; its probe does."""
        if self._parked is None or not (self._parked.over(now) or not self._probing.over(now)):
            return
        self._parked = None
        self._probing = NO_PAUSE
        if self.phase is Phase.OPEN:
            self._probe_ms = PROBE_FIRST_MS

    def _close(self, now: Instant, *, chance: float) -> None:
        """Nothing for it until a probe says so."""
        if self.phase is Phase.CLOSED and not self._quiet.over(now):
            return  # stragglers that began before it closed
        self.phase = Phase.CLOSED
        self._parked = None
        self._rest(now, chance=chance)
        self._clean = 0

    def _rest(self, now: Instant, *, chance: float) -> None:
        """The next probe, later than the last. Equal jitter: half fixed, half by chance."""
        wait_ms = self._probe_ms // 2 + round(self._probe_ms / 2 * chance)
        self._quiet = Pause(now, Instant(now + wait_ms))
        if self._same.over(now):
            # Pauses grow with the time that it has been down, not with the number of ways in which
            # it was seen to be: a service that flaps for ten seconds is not left alone for minutes.
            self._same = self._quiet
            self._probe_ms = min(self._probe_ms * 2, PROBE_MAX_MS)
        self._probing = NO_PAUSE

    def _reopen(self) -> None:
        self.phase = Phase.REOPENING
        self.window = 1
        self._clean = 0
        self._cohort = 0.0
        self._gain = self._loss = 0.0
        self._failures = 0
        self._failing.clear()
        self._probing = NO_PAUSE

    def wake(self) -> None:
        """Evidence that it is back, or an operator's word: the next probe may go now."""
        self._quiet = NO_PAUSE
        self._probing = NO_PAUSE

    def view(self) -> View:
        return View(
            phase=self.phase.value,
            window=self.window,
            busy=self.busy,
            closed_until=self.closed_until,
            parked_until=self.parked_until,
            last_trouble=self.last_trouble,
        )
