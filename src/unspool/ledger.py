"""The ledger: which keys are known, who runs under one just now, and what came of it.

    claim = await ledger.claim(ask, wait_ms=…)     a Claim: it is ours to run; or Taken: it is not
    await claim.done(answer)                       remember this answer; False: it was not stored
    await claim.release()                          nothing came of it: the key is free again
    await claim.unknown()                          it may have had an effect, and nobody knows
    await ledger.aclose()

For code that runs in the application itself: the middleware and `once`. The relay's own road is in
`relay` and `saving`; both stand on the same spool, the same `recall` and the same `Tries`.

Promises. One runs under a key at a time, however many processes share the spool (I4, I5). A claim
lasts `lease_ms` and is renewed while its owner lives, so that a crash frees the key in seconds and
a slow handler keeps it for hours. Every ending is fenced: an owner who slept through the end of its
lease changes nothing (I3). An answer that the spool would not take is written as soon as it does,
and until then the key stays ours: nobody runs it again because we could not write (F10).

A wall clock that steps is not believed for one lease (`CarefulClock`), so that a step forward does
not look like the death of everybody else.

Does not know HTTP: how a request becomes an `Ask`, and a `Taken` an answer, is for its callers.

Bugs: a process that dies after the effect and before its verdict is written leaves a claim that
lapses; what happens then is `Tenure.abandoned`. Only co-commit (`middleware.commit`) knows better.
Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic_ns
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from .clock import CarefulClock, Clock, Stopwatch
from .core.idempotency import REUSED, TOO_OLD, UNKNOWN, WAIT, Do, Recall, recall
from .core.lifecycle import (
    Bounced,
    Delivered,
    Forgotten,
    Reason,
    State,
    attempted,
    bounced,
    delivered,
)
from .core.message import Destination, Instant, Key, Message, Response, Value
from .core.tenure import LEASE_MIN_MS, Abandoned, Tenure
from .custody import Custody
from .errors import Refused
from .spools.protocol import Acceptance, Entry, Lease, New
from .tries import Tries, Turn

log = logging.getLogger("unspool.ledger")

T = TypeVar("T")

POLL_MS: Final = 100
"""How often one who waits looks whether another process has finished."""
SWEEP_MS: Final = 10_000
SWEEP_MAX: Final = 1_000
AGAIN_S: Final = 1.0
"""How long after a verdict that could not be written it is tried again."""
UNWRITTEN_MAX: Final = 10_000
"""Verdicts that wait for the spool to come back. One more is dropped, and its claim lapses."""
RENEW_MAX: Final = 500


class Ask(Value, frozen=True):
    """A wish to run under a key."""

    key: Key
    name: str
    """As its sender calls it, for people."""
    fingerprint: bytes
    destination: Destination
    """The application's name."""


