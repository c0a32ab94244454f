"""Saving: what the relay writes into the spool about a request that is on its way.

    await saving.claim(passage)             we are trying it: nobody else may (shared spools)
    await saving.record(passage, answer)    the answer, before anybody sees it (I6)
    await saving.forget(passage)            nothing came of it: the key is free again
    await saving.save(passage, answer)      responsibility: 202 once it is durable, not before (I1)
    await saving.promised(passage, entry)   the real answer if it comes in time, else the receipt
    saving.answered(…), .waiting(…)         the entries that these write
    saving.promise(…), .not_saved(…)        what these say

On a spool of our own there are no claims: a keyed request costs one commit, when its outcome is
known. Where others may try the same key, it costs two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from .answers import passed_back, settled
from .clock import Clock
from .core.idempotency import worth_remembering
from .core.lifecycle import Deferred, Delivered, Forgotten, State, attempted, delivered
from .core.message import Answer, Attempt, Instant, Message, Response, mint, seal
from .core.outcome import cause_of, retry_after
from .core.schedule import next_due
from .custody import Custody
from .errors import Corrupt, NotDone, Refused, Unavailable
from .passage import Options, Passage
from .problems import problem
from .receipts import Board, accepted
from .spools.protocol import Acceptance, Duplicate, Entry, Lease, Mismatch, New

log = logging.getLogger("unspool.relay")

ORDERED_WAIT_MS: Final = 10_000
"""An ordered request goes through the spool; its sender still gets a quick answer itself."""


class Saving:
    def __init__(
        self,
        *,
        options: Options,
        custody: Custody,
        board: Board,
        clock: Clock,
        chance: Callable[[int], bytes],
    ) -> None:
        self._options = options
        self._custody = custody
        self._board = board
        self._clock = clock
        self._chance = chance

    async def claim(self, passage: Passage, *, now: Instant) -> Entry | None:
        """Write down that we are trying it. None: the claim is ours."""
        until = Instant(now + self._options.lease_ms)
        entry = Entry(
            message=self._sealed(passage, now),
            state=State.CLAIMED,
            due_at=now,
            attempt=1,
            leased_until=until,
            keep_until=Instant(until + self._options.lease_ms),
        )
        acceptance = await self._custody.accept(entry, now=now)
        if isinstance(acceptance, New):
            passage.claim = Lease(entry=acceptance.entry, until=until)
            return None
        return acceptance.entry

    async def record(self, passage: Passage, answer: Response) -> Response:
        """Remember the answer before anybody sees it (I6); or that there is nothing to remember.

        Where it cannot be remembered the sender still gets it: it is true, and they are told.
        """
        try:
            stored = await self._remember(passage, answer)
        except Refused:
            stored = False
        return answer if stored else unstored(answer)

    async def _remember(self, passage: Passage, answer: Response) -> bool:
        """False: somebody else's answer stands under this key by now."""
        now = self._clock.now()
        if not worth_remembering(answer) or self._options.unstored(answer):
            await self.forget(passage)
            return True
        if passage.claim is not None:
            verdict = self._verdict(passage, answer, now)
            return await self._custody.settle(passage.claim, verdict, now=now)
        acceptance = await self._custody.accept(self.answered(passage, answer, now), now=now)
        return isinstance(acceptance, New) or await self._ended(passage, answer, acceptance)

    async def _ended(self, passage: Passage, answer: Response, known: Duplicate | Mismatch) -> bool:
        """The answer of what waits in the spool: it was handed over while we tried it."""
        now, key = self._clock.now(), known.entry.message.key
        if not came_meanwhile(known):
            return False
        until = Instant(now + self._options.lease_ms)
        [lease] = await self._custody.spool.seize([key], now=now, until=until)
        if lease is None:
            return False
        kept = await self._custody.settle(lease, self._verdict(passage, answer, now), now=now)
        if kept:
            self._custody.backlog -= 1
            self._board.post(key)
        return kept

    def _verdict(self, passage: Passage, answer: Response, now: Instant) -> Delivered:
        first = attempted(1, answer, at=passage.began_at)
        return delivered(answer, now=now, keeping=self._options.policy.keeping, trail=(first,))

    def answered(self, passage: Passage, answer: Response, now: Instant) -> Entry:
        """The entry that remembers this answer."""
        verdict = self._verdict(passage, answer, now)
        message = self._sealed(passage, now, whole=False)
        return Entry(
            message, State.DELIVERED, now, 1, Instant(0), verdict.trail, verdict.answer,
            verdict.stored, "", now, verdict.keep_until, verdict.answer_until,
        )  # fmt: skip

    async def forget(self, passage: Passage) -> None:
        if passage.claim is None:
            return
        try:
            await self._custody.settle(passage.claim, Forgotten(), now=self._clock.now())
        except Refused as error:
            log.warning("a claim could not be given back; it lapses by itself: %s", error)

    async def save(self, passage: Passage, answer: Answer | None) -> Response:
        """Take responsibility: 202 once the spool has it, and not before (I1)."""
        now = self._clock.now()
        if (reject := self._custody.admit(now)) is not None:
            await self.forget(passage)
            return self.not_saved(answer, reject.detail, reject.retry_after_s)
        try:
            entry = await self._keep(passage, answer if passage.tried else None, now)
        except Refused as error:
            return self.refused(passage, answer, error)
        return await self.taken(passage, entry, answer)

    async def taken(self, passage: Passage, entry: Entry | None, answer: Answer | None) -> Response:
        """What the spool has under this key by now; None: another request."""
        if isinstance(answer, Response) and answer.rest is not None:
            answer.rest.close()
        if entry is None or entry.message.fingerprint != (passage.fingerprint or b""):
            return problem("key-reused")
        if entry.state is State.CLAIMED:
            # Somebody took our claim over and is trying it: nothing is promised (I1).
            return problem("running", retry_after_s=1)
        return await self.promised(passage, entry, answer)

    def refused(self, passage: Passage, answer: Answer | None, error: Refused) -> Response:
        """The spool did not take it; or nobody knows, and then it may not be sent again unless it
        may be repeated: what was taken all the same is delivered."""
        doubt = isinstance(error, Unavailable) and not isinstance(error, NotDone)
        if doubt and not passage.repeat:
            return problem("unknown", str(error))
        if doubt and not isinstance(answer, Response):
            return problem("in-doubt", str(error), retry_after_s=1)
        return self.not_saved(answer, str(error), 1)

    def not_saved(self, answer: Answer | None, why: str, retry_after_s: int | None) -> Response:
        if isinstance(answer, Response):
            return passed_back(answer, why)
        return problem("refused", why, retry_after_s=retry_after_s)

    async def _keep(self, passage: Passage, answer: Answer | None, now: Instant) -> Entry | None:
        """The entry in the spool; None where the key turned out to be another request's."""
        claim = passage.claim
        entry = self.waiting(passage, answer, now)
        if claim is not None:
            kept = await self._custody.settle(claim, Deferred(entry.due_at, entry.trail), now=now)
            if kept:
                self._custody.backlog += 1
                return entry
            found = await self._custody.find(entry.message.key)  # somebody took it over (I3)
            if found is not None:
                return found
        acceptance = await self._custody.accept(entry, now=now)
        return None if isinstance(acceptance, Mismatch) else acceptance.entry

    def waiting(self, passage: Passage, answer: Answer | None, now: Instant) -> Entry:
        """The entry of a request that is to be delivered later; `answer`: of its first attempt."""
        claim = passage.claim
        message = claim.entry.message if claim else self._sealed(passage, now)
        due_at = now
        trail: tuple[Attempt, ...] = ()
        if answer is not None:
            due_at = next_due(
                message,
                attempt=1,
                now=now,
                retry_after_ms=retry_after(answer, now=now),
                pace=self._options.policy.pace,
            )
            trail = (attempted(1, answer, at=passage.began_at),)
        attempt = claim.entry.attempt if claim else len(trail)
        return Entry(message, State.WAITING, due_at, attempt, Instant(0), trail)

    def _sealed(self, passage: Passage, now: Instant, *, whole: bool = True) -> Message:
        key = passage.key
        if not key:
            key = passage.key = mint(now=now, chance=self._chance(11))
        return seal(
            passage.request,
            key=key,
            name=passage.name,
            destination=self._options.destination,
            now=now,
            lifetime_ms=passage.lifetime_ms,
            nonce=self._chance(16),
            repeat=passage.repeat,
            order_key=passage.order_key,
            # A minted key is nobody's to reuse: nothing to compare.
            print_=passage.fingerprint if passage.fingerprint is not None else b"",
            whole=whole,
        )

    async def promised(
        self, passage: Passage, entry: Entry, answer: Answer | None = None
    ) -> Response:
        """It is saved. The real answer if it comes in time, else the receipt."""
        wishes = passage.wishes
        wait_ms = wishes.wait_ms
        if passage.order_key and not wait_ms and not wishes.respond_async:
            wait_ms = min(ORDERED_WAIT_MS, self._options.wait_max_ms)
        if entry.state is State.WAITING and wait_ms:
            left = max(0, passage.began_at + wait_ms - self._clock.now())
            if passage.let_go is not None:
                passage.let_go()  # it is saved: a repeat need not wait with us
            try:
                found = await self._board.settled(self._custody, entry.message.key, timeout_ms=left)
            except (Refused, Corrupt) as error:
                log.warning("a saved message could not be looked at: %s", error)
                found = None  # it is ours all the same, and that is what the sender must hear
            entry = found or entry
        if entry.state in (State.DELIVERED, State.BOUNCED):
            return settled(entry)
        return self.promise(passage, entry, answer)

    def promise(self, passage: Passage, entry: Entry, answer: Answer | None = None) -> Response:
        """The receipt of what is in the spool: never before it is (I1)."""
        return accepted(
            entry,
            now=self._clock.now(),
            survives=self._custody.grade(entry),
            applied=b"respond-async" if passage.wishes.respond_async else b"",
            cause="" if answer is None else f"saved: {cause_of(answer)[1]}",
        )


def came_meanwhile(acceptance: Acceptance) -> bool:
    """Was the request that we tried handed over to a collector while we did?"""
    return isinstance(acceptance, Duplicate) and acceptance.entry.state is State.WAITING


def unstored(answer: Response) -> Response:
    """The answer, and that it cannot be given again."""
    fields = [*answer.fields, (b"Idempotency-Stored", b"false")]
    return msgspec.structs.replace(answer, fields=fields)
