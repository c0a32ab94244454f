"""Endings: how claims end is written down; now, or as soon as the spool takes it.

    kept = await endings.end(claim, verdict)      False: it was not stored, now or for good
    await endings.aclose()                        a last try for what still waits

Promises. A claim whose end the spool would not take stays its owner's, and the end is written when
the spool is back: nobody runs a key again because we could not write (F10). A caller who is
cancelled loses nothing: its end is written all the same. What waits has a limit, in number and in
bytes: beyond the bytes the fact is kept without its body, beyond the number a claim lapses.

Bugs: if the spool is away for longer than a lease and another process is quicker when it comes
back, the key is that one's (`Tenure.abandoned`). So it is if this process ends meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from .claims import Ask, Claim, End
from .clock import Clock
from .core.lifecycle import Delivered, Forgotten, State
from .core.message import Instant, Message
from .core.tenure import Tenure
from .custody import Custody
from .errors import Refused
from .spools.protocol import Entry, Lease, New

log = logging.getLogger("unspool.ledger")

AGAIN_S: Final = 1.0
"""How long after an end that could not be written it is tried again."""
UNWRITTEN_MAX: Final = 10_000
UNWRITTEN_MAX_BYTES: Final = 64 * 1024 * 1024
LAST_TRY_S: Final = 5.0


class Endings:
    def __init__(
        self,
        *,
        custody: Custody,
        clock: Clock,
        tenure: Tenure,
        sealed: Callable[[Ask, Instant], Message],
        over: Callable[[Claim], None],
    ) -> None:
        self._custody = custody
        self._clock = clock
        self._tenure = tenure
        self._sealed = sealed
        self._over = over
        self._waiting: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._closing = asyncio.Event()

    async def end(self, claim: Claim, verdict: End) -> bool:
        """Write it down. False: it was not stored, now or for good."""
        try:
            kept = await self._write(claim, verdict)
        except asyncio.CancelledError:
            self._later(claim, verdict, pause_s=0)  # it may have happened: once more is safe (13)
            raise
        except Refused as error:
            log.warning("an end waits for the spool: %s", error)
            self._later(claim, verdict, pause_s=AGAIN_S)
            return False
        except Exception:
            log.exception("an end was not written; the claim lapses: %s", claim.ask.key)
            kept = False
        self._over(claim)
        return kept

    async def _write(self, claim: Claim, verdict: End) -> bool:
        now = self._clock.now()
        if claim.lease is not None:
            return await self._custody.settle(claim.lease, verdict, now=now)
        if isinstance(verdict, Forgotten):
            return True
        entry = Entry(
            message=self._sealed(claim.ask, claim.began_at),
            state=State.CLAIMED,
            due_at=now,
            attempt=claim.attempt,
            leased_until=Instant(now + self._tenure.lease_ms),
            keep_until=Instant(now + self._tenure.lease_ms),
        )
        if isinstance(verdict, Delivered):
            acceptance = await self._custody.accept(_settled(entry, verdict), now=now)
            return isinstance(acceptance, New)
        found = (await self._custody.accept(entry, now=now)).entry
        if found.state is not State.CLAIMED:
            return False
        return await self._custody.settle(Lease(found, found.leased_until), verdict, now=now)

    def _later(self, claim: Claim, verdict: End, *, pause_s: float) -> None:
        if len(self._waiting) >= UNWRITTEN_MAX:
            log.error("an end is lost, for %d wait already: %s", UNWRITTEN_MAX, claim.ask.key)
            self._over(claim)
            return
        if self._bytes + _size(verdict) > UNWRITTEN_MAX_BYTES and isinstance(verdict, Delivered):
            bare = replace(verdict.answer, body=b"")
            verdict = replace(verdict, answer=bare, stored=False)
        self._bytes += _size(verdict)
        task = asyncio.get_running_loop().create_task(self._again(claim, verdict, pause_s))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _again(self, claim: Claim, verdict: End, pause_s: float) -> None:
        """Again and again; the claim is renewed meanwhile, so nobody else runs it."""
        try:
            while not await self._tried(claim, verdict, pause_s):
                pause_s = AGAIN_S
        finally:
            self._bytes -= _size(verdict)
            self._over(claim)

    async def _tried(self, claim: Claim, verdict: End, pause_s: float) -> bool:
        """One more try after a pause. True: there is no point in another."""
        if pause_s:
            try:
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()
            except TimeoutError:
                pass
        try:
            await self._write(claim, verdict)
        except Refused as error:
            if self._closing.is_set():
                log.error("an end is lost, for we close (%s): %s", error, claim.ask.key)
                return True
            return False
        except Exception:
            log.exception("an end was not written; the claim lapses: %s", claim.ask.key)
        return True

    async def aclose(self) -> None:
        """A last try for what waits, for at most LAST_TRY_S."""
        self._closing.set()
        waiting = list(self._waiting)
        if waiting:
            _done, late = await asyncio.wait(waiting, timeout=LAST_TRY_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def _size(verdict: End) -> int:
    return len(verdict.answer.body) if isinstance(verdict, Delivered) else 0


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
