"""The dispatcher: saved messages, later. The loop between the spool and the transport.

    dispatcher = Dispatcher(…)
    await dispatcher.run()        until stop(); survey, lease, attempt, settle, and round again
    dispatcher.wake()             something may be startable: look now
    await dispatcher.stop(ms)     lease no more; let what is under way end, for so long

Whom and how many is the scheduler's to say, what becomes of a message the lifecycle's; the attempts
and their verdicts are in `deliveries`; here is only the rhythm. A lease that is never settled,
because this process died, comes due by itself: there is no recovery to run. Leases are longer than
an attempt can take, so nobody renews them (I4).
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Awaitable, Callable, Collection, Sequence
from random import random
from typing import Final, Protocol

from .clock import Clock
from .core.lifecycle import (
    LATE_MS,
    Bounced,
    Deferred,
    Policy,
    Reason,
    Verdict,
    bounced,
    overdue,
)
from .core.message import NEVER, Destination, Instant, Key
from .core.scheduler import LANES_MAX, LaneDue, Scheduler
from .custody import Custody
from .deliveries import SPOOL_TROUBLE_MS, Deliveries
from .errors import UnspoolError
from .spools.protocol import SKEW_MS, Lease
from .transports.protocol import Transport

log = logging.getLogger("unspool.dispatcher")

TRIED_MS: Final = 1_000
"""What is being tried at the door is looked at again after so long."""
SWEEP_MS: Final = 10_000
SWEEP_PAUSE_MS: Final = 50
ARRIVAL_PAUSE_MS: Final = 20
RACE_MS: Final = 50
"""How long to leave a message alone that the survey saw and the lease did not get."""
SURVEY_MS: Final = 50
"""So long a survey is believed that has led to nothing but full leases. Others wait no longer."""
PLACES_MS: Final = 1
PLACES_TIMES: Final = 4
"""How often a lease for few waits for more of them, and how long each time."""
HOLD_S: Final = (PLACES_TIMES + 1) * PLACES_MS / 1000
"""So long at most after the latest answer verdicts wait for the next lease, to be written in its
commit."""
SWEEP_MAX: Final = 1_000


class Posts(Protocol):
    """Who wants to know which messages may have a new verdict: the board, or an outbox."""

    def post(self, key: Key) -> None: ...


class Dispatcher:
    def __init__(
        self,
        *,
        custody: Custody,
        transport: Transport,
        scheduler: Scheduler,
        board: Posts,
        policy: Policy,
        clock: Clock,
        lease_ms: int,
        serves: Collection[Destination],
        chance: Callable[[], float] = random,
        among_others: bool = False,
        tried: Callable[[Key], bool] = lambda key: False,
    ) -> None:
        """`among_others`: the spool has messages of others too, and that is as it should be.
        `tried`: is this key being tried at the door of this process just now?"""
        assert lease_ms >= 10 * SKEW_MS, "I4: a lease no longer than the clocks differ"
        self.scheduler: Final = scheduler
        self._custody = custody
        self._board = board
        self._policy = policy
        self._clock = clock
        self._lease_ms = lease_ms
        self._serves = tuple(serves)
        self._among_others = among_others
        self._strange: set[Destination] = set()
        self._tried = tried
        self._more: tuple[Sequence[LaneDue], Instant] = ((), Instant(0))
        self._believed_until = NEVER
        """When what the latest round went by was seen too long ago."""
        self._awake = asyncio.Event()
        self._calm = asyncio.Event()
        self._calm.set()
        self._stirred: set[Destination] = set()
        """Where places have come free since the latest round began."""
        self._stopping = False
        self._deliveries: Final = Deliveries(
            custody=custody,
            transport=transport,
            scheduler=scheduler,
            policy=policy,
            clock=clock,
            lease_ms=lease_ms,
            chance=chance,
            freed=self._freed,
            settled=self._settled,
        )

    @property
    def delivered(self) -> int:
        return self._deliveries.delivered

    @property
    def deferred(self) -> int:
        return self._deliveries.deferred

    @property
    def bounced(self) -> int:
        return self._deliveries.bounced

    @property
    def busy(self) -> bool:
        """Is an attempt under way, or a verdict that is not yet told?"""
        return self._deliveries.busy

    @property
    def unwritten(self) -> int:
        return self._deliveries.unwritten

    def wake(self) -> None:
        self._awake.set()

    def _settled(self, lease: Lease) -> None:
        # Also where it was not kept: it may have been, by a write of which nobody could tell.
        self._board.post(lease.entry.message.key)
        self._awake.set()

    def _freed(self, destination: Destination) -> None:
        self._awake.set()
        self._stirred.add(destination)
        if self._more[0]:
            self._custody.hold_settles(HOLD_S)
        if not self._calm.is_set() and not self.scheduler.few(self._stirred):
            self._calm.set()

    async def run(self) -> None:
        """Deliver until `stop`. Trouble with the spool is waited out, never fatal."""
        helpers = [
            asyncio.create_task(self._listen(), name="unspool arrivals"),
            asyncio.create_task(self._sweep(), name="unspool sweep"),
        ]
        try:
            while not self._stopping:
                self._awake.clear()
                self._stirred.clear()
                try:
                    wake_at = await self._round()
                except UnspoolError as error:
                    log.warning("the spool did not answer the dispatcher: %s", error)
                    wake_at = Instant(self._clock.now() + SPOOL_TROUBLE_MS)
                except Exception:
                    log.exception("the dispatcher made a mistake; it goes on")
                    wake_at = Instant(self._clock.now() + SPOOL_TROUBLE_MS)
                await self._sleep(wake_at)
                await self._gather_places()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _round(self) -> Instant:
        """One look: lease what can start now, start it, and say when to look again."""
        scheduler, spool = self.scheduler, self._custody.spool
        lanes, seen_at = await self._survey()
        now = self._clock.now()
        wants = scheduler.wants(lanes, now=now)
        if wants and not self._stopping:
            until = Instant(now + self._lease_ms)
            self._custody.settle_now()
            leases = await spool.lease(wants, now=now, until=until)
            scheduler.served(wants)
            if scheduler.place is None and len(leases) == sum(wants.values()):
                self._more = lanes, seen_at  # as many as were wanted: there are probably more
            now = self._clock.now()
            for lease in leases:
                self._start(lease, now)
            if not leases:
                # Somebody else was quicker. Looking again at once would be a race without an end.
                return Instant(max(now + RACE_MS, scheduler.wakes_at(lanes, now=now)))
        # Somebody's word may have led to this round, and what was seen before did not show him.
        return min(scheduler.wakes_at(lanes, now=now), self._believed_until)

    async def _survey(self) -> tuple[Sequence[LaneDue], Instant]:
        """Who has something due, and when that was seen: just now, while leases come back as full
        as they were asked for. What has changed since costs a lease that finds nothing."""
        (lanes, seen_at), self._more = self._more, ((), Instant(0))
        now = self._clock.now()
        if lanes and 0 <= now - seen_at < SURVEY_MS:
            self._believed_until = Instant(seen_at + SURVEY_MS)
            return lanes, seen_at
        self._believed_until = NEVER
        scheduler = self.scheduler
        lanes = await self._custody.spool.survey(after=scheduler.place, limit=LANES_MAX)
        scheduler.moved(lanes, limit=LANES_MAX)
        lanes = [lane for lane in lanes if self._is_ours(lane.destination)]
        scheduler.heed(lanes)
        return lanes, now

    def _is_ours(self, destination: Destination) -> bool:
        """Other destinations' messages may share this spool: our transport does not lead there."""
        if destination in self._serves:
            return True
        if destination not in self._strange and not self._among_others:
            self._strange.add(destination)
            names = " ".join(
                f"--destination {shlex.quote(name)}" for name in (*self._serves, destination)
            )
            log.warning(
                "messages wait for %s, to which nothing here delivers; they are kept. If the"
                " service has moved here, say so: unspool serve %s, and what you say now",
                destination, names,
            )  # fmt: skip
        return False

    async def _sleep(self, wake_at: Instant) -> None:
        left_ms = wake_at - self._clock.now()
        if left_ms <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(left_ms / 1000):
                await self._awake.wait()
        except TimeoutError:
            pass

    async def _gather_places(self) -> None:
        """Places in a window come free together, and one lease for many costs little more than a
        lease for one: wait a moment for the others, while they come."""
        loop = asyncio.get_running_loop()
        ended = -1
        for _ in range(PLACES_TIMES):
            if (
                self._stopping
                or ended == self._deliveries.ended
                or not self.scheduler.few(self._stirred)
            ):
                return
            ended = self._deliveries.ended
            alarm = loop.call_later(PLACES_MS / 1000, self._calm.set)
            self._calm.clear()
            await self._calm.wait()
            alarm.cancel()

    def _start(self, lease: Lease, now: Instant) -> None:
        """Begin an attempt; or end the lease without one, where that is what is right by now."""
        entry = lease.entry
        lane = self.scheduler.lane(entry.message.destination)
        verdict: Verdict | None = overdue(
            entry.message,
            attempt=entry.attempt,
            abandoned=lease.abandoned,
            trail=entry.trail,
            now=now,
            policy=self._policy,
        )
        late = lease.until - SKEW_MS <= now
        if verdict is None and (self._stopping or late or not lane.room(now)):
            # The weather turned while the spool was asked (I7, I8), or it took too long (I4).
            verdict = Deferred(due_at=entry.due_at, trail=entry.trail)
        if verdict is None and self._tried(entry.message.key):
            # A collector in another process brought what is under way here, without a claim (I4).
            verdict = Deferred(due_at=Instant(now + TRIED_MS), trail=entry.trail)
        if verdict is None:
            lane.began(now)
            self._deliveries.start(lease, now)
        else:
            self._deliveries.end(lease, verdict)

    # --- beside the loop ------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                await self._custody.spool.wait_arrival()
            except UnspoolError as error:
                log.warning("the spool does not tell of arrivals: %s", error)
                await asyncio.sleep(SPOOL_TROUBLE_MS / 1000)
            except Exception:
                log.exception("waiting for arrivals was a mistake; it goes on")
                await asyncio.sleep(SPOOL_TROUBLE_MS / 1000)
            self.wake()
            # Under load something arrives all the time; to look for it all the time would cost
            # the spool's thread more than it finds.
            await asyncio.sleep(ARRIVAL_PAUSE_MS / 1000)

    async def _sweep(self) -> None:
        """The broom: forget what was kept long enough, bounce what is too old."""
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            # In turns, and each for itself: room is made also where there is none for a bounce.
            while any([await self._swept(self._forget), await self._swept(self._expire)]):
                await asyncio.sleep(SWEEP_PAUSE_MS / 1000)

    async def _swept(self, broom: Callable[[], Awaitable[int]]) -> bool:
        """Is there more?"""
        try:
            return await broom() >= SWEEP_MAX
        except UnspoolError as error:
            log.warning("the sweep was interrupted: %s", error)
        except Exception:
            log.exception("the sweep made a mistake; it goes on")
        return False

    async def _forget(self) -> int:
        return await self._custody.spool.sweep(now=self._clock.now(), limit=SWEEP_MAX)

    async def _expire(self) -> int:
        """Bounce what nobody will attempt any more, as where a lane is closed for days (I2).

        A little late on purpose: in an open lane a message comes due at its expiry and has one
        last attempt, as in Postfix.
        """
        now = self._clock.now()
        leases = await self._custody.spool.expire(
            now=Instant(now - LATE_MS), until=Instant(now + self._lease_ms), limit=SWEEP_MAX
        )
        await self._deliveries.end_all((lease, self._too_old(lease, now)) for lease in leases)
        return len(leases)

    def _too_old(self, lease: Lease, now: Instant) -> Bounced:
        # An attempt that was cut short may have been applied: that is worse than being late.
        unknown = lease.abandoned and not lease.entry.message.repeat
        reason = Reason.UNKNOWN if unknown else Reason.EXPIRED
        return bounced(reason, now=now, keeping=self._policy.keeping, trail=lease.entry.trail)

    async def stop(self, *, drain_ms: int) -> None:
        """Lease no more; let attempts end for `drain_ms`; what is left comes due by itself."""
        self._stopping = True
        self.wake()
        await self._deliveries.stop(drain_ms=drain_ms)