class Taken(Value, frozen=True):
    """It is not ours to run, and why."""

    recall: Recall
    entry: Entry | None = None


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
        self.alone: Final = tenure.alone or not custody.spool.promises.shared
        self.custody: Final = custody
        self._clock = clock
        self._careful = CarefulClock(clock, hold_ms=tenure.lease_ms, monotonic_ms=monotonic_ms)
        self._chance = chance
        self._waits = Stopwatch(monotonic_ms)
        self._tries = Tries(clock=self._waits)
        self._live: set[Claim] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unwritten = 0
        self._swept_at = clock.now()

    async def claim(self, ask: Ask, *, wait_ms: int = 0) -> Claim | Taken:
        """The right to run, or why not. Waits up to `wait_ms` for another who runs under the key.

        Raises `Refused` where the spool does not answer, and `Corrupt` for a spoilt record: fail
        closed, for it may have run.
        """
        until = self._waits.now() + wait_ms
        turn = await self._tries.begin(ask.key, ask.fingerprint, until=until)
        if isinstance(turn, str):
            return Taken(REUSED if turn == "key-reused" else WAIT)
        try:
            found = await self._look(ask, turn, until=until)
        except BaseException:
            turn.ends()
            raise
        if isinstance(found, Taken):
            turn.ends()
            return found
        turn.tries()
        claim = Claim(self, ask, turn, lease=found, began_at=self._clock.now())
        if found is not None:
            self._live.add(claim)
        self._tend()
        return claim

    async def _look(self, ask: Ask, turn: Turn, *, until: int) -> Lease | Taken | None:
        """The lease of a claim of ours; None: ours without one, since we are alone."""
        swept = False
        while True:
            now = self._careful.now()
            entry: Entry | None
            if self.alone:
                entry = await self.custody.find(ask.key)
                if entry is None:
                    return None
            else:
                found = await self._write_claim(ask, now)
                if isinstance(found, Lease):
                    return await self._unless_abandoned(found)
                entry = found
            what = recall(entry, fingerprint=ask.fingerprint, now=now)
            if what.do is Do.RUN:
                if self.alone and entry.state is State.CLAIMED:
                    return None  # from a time when we were not alone, and it has lapsed
                # Kept long enough, and still in the way of a new claim (J6).
                if swept:
                    return Taken(TOO_OLD, entry)
                await self.custody.spool.sweep(now=now, limit=SWEEP_MAX)
                swept = True
            elif what.do is Do.WAIT and (left := until - self._waits.now()) > 0:
                turn.tries()  # one polls for all here who wait; who does not is told at once
                await asyncio.sleep(min(POLL_MS, left) / 1000)
            else:
                return Taken(what, entry)

    async def _write_claim(self, ask: Ask, now: Instant) -> Lease | Entry:
        """Write down that we run. A caller who is cancelled leaves nothing claimed (E8)."""
        lease_ms = self.tenure.lease_ms
        until = Instant(self._careful.later() + lease_ms)
        unknown = self.tenure.abandoned is Abandoned.UNKNOWN
        entry = Entry(
            message=self._message(ask, now),
            state=State.CLAIMED,
            due_at=now,
            attempt=1,
            leased_until=until,
            # An abandoned claim is a fact that must not be forgotten where it means `unknown`.
            keep_until=Instant(until + (self.tenure.keeping.key_ms if unknown else lease_ms)),
        )
        writing = asyncio.ensure_future(self.custody.accept(entry, now=now))
        try:
            acceptance = await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._beside(self._give_back(writing, until))
            raise
        if isinstance(acceptance, New):
            return Lease(entry=acceptance.entry, until=until)
        return acceptance.entry

    async def _give_back(self, writing: asyncio.Future[Acceptance], until: Instant) -> None:
        try:
            acceptance = await writing
            if isinstance(acceptance, New):
                lease = Lease(entry=acceptance.entry, until=until)
                await self.custody.settle(lease, Forgotten(), now=self._clock.now())
        except Refused as error:
            log.warning("a claim could not be given back; it lapses by itself: %s", error)

    async def _unless_abandoned(self, lease: Lease) -> Lease | Taken:
        """A claim that was taken over: may its work be done again?"""
        if lease.entry.attempt == 1 or self.tenure.abandoned is Abandoned.RUN:
            return lease
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

    # --- how it ends ------------------------------------------------------------------------

    async def end(self, claim: Claim, verdict: Delivered | Bounced | Forgotten) -> bool:
        """Write the verdict down. False: it was not stored, now or for good."""
        try:
            kept = await self._settle(claim, verdict)
        except Refused as error:
            if self._unwritten < UNWRITTEN_MAX:
                log.warning("a verdict waits for the spool: %s", error)
                self._unwritten += 1
                self._beside(self._write_later(claim, verdict))
                return False
            log.error("a verdict is lost, for %d wait already: %s", self._unwritten, error)
            kept = False
        self._over(claim)
        return kept

    async def _settle(self, claim: Claim, verdict: Delivered | Bounced | Forgotten) -> bool:
        now = self._clock.now()
        if claim.lease is not None:
            return await self.custody.settle(claim.lease, verdict, now=now)
        if isinstance(verdict, Forgotten):
            return True
        entry = Entry(
            message=self._message(claim.ask, claim.began_at),
            state=State.CLAIMED,
            due_at=now,
            attempt=1,
            leased_until=Instant(now + self.tenure.lease_ms),
            keep_until=Instant(now + self.tenure.lease_ms),
        )
        if isinstance(verdict, Delivered):
            entry = _settled(entry, verdict)
        acceptance = await self.custody.accept(entry, now=now)
        if isinstance(acceptance, New) and isinstance(verdict, Bounced):
            lease = Lease(entry=acceptance.entry, until=acceptance.entry.leased_until)
            return await self.custody.settle(lease, verdict, now=now)
        return isinstance(acceptance, New)

    async def _write_later(self, claim: Claim, verdict: Delivered | Bounced | Forgotten) -> None:
        """Again and again; the claim is renewed meanwhile, so nobody else runs it."""
        try:
            while True:
                await asyncio.sleep(AGAIN_S)
                try:
                    await self._settle(claim, verdict)
                    break
                except Refused:
                    continue
        finally:
            self._unwritten -= 1
            self._over(claim)

    def _over(self, claim: Claim) -> None:
        self._live.discard(claim)
        claim.turn.ends()

    # --- beside the work --------------------------------------------------------------------

    def now(self) -> Instant:
        return self._clock.now()

    def _beside(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do it, whatever becomes of whoever asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tend(self) -> None:
        """Renew and sweep now and then, for as long as there is anything to do."""
        if self._timer is None:
            pause_ms = min(self.tenure.lease_ms // 3, SWEEP_MS)
            self._timer = asyncio.get_running_loop().call_later(pause_ms / 1000, self._beat)

    def _beat(self) -> None:
        self._timer = None
        now = self._clock.now()
        sweeps = not 0 <= now - self._swept_at < SWEEP_MS
        if self._live or sweeps:
            if sweeps:
                self._swept_at = now
            self._beside(self._renew_and_sweep(sweeps))
        if self._live or not sweeps:
            self._tend()

    async def _renew_and_sweep(self, sweeps: bool) -> None:
        try:
            live = list(self._live)
            for start in range(0, len(live), RENEW_MAX):
                await self._renew(live[start : start + RENEW_MAX])
            if sweeps:
                # Not by a clock that has just stepped: it would forget the claims of the living.
                await self.custody.spool.sweep(now=self._careful.now(), limit=SWEEP_MAX)
        except Refused as error:
            log.warning("the spool did not answer; claims are renewed at the next beat: %s", error)

    async def _renew(self, claims: list[Claim]) -> None:
        leases = [claim.lease for claim in claims if claim.lease is not None]
        until = Instant(self._careful.later() + self.tenure.lease_ms)
        kept = await self.custody.spool.renew(leases, until=until)
        for claim, good in zip(claims, kept, strict=True):
            if not good and not claim.ended:
                claim.lost = True
                self._live.discard(claim)
                log.warning("a claim was lost: its owner slept longer than its lease")

    async def aclose(self) -> None:
        """Write what can be written. Claims that are left lapse by themselves."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.custody.drain()


class Claim:
    """The sole right to run under a key, until it ends: once, in one of three ways."""

    __slots__ = ("_ledger", "ask", "attempt", "began_at", "ended", "lease", "lost", "turn")

    def __init__(
        self, ledger: Ledger, ask: Ask, turn: Turn, *, lease: Lease | None, began_at: Instant
    ) -> None:
        self._ledger = ledger
        self.ended = False
        self.ask: Final = ask
        self.turn: Final = turn
        self.lease: Final = lease
        self.began_at: Final = began_at
        self.attempt: Final = 1 if lease is None else lease.entry.attempt
        """The fencing token: higher than that of everybody who had this key before (6)."""
        self.lost = False
        """A renewal was refused: somebody else has the key by now."""

    async def done(self, answer: Response) -> bool:
        """Remember this answer: whole, or only the fact where it streams or is too large.

        False: the caller should be told that it is not stored.
        """
        now = self._ledger.now()
        trail = (attempted(self.attempt, answer, at=self.began_at),)
        keeping = self._ledger.tenure.keeping
        return await self._end(delivered(answer, now=now, keeping=keeping, trail=trail))

    async def release(self) -> None:
        """Nothing came of it."""
        await self._end(Forgotten())

    async def unknown(self) -> bool:
        """It may have had an effect. A repeat is told so, and does not run."""
        now, keeping = self._ledger.now(), self._ledger.tenure.keeping
        return await self._end(bounced(Reason.UNKNOWN, now=now, keeping=keeping, trail=()))

    async def _end(self, verdict: Delivered | Bounced | Forgotten) -> bool:
        assert not self.ended, "I3: a claim ends once"
        self.ended = True
        # Whoever waits may be cancelled. The end is written all the same: a claim that is neither
        # ended nor abandoned would be renewed for ever.
        return await asyncio.shield(self._ledger._beside(self._ledger.end(self, verdict)))


def _settled(entry: Entry, verdict: Delivered) -> Entry:
    return replace(
        entry,
        state=State.DELIVERED,
        leased_until=Instant(0),
        trail=verdict.trail,
        answer=verdict.answer,
        stored=verdict.stored,
        settled_at=verdict.settled_at,
        keep_until=verdict.keep_until,
        answer_until=verdict.answer_until,
    )
