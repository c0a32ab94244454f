"""Upkeep: claims are renewed while their owner lives, and what was kept long enough is forgotten.

    upkeep.add(claim) · upkeep.drop(claim)      it is renewed from now on; no longer
    upkeep.tend()                               somebody uses the ledger: there may be work

A claim is renewed every third of its lease, so that it survives two renewals that fail. There is a
timer only while there are claims, or something was done since the last sweep: an idle application
does nothing. Both go by the careful clock: a sweep by one that has just stepped forward would
forget the claims of the living, and a renewal by one that stepped back would end our own (F11).

Bugs: a loop that is blocked for a lease (work that blocks, in an `async def`) renews nothing, and
its claims lapse as if it had died. What it settles later is refused, if somebody took them over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from .claims import Claim
from .clock import CarefulClock
from .core.message import Instant
from .errors import UnspoolError
from .spools.protocol import Spool

log = logging.getLogger("unspool.ledger")

RENEW_MAX: Final = 500
SWEEP_MS: Final = 10_000
SWEEP_MAX: Final = 1_000
SWEEP_PAUSE_S: Final = 0.05


class Upkeep:
    def __init__(self, *, spool: Spool, clock: CarefulClock, lease_ms: int) -> None:
        self._spool = spool
        self._clock = clock
        self._lease_ms = lease_ms
        self._live: set[Claim] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._swept_at = clock.now()

    def add(self, claim: Claim) -> None:
        self._live.add(claim)

    def drop(self, claim: Claim) -> None:
        self._live.discard(claim)

    def tend(self) -> None:
        if self._timer is None:
            pause_ms = min(self._lease_ms // 3, SWEEP_MS)
            self._timer = asyncio.get_running_loop().call_later(pause_ms / 1000, self._beat)

    def _beat(self) -> None:
        self._timer = None
        now = self._clock.now()
        sweeps = not 0 <= now - self._swept_at < SWEEP_MS
        # A spool that hangs has one of each waiting for it, not one more with each beat.
        if self._live and (self._renewing is None or self._renewing.done()):
            self._renewing = self._beside(self._renew)
        if sweeps and (self._sweeping is None or self._sweeping.done()):
            self._swept_at = now
            self._sweeping = self._beside(self._sweep)
        if self._live or not sweeps:
            self.tend()

    def _beside(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work()
            except UnspoolError as error:
                log.warning("the spool did not answer; once more at the next beat: %s", error)
            except Exception:
                log.exception("the upkeep of claims made a mistake; it goes on")

        return asyncio.get_running_loop().create_task(guarded())

    async def _renew(self) -> None:
        live = list(self._live)
        for start in range(0, len(live), RENEW_MAX):
            await self._renew_some(live[start : start + RENEW_MAX])

    async def _renew_some(self, claims: list[Claim]) -> None:
        leases = [claim.lease for claim in claims if claim.lease is not None]
        until = Instant(self._clock.later() + self._lease_ms)
        kept = await self._spool.renew(leases, until=until)
        for claim, good in zip(claims, kept, strict=True):
            if good:
                claim.held_until = until
            elif not claim.ended:
                claim.lost = True
                self._live.discard(claim)
                log.warning("lost, for its owner slept longer than its lease: %s", claim.ask.key)

    async def _sweep(self) -> None:
        while await self._spool.sweep(now=self._clock.now(), limit=SWEEP_MAX) >= SWEEP_MAX:
            await asyncio.sleep(SWEEP_PAUSE_S)

    async def aclose(self) -> None:
        """Claims that are left lapse by themselves."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [task for task in (self._renewing, self._sweeping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
