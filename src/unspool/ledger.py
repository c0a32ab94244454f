"""The ledger: which keys are known, who runs under one just now, and what came of it.

    claim = await ledger.claim(ask, wait_ms=…)     a Claim: it is ours to run; or Taken: it is not
    await claim.done(answer)                       remember this answer; False: it was not stored
    await claim.release()                          nothing came of it: the key is free again
    await claim.unknown()                          it may have had an effect, and nobody knows
    await ledger.aclose()

For code that runs in the application itself: the middleware and `once`. The relay's own road is in
`relay` and `saving`; both stand on the same spool, the same `recall` and the same `Tries`.

Promises. One runs under a key at a time, however many processes share the spool (I4, I5). A claim
lasts `lease_ms` and is renewed while its owner lives (`upkeep`), so that a crash frees the key in
seconds and a slow handler keeps it for hours. Every ending is fenced: an owner who slept through
the end of its lease changes nothing (I3). An end that the spool would not take is written as soon
as it does (`endings`).

Alone on its spool, and with `abandoned="run"`, no claims are written: who runs is known to `Tries`,
and a key costs one commit. What is to end as unknown after a crash must be written down before.

A wall clock that steps is not believed for one lease (`CarefulClock`), so that a step forward does
not look like the death of everybody else.

Does not know HTTP: how a request becomes an `Ask`, and a `Taken` an answer, is for its callers.

Bugs: a process that dies after the effect and before its verdict is written leaves a claim that
lapses; what happens then is `Tenure.abandoned`. Only co-commit (`middleware.commit`) knows better.
A process that starts within a lease after the wall clock was set forward cannot know of the step,
and may take over what its owner has not yet renewed. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from .claims import Ask, Claim, End
from .clock import CarefulClock, Clock
from .core.idempotency import REUSED, TOO_OLD, UNKNOWN, WAIT, Do, Recall, recall
from .core.lifecycle import Forgotten, Reason, State, bounced
from .core.message import Instant, Message, Value
from .core.tenure import LEASE_MIN_MS, Abandoned, Tenure
from .custody import Custody
from .endings import LAST_TRY_S, Endings
from .errors import UnspoolError
from .spools.protocol import Entry, Lease, New
from .tries import LoopClock, Tries, Turn
from .upkeep import SWEEP_MAX, Upkeep

__all__ = ["Ask", "Claim", "Ledger", "Taken"]

log = logging.getLogger("unspool.ledger")

POLL_MS: Final = 100
"""How often one who waits looks whether another process has finished."""


class Taken(Value, frozen=True):
    """It is not ours to run, and why."""

    recall: Recall
    entry: Entry | None = None


class _Free(Value, frozen=True):
    """Nobody runs under it. The attempt that begins now."""

    attempt: int = 1
    lease: Lease | None = None


class Ledger:
    def __init__(
        self,
        *,
        custody: Custody,
        clock: Clock,
        tenure: Tenure,
        chance: Callable[[int], bytes],
        monotonic_ms: Callable[[], int] = lambda: monotonic_ns() // 1_000_000,
    ) -> None:
        assert tenure.lease_ms >= LEASE_MIN_MS, "I4: a lease too short to be renewed in"
        self.tenure: Final = tenure
        private = tenure.alone or not custody.spool.promises.shared
        self.alone = private and tenure.abandoned is Abandoned.RUN
        """No claims are written. Whoever finds that we are not alone after all says so here."""
        self.custody: Final = custody
        self._clock = clock
        self._careful = CarefulClock(clock, hold_ms=tenure.lease_ms, monotonic_ms=monotonic_ms)
        self._ticks = LoopClock()
        self._chance = chance
        self._tries = Tries(clock=self._ticks)
        self._upkeep = Upkeep(spool=custody.spool, clock=self._careful, lease_ms=tenure.lease_ms)
        self._endings = Endings(
            custody=custody, clock=clock, tenure=tenure, sealed=self._message, over=self._over
        )
        self._giving_back: set[asyncio.Task[None]] = set()

    def now(self) -> Instant:
        return self._clock.now()

    async def claim(self, ask: Ask, *, wait_ms: int = 0) -> Claim | Taken:
        """The right to run, or why not. Waits up to `wait_ms` for another who runs under the key.

        Raises `Refused` where the spool does not answer, and `Corrupt` for a spoilt record: fail
        closed, for it may have run.
        """
        until = self._ticks.now() + wait_ms
        turn = await self._tries.begin(ask.key, ask.fingerprint, until=until)
        if isinstance(turn, str):
            return Taken(REUSED if turn == "key-reused" else WAIT)
        try:
            found = await self._look(ask, turn, until=until)
        except BaseException:
            turn.ends()
            raise
        self._upkeep.tend()
        if isinstance(found, Taken):
            turn.ends()
            return found
        turn.tries()
        began_at = self._clock.now()
        claim = Claim(self, ask, turn, lease=found.lease, attempt=found.attempt, began_at=began_at)
        if found.lease is not None:
            self._upkeep.add(claim)
        return claim

    async def _look(self, ask: Ask, turn: Turn, *, until: int) -> _Free | Taken:
        swept = False
        while True:
            now = self._careful.now()
            entry: Entry | None
            if self.alone:
                entry = await self.custody.find(ask.key)
                if entry is None:
                    return _Free()
            else:
                found = await self._write_claim(ask, now)
                if isinstance(found, Lease):
                    return await self._unless_abandoned(found)
                entry = found
            what = recall(entry, fingerprint=ask.fingerprint, now=now)
            if what.do is Do.RUN:
                if self.alone and entry.state is State.CLAIMED:
                    # From a time when we were not alone, and it has lapsed.
                    return _Free(attempt=entry.attempt + 1)
                # Kept long enough, and still in the way of a new claim (J6).
                if swept:
                    return Taken(TOO_OLD, entry)
                await self.custody.spool.sweep(now=now, limit=SWEEP_MAX)
                swept = True
            elif what.do is Do.WAIT and (left_ms := until - self._ticks.now()) > 0:
                turn.tries()  # by somebody else: whoever does not wait is told at once (C8, E3)
                await asyncio.sleep(min(POLL_MS, left_ms) / 1000)
            else:
                return Taken(what, entry)

    async def _write_claim(self, ask: Ask, now: Instant) -> Lease | Entry:
        """Write down that we run. A caller who is cancelled leaves nothing claimed (E8)."""
        until = Instant(self._careful.later() + self.tenure.lease_ms)
        entry = Entry(
            message=self._message(ask, now),
            state=State.CLAIMED,
            due_at=now,
            attempt=1,
            leased_until=until,
            # That it was begun is a fact like its end, and the attempts must go on being counted.
            keep_until=Instant(until + self.tenure.keeping.key_ms),
        )
        try:
            acceptance = await self.custody.accept(entry, now=now)
        except asyncio.CancelledError:
            task = asyncio.get_running_loop().create_task(self._give_back(entry))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)
            raise
        if isinstance(acceptance, New):
            return Lease(entry=acceptance.entry, until=until)
        return acceptance.entry

    async def _give_back(self, entry: Entry) -> None:
        """It may have been written (13). Once more tells, and does no harm: the nonce is ours."""
        now = self._clock.now()
        try:
            found = (await self.custody.accept(entry, now=now)).entry
            if found.message.nonce == entry.message.nonce and found.state is State.CLAIMED:
                await self.custody.settle(Lease(found, found.leased_until), Forgotten(), now=now)
        except UnspoolError as error:
            log.warning("a claim could not be given back; it lapses by itself: %s", error)

    async def _unless_abandoned(self, lease: Lease) -> _Free | Taken:
        """A claim that was taken over: may its work be done again?"""
        attempt = lease.entry.attempt
        if attempt == 1 or self.tenure.abandoned is Abandoned.RUN:
            return _Free(attempt=attempt, lease=lease)
        now = self._clock.now()
        verdict = bounced(Reason.UNKNOWN, now=now, keeping=self.tenure.keeping, trail=())
        await self.custody.settle(lease, verdict, now=now)
        return Taken(UNKNOWN, lease.entry)

    def _message(self, ask: Ask, now: Instant) -> Message:
        return Message(
            key=ask.key,
            fingerprint=ask.fingerprint,
            destination=ask.destination,
            accepted_at=now,
            expires_at=Instant(now + self.tenure.keeping.key_ms),
            nonce=self._chance(16),
            name=ask.name,
        )

    async def end(self, claim: Claim, verdict: End, /) -> bool:
        """Write a claim's end down. False: it was not stored, now or for good."""
        return await self._endings.end(claim, verdict)

    def _over(self, claim: Claim) -> None:
        self._upkeep.drop(claim)
        claim.turn.ends()

    async def aclose(self) -> None:
        """Write what can be written. Claims that are left lapse by themselves."""
        await self._endings.aclose()
        await self._upkeep.aclose()
        if self._giving_back:
            await asyncio.wait(self._giving_back, timeout=LAST_TRY_S)
        await self.custody.drain()  # gives up a spool that hangs, and whoever waits for it
        await asyncio.gather(*self._giving_back, return_exceptions=True)
