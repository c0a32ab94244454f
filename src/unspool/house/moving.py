"""Move: all messages from one spool to another, with relays at work on both. None lost, none twice.

    sums = await Move(source, target, …).run(wait_ms=60_000)

For a message that waits, as many at a time as are small:

    1  seize at the source        the lease: nobody tries it there while we have it
    2  accept at the target       parked: held, with its due time in a mark (`core.parking`)
    3  settle at the source       Bounced(moved), fenced: this is where responsibility passes on
    4  let go at the target       seize and Deferred to when it was due

Only 3 decides. Before it, the source delivers and what is parked at the target does not; after it,
the other way round. If it is refused, for our lease had run out, the source goes on as if nothing
had been, and the target's copy stays parked. Whoever dies in between leaves that to the next run,
which begins and ends by asking the source about all that is parked: let go where it was moved,
ended with the source's own answer where it was delivered, left where it still waits.

What is settled is copied with its answer, so that a repeat gets the same one at either place. What
is being tried is waited for; so is all that stands behind it under its order key. Claims stay:
nothing was promised of them. What is parked at the source stays too: the move that brought it has
not ended.

Bugs: what arrives at the target under an order key before the old spool is empty does not wait for
what is still at the source. A message cannot come back to a spool it was moved from for as long as
its key is remembered there: it stays where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ..clock import Clock
from ..core.lifecycle import Bounced, Deferred, Delivered, Reason, State, Verdict, extended
from ..core.message import NEVER, Attempt, Destination, Instant, Key, Response, Sent
from ..core.parking import park, unpark
from ..errors import Misconfigured, UnspoolError
from ..spools.protocol import Acceptance, Entry, Lease, Mismatch, New, Query, Spool
from ..spools.secret import SECRETS
from .secret import mark_of, secret_of, settle_in
from .walk import PAGE, found_of, pages

TERM_MS: Final = 30_000
PAUSE_S: Final = 0.25
ROWS: Final = 512
"""Entries in a page, without their requests."""
BATCH_MIN: Final = 16
BATCH_MAX: Final = 256
BATCH_BYTES: Final = 16 * 1024 * 1024
MOVED: Final = "moved to another spool"
CUT_SHORT: Final = "the attempt before was cut short"

_Line = tuple[Destination, str]


class Sums(msgspec.Struct):
    moved: int = 0
    copied: int = 0
    """Settled ones, that are known at both places now."""
    known: int = 0
    """Were there already."""
    later: int = 0
    """Are being tried at the source, or stand behind what is."""
    other: int = 0
    """Their keys are another request's at the target, or one's that has bounced: they stay."""
    back: int = 0
    """Were moved away from the target before: they stay."""
    coming: int = 0
    """Are parked at the source: whence they come they may be live, so they stay."""
    parked: int = 0
    """Are held at the target, and the source does not know why."""
    word: str = ""


class Move:
    def __init__(
        self, source: Spool, target: Spool, *, clock: Clock, key_ms: int,
        went: Callable[[int], object] = lambda count: None, term_ms: int = TERM_MS,
    ) -> None:  # fmt: skip
        """`term_ms`: how long what was seized is nobody else's, if we die over it."""
        self.sums: Final = Sums()
        self._source: Final = source
        self._target: Final = target
        self._clock: Final = clock
        self._key_ms: Final = key_ms
        self._went: Final = went
        self._term_ms: Final = term_ms
        self._batch = BATCH_MIN
        self._blocked: set[_Line] = set()
        """Lines of which somebody further in front stays at the source in this pass (5)."""

    async def run(self, *, wait_ms: int, other_secret: bool = False, where: str = "it") -> Sums:
        """Raises `OtherSecret`, `Misconfigured`, and what the spools do."""
        secret = await secret_of(self._source)
        self.sums.word = await settle_in(
            self._target, secret=secret, mark=mark_of(secret), now=self._clock.now(),
            other=other_secret, where=where,
        )  # fmt: skip
        until = self._clock.now() + wait_ms
        await self._let_go_all()
        await self._pass(Query())
        while self.sums.later and self._clock.now() < until:
            await asyncio.sleep(PAUSE_S)
            await self._pass(Query(state=State.WAITING))
        await self._let_go_all()
        return self.sums

    async def _pass(self, query: Query) -> None:
        """Once through the source, in order of acceptance."""
        self.sums.later = self.sums.other = self.sums.back = self.sums.coming = 0
        self._blocked = set()
        walk = pages(self._source, query, clock=self._clock, size=ROWS)
        async with aclosing(walk) as found:
            async for page in found:
                ours = [entry for entry in page if entry.message.key not in SECRETS]
                ended = [one.message.key for one in ours if _has_ended(one)]
                for keys in _parts(ended, PAGE):
                    await self._copy(keys)
                left = [one for one in ours if one.state is State.WAITING]
                while left:
                    batch, left = left[: self._batch], left[self._batch :]
                    await self._take(batch)
                    self._went(len(batch))

    # -- what has settled ------------------------------------------------------------------------

    async def _copy(self, keys: Sequence[Key]) -> None:
        """With their answers, which only `find` gives."""
        if not keys:
            return
        entries = [one for one in await found_of(self._source, keys) if one is not None]
        parked: list[tuple[Entry, Entry]] = []
        for entry, answer in zip(entries, await self._target.accept(entries), strict=True):
            match answer:
                case New():
                    self.sums.copied += 1
                case Mismatch():
                    self.sums.other += 1
                case _ if _is_parked(answer.entry, entry):
                    parked.append((answer.entry, entry))
                case _:
                    self.sums.known += 1
        await self._end([(there, _verdict(here)) for there, here in parked])

    # -- what waits ------------------------------------------------------------------------------

    async def _take(self, entries: Sequence[Entry]) -> None:
        parked = [one for one in entries if unpark(one.trail)]
        self.sums.coming += len(parked)
        self._blocked |= {line for one in parked if (line := _line(one))}
        entries = [one for one in entries if one not in parked]
        free = [one for one in entries if _line(one) not in self._blocked]
        now = self._clock.now()
        until = Instant(now + self._term_ms)
        keys = [one.message.key for one in free]
        seized = await self._source.seize(keys, now=now, until=until) if keys else ()
        leases: list[Lease] = []
        for entry, lease in zip(free, seized, strict=True):
            if lease is None:
                self._stays(entry)
            elif _line(entry) in self._blocked:  # the one before it was being tried
                await self._give_back([lease])
            else:
                leases.append(lease)
        self.sums.later += len(entries) - len(free)
        leases = await self._without_unknown(leases)
        if leases:
            self._batch = _as_many_as_fit(leases)
            await self._hand_over(leases, now)

    def _stays(self, entry: Entry) -> None:
        self.sums.later += 1
        if line := _line(entry):
            self._blocked.add(line)

    async def _give_back(self, leases: Sequence[Lease]) -> None:
        """As it was."""
        self.sums.later += len(leases)
        entries = [lease.entry for lease in leases]
        verdicts = [Deferred(one.due_at, one.trail) for one in entries]
        await self._source.settle(list(zip(leases, verdicts, strict=True)))

    async def _without_unknown(self, leases: Sequence[Lease]) -> list[Lease]:
        """What may have been applied, and may not be repeated, has ended: it is not sent from
        elsewhere either."""
        ended = [lease for lease in leases if lease.abandoned and not lease.entry.message.repeat]
        if ended:
            now = self._clock.now()
            verdicts = [self._unknown(lease, now) for lease in ended]
            await self._source.settle(list(zip(ended, verdicts, strict=True)))
            await self._copy([lease.entry.message.key for lease in ended])
        return [lease for lease in leases if lease not in ended]

    async def _hand_over(self, leases: Sequence[Lease], now: Instant) -> None:
        arrivals = [_arrival(lease, now) for lease in leases]
        passed: list[Lease] = []
        back: list[Lease] = []
        try:
            answers = await self._target.accept(arrivals)
        except UnspoolError:
            await self._give_back(leases)
            raise
        for lease, answer in zip(leases, answers, strict=True):
            stays = self._why_it_stays(lease, answer)
            (back if stays else passed).append(lease)
        if back:
            later = self.sums.later
            await self._give_back(back)
            self.sums.later = later  # they are counted for what they are
            self._blocked |= {line for lease in back if (line := _line(lease.entry))}
        moved = [self._moved(lease, now) for lease in passed]
        kept = await self._source.settle(list(zip(passed, moved, strict=True))) if passed else ()
        gone = [lease for lease, good in zip(passed, kept, strict=True) if good]
        for lease, good in zip(passed, kept, strict=True):
            if not good:  # overtaken: the source goes on, and what is parked stays so
                self._stays(lease.entry)
        self.sums.moved += len(gone)
        await self._let_go({lease.entry.message.key: lease.entry for lease in gone})

    def _why_it_stays(self, lease: Lease, answer: Acceptance) -> bool:
        if isinstance(answer, New):
            return False
        there = answer.entry
        if there.leased_until == lease.until and there.attempt == lease.entry.attempt:
            raise Misconfigured(
                "Both names mean one spool. Nothing was moved; what was seized is free again in"
                " half a minute. Name another: unspool move --from URL --to URL"
            )
        if isinstance(answer, Mismatch):
            self.sums.other += 1
            return True
        if there.state is State.CLAIMED:
            self.sums.later += 1
            return True
        if there.state is State.BOUNCED and there.reason == Reason.MOVED:
            self.sums.back += 1
            return True
        if there.state is State.BOUNCED and there.message.nonce != lease.entry.message.nonce:
            self.sums.other += 1  # the end of another promise, under the same key
            return True
        return False

    def _moved(self, lease: Lease, now: Instant) -> Bounced:
        """Known here for longer than it can be waiting there."""
        entry = lease.entry
        end = Attempt(entry.attempt, now, 0, MOVED, Sent.NEVER.value)
        keep_until = min(NEVER, max(now, entry.message.expires_at) + self._key_ms)
        return Bounced(Reason.MOVED, Instant(keep_until), extended(entry.trail, end), now)

    def _unknown(self, lease: Lease, now: Instant) -> Bounced:
        entry = lease.entry
        end = Attempt(entry.attempt, now, 0, CUT_SHORT, Sent.MAYBE.value)
        keep_until = Instant(now + self._key_ms)
        return Bounced(Reason.UNKNOWN, keep_until, extended(entry.trail, end), now)

    # -- what is parked --------------------------------------------------------------------------

    async def _let_go_all(self) -> None:
        """All that is parked at the target: it is the source that says what becomes of it."""
        self.sums.parked = 0
        walk = pages(self._target, Query(held=True), clock=self._clock, size=PAGE)
        async with aclosing(walk) as found:
            async for page in found:
                parked = [one for one in page if unpark(one.trail)]
                if not parked:
                    continue
                sources = await found_of(self._source, [one.message.key for one in parked])
                gone: dict[Key, Entry] = {}
                ended: list[tuple[Entry, Verdict]] = []
                for there, here in zip(parked, sources, strict=True):
                    if here is None or here.message.nonce != there.message.nonce:
                        self.sums.parked += 1
                    elif here.state is State.BOUNCED and here.reason == Reason.MOVED:
                        gone[there.message.key] = there
                    elif _has_ended(here):
                        ended.append((there, _verdict(here)))
                await self._let_go(gone)
                await self._end(ended)

    async def _let_go(self, known: Mapping[Key, Entry]) -> None:
        """Due when it was due, as these entries say. What somebody else has in his hands is left
        for later, and what is not parked is nobody's to move."""
        verdicts: list[tuple[Lease, Verdict]] = []
        for lease in await self._seized_there(list(known)):
            as_was = known[lease.entry.message.key]
            parked = unpark(lease.entry.trail)
            if parked is None:
                verdicts.append((lease, Deferred(lease.entry.due_at, lease.entry.trail)))
            else:
                due_at, trail = unpark(as_was.trail) or (as_was.due_at, as_was.trail)
                verdicts.append((lease, Deferred(due_at, trail)))
        if verdicts:
            await self._target.settle(verdicts)

    async def _end(self, ends: Sequence[tuple[Entry, Verdict]]) -> None:
        """What ended at the source ends here, with the same answer."""
        verdicts = {there.message.key: verdict for there, verdict in ends}
        leases = await self._seized_there(list(verdicts))
        if leases:
            await self._target.settle([(one, verdicts[one.entry.message.key]) for one in leases])
            self.sums.copied += len(leases)

    async def _seized_there(self, keys: Sequence[Key]) -> list[Lease]:
        if not keys:
            return []
        now = self._clock.now()
        seized = await self._target.seize(keys, now=now, until=Instant(now + self._term_ms))
        return [lease for lease in seized if lease is not None]


