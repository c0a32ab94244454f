"""Custody: the relay's hand on a spool. Many single calls in, few batches out.

    custody.admit(now)                may we take responsibility now?
    await custody.accept(entry)       take it; durable when this returns (I1)
    await custody.find(key)           what is known of a key
    await custody.settle(lease, v)    end a lease
    custody.accept_for(hears, entry)  accept, find and settle for somebody who is told in his own
    custody.find_for(hears, key)      way; he tells `took`, or `failed`, what he was told of an
    custody.settle_for(hears, l, v)   accept, and `failed` of a settle
    await custody.open()              the spool's secret, made on first use
    await custody.receipt(key, nonce) the entry of a receipt
    await custody.seize(entry, …)     the right to end this one, by its sender's word
    custody.grade(entry)              what it survives, as receipts tell it
    await custody.count()             how many wait already
    await custody.drain(within_ms=…)  everything submitted is done, or given up
    custody.give_up(…)                whoever waits for a spool that hangs is told so
    custody.recent                    answers just kept: a repeat mostly follows soon

It also remembers how the spool does: after a write that failed it is left alone for a moment, so
that an outage of the disk costs a refusal and not a timeout for each sender. The log is told when
nothing is taken any more, and why, and when that is over.

The secret lives in the spool as an entry of its own: see `spools.secret`. A spool may be a chain of
several (`spools.chain`), which tells of each item apart: here is where that is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from hmac import compare_digest
from typing import Final

from .core.admission import Health, Reject, Terms, admit
from .core.lifecycle import Deferred, State, Verdict
from .core.message import NEVER, Instant, Key, Response
from .errors import Full, Homeless, InDoubt, Refused, Unavailable
from .recent import Recent
from .spools.chain.spool import ChainSpool
from .spools.committer import Committer, Hears
from .spools.protocol import Acceptance, Entry, Lease, New, Spool
from .spools.secret import SECRET_BYTES, SECRET_KEY, secret_entry

__all__ = ["SECRET_KEY", "Custody", "secret_entry"]

log = logging.getLogger("unspool.custody")

TELL_MS: Final = 5 * 60_000
"""That nothing is taken is told once in so long, for trouble may come and go with each request."""
TROUBLE_MS: Final = 1_000
"""How long a spool that failed is left alone."""
BATCH_MAX: Final = 512
WAITING_MAX: Final = 20_000
DRAIN_MS: Final = 5_000
STUCK_S: Final = 0.5
"""A spool that has done nothing for so long at the end hangs; one that is only slow is waited for
a little beyond it."""
HANGS: Final = "The spool has not answered, and this process ends."


class Custody:
    def __init__(
        self, *, spool: Spool, terms: Terms, disk_free: Callable[[], int | None] | None = None
    ) -> None:
        self.spool: Final = spool
        self.terms: Final = terms
        self.survives: Final = spool.promises.survives.name.lower()
        """The grade as receipts tell it: measured once, when the spool was opened."""
        self.chain: Final = spool if isinstance(spool, ChainSpool) else None
        self.backlog = 0
        """Waiting messages, roughly: what was counted at start and what came and went since."""
        self.counted = False
        """Has that been counted yet? Until then `backlog` is only what came and went."""
        self.gave_up = 0
        """Who waited for the spool when it was given up."""
        self.recent: Final = Recent()
        self._disk_free = disk_free
        self._trouble = ""
        self._troubled_at = NEVER
        self._told_at = NEVER
        self._refusing = False
        self._looked_at = Instant(0)
        self._admitted_at = NEVER
        self._free_bytes: int | None = None
        self._accepts: Committer[Entry, Acceptance] = Committer(
            spool.accept if self.chain is None else self.chain.accept_each,
            batch_max=BATCH_MAX,
            waiting_max=WAITING_MAX,
            patient=True,
        )
        self._settles: Committer[tuple[Lease, Verdict], bool] = Committer(
            spool.settle if self.chain is None else self.chain.settle_each,
            batch_max=BATCH_MAX,
            waiting_max=WAITING_MAX,
            patient=True,
        )
        self._finds: Committer[Key, Entry | None] = Committer(
            spool.find, batch_max=BATCH_MAX, waiting_max=WAITING_MAX, patient=True
        )

    async def open(self, *, now: Instant, chance: Callable[[int], bytes] = os.urandom) -> bytes:
        """The spool's secret. Whoever asks first makes it; everybody else gets the same."""
        [known] = await self.spool.accept([secret_entry(chance(SECRET_BYTES), now=now)])
        answer: Response | None = known.entry.answer
        if answer is None or len(answer.body) != SECRET_BYTES:
            [found] = await self.spool.find([SECRET_KEY])
            answer = found.answer if found else None
        assert answer is not None, "I10: a spool without its secret"
        return answer.body

    async def count(self) -> None:
        """How many wait already. Beside the work: a spool of ten million takes seconds to tally."""
        before = self.backlog  # what came in since we opened is in the spool, and is counted there
        rows = await self.spool.tally([Instant(0)])
        self.backlog += sum(sum(row.counts) + row.held for row in rows) - before
        self.counted = True

    def health(self, now: Instant) -> Health:
        if self._disk_free is not None and not 0 <= now - self._looked_at < TROUBLE_MS:
            self._looked_at = now
            self._free_bytes = self._disk_free()
        over = now < self._troubled_at  # the clock was set back: better one try too many
        return Health(
            trouble=self._trouble,
            trouble_until=now if over else Instant(self._troubled_at + TROUBLE_MS),
            backlog=self.backlog,
            disk_free_bytes=self._free_bytes,
        )

    def admit(self, now: Instant) -> Reject | None:
        if now - self._admitted_at < TROUBLE_MS and not self._trouble and now >= self._admitted_at:
            return None  # nothing was in the way a moment ago, and nothing has failed since
        reject = admit(terms=self.terms, health=self.health(now), now=now)
        # The backlog grows with each request, so it is looked at each time; and the disk was looked
        # at a while ago, perhaps.
        seen_at = now if self._disk_free is None else self._looked_at
        self._admitted_at = NEVER if reject or self.terms.backlog_max else seen_at
        if reject is not None:
            self._tell(reject.detail, now)
        return reject

    def _tell(self, why: str, now: Instant) -> None:
        if 0 <= now - self._told_at < TELL_MS:
            return
        self._told_at = now
        self._refusing = True
        log.warning(
            "nothing is taken into custody: %s. Senders are told 503 and keep their requests; what"
            " was accepted is kept. See: curl http://…/_unspool/health",
            why.removesuffix("."),
        )

    async def accept(self, entry: Entry, *, now: Instant) -> Acceptance:
        """Take an entry in. Raises `Full` (it did not happen) or `Unavailable` (nobody knows)."""
        try:
            acceptance = await self._accepts.submit(entry)
        except Refused as error:
            self.failed(error, now)
            raise
        self.took(entry, acceptance)
        return acceptance

    def accept_for(self, hears: Hears[Acceptance], entry: Entry) -> None:
        self._accepts.submit_for(hears, entry)

    def took(self, entry: Entry, acceptance: Acceptance) -> None:
        self._trouble = ""
        if self._refusing:
            self._refusing = False
            log.warning("custody is taken again")
        if type(acceptance) is not New:
            return
        if entry.state is State.WAITING:
            self.backlog += 1
        elif entry.state is State.DELIVERED:
            self.recent.keep(acceptance.entry)

    async def settle(self, lease: Lease, verdict: Verdict, *, now: Instant) -> bool:
        try:
            return await self._settles.submit((lease, verdict))
        except Refused as error:
            self.failed(error, now)
            raise

    def hold_settles(self, seconds: float) -> None:
        """A lease is coming: verdicts wait for `settle_now`, so long at most."""
        self._settles.hold(seconds)

    def settle_now(self) -> None:
        """It comes now, and is one commit with these verdicts, where the spool can do that."""
        self._settles.go()

    def settle_for(self, hears: Hears[bool], lease: Lease, verdict: Verdict) -> None:
        self._settles.submit_for(hears, (lease, verdict))

    async def find(self, key: Key) -> Entry | None:
        return await self._finds.submit(key)

    async def receipt(self, key: Key, nonce: bytes) -> Entry | None:
        """The entry that this receipt was given for; None: there is none, or not any more.

        Raises `Unavailable` where a part of the spool that may know it cannot be asked.
        """
        entry = await self.find(key)
        if entry is not None and compare_digest(entry.message.nonce, nonce):
            return entry
        if self.chain is None:
            return None
        entry = await self.chain.other(key, nonce)
        if entry is None:
            self.not_blind()
        return entry

    async def seize(self, entry: Entry, *, now: Instant, until: Instant) -> Lease | None:
        """This very message; None: it is not to be had, or another one is under its key by now."""
        seize = self.spool.seize if self.chain is None else self.chain.seizing(entry)
        [lease] = await seize([entry.message.key], now=now, until=until)
        if lease is None or lease.entry.message.nonce == entry.message.nonce:
            return lease
        await self.spool.settle([(lease, Deferred(lease.entry.due_at, lease.entry.trail))])
        return None

    def not_blind(self) -> None:
        """Raises `Unavailable` where a part of the spool cannot be asked."""
        if self.chain is not None and self.chain.blind:
            raise Unavailable(
                f"a spool cannot be asked just now: {self.chain.blind}. What it keeps is safe; ask"
                " again later"
            )

    def grade(self, entry: Entry) -> str:
        if self.chain is None:
            return self.survives
        return self.chain.grade(entry).name.lower()

    def find_for(self, hears: Hears[Entry | None], key: Key) -> None:
        self._finds.submit_for(hears, key)

    def failed(self, error: Refused, now: Instant) -> None:
        assert isinstance(error, Full | Unavailable | Refused)
        if isinstance(error, Homeless | InDoubt):
            return  # that one alone: others are taken
        self._trouble = str(error).partition(". ")[0].removesuffix(".")
        self._troubled_at = now
        self._tell(str(error), now)

    async def drain(self, *, within_ms: int = DRAIN_MS) -> bool:
        """Everything that was submitted is done. False: after so long some of it was given up."""
        try:
            async with asyncio.timeout(within_ms / 1000):
                await self._accepts.drain()
                await self._settles.drain()
                await self._finds.drain()
        except TimeoutError:
            return not self.give_up()
        return True

    def give_up(self, *, stuck_s: float = 0.0) -> int:
        """Tell whoever waits for the spool that it hangs, if it has done nothing for `stuck_s`.
        How many they were. What they brought may or may not be in it (12)."""
        committers = (self._accepts, self._settles, self._finds)
        if any(one.hangs(stuck_s) for one in committers) and not self._finds.busy:
            self._finds.close(HANGS)  # who hears it would else look there, and wait again
        waited = sum(one.give_up(HANGS, stuck_s=stuck_s) for one in committers)
        self.gave_up += waited
        return waited