def _parts(keys: Sequence[Key], size: int) -> list[Sequence[Key]]:
    return [keys[at : at + size] for at in range(0, len(keys), size)]


def _as_many_as_fit(leases: Sequence[Lease]) -> int:
    """Of messages as large as these, how many at a time."""
    requests = [lease.entry.message.request for lease in leases]
    largest = max(len(request.body) for request in requests if request is not None)
    return max(BATCH_MIN, min(BATCH_MAX, BATCH_BYTES // max(1, largest)))


def _has_ended(entry: Entry) -> bool:
    """And elsewhere it is worth knowing: not of what was moved, which goes on there."""
    if entry.state is State.DELIVERED:
        return True
    return entry.state is State.BOUNCED and entry.reason != Reason.MOVED


def _is_parked(there: Entry, here: Entry) -> bool:
    same = there.message.nonce == here.message.nonce
    return same and there.state is State.WAITING and unpark(there.trail) is not None


def _line(entry: Entry) -> Any:
    """None where it stands in no line."""
    message = entry.message
    return (message.destination, message.order_key) if message.order_key else None


def _arrival(lease: Lease, now: Instant) -> Entry:
    """As it is accepted at the target: whole, parked, and nobody's."""
    entry = lease.entry
    trail = park(entry.trail, due_at=entry.due_at, number=entry.attempt, now=now)
    return replace(entry, due_at=NEVER, leased_until=Instant(0), trail=trail)


def _verdict(ended: Entry) -> Verdict:
    """The verdict that ended it."""
    if ended.state is State.BOUNCED:
        return Bounced(Reason(ended.reason), ended.keep_until, ended.trail, ended.settled_at)
    answer = ended.answer
    if answer is None:  # it was kept long enough: the fact alone
        status = ended.trail[-1].status if ended.trail else 0
        answer = Response(status or 200, b"", ())
    return Delivered(
        answer, ended.keep_until, ended.answer_until, ended.trail, ended.stored,
        ended.settled_at,
    )  # fmt: skip
