"""Homing: what was taken elsewhere is compared with what home has, and brought there.

    homing.compared             may anything be leased while home is up?
    homing.shut()               a custodian is back: compare before anything is leased
    homing.stir()               something was taken away: there will be work
    await homing.run()          for ever; beside the chain
    await homing.look(…)        one look at everything that lies away; True: nothing is left to do

A look reads each custodian from its beginning, in pages, asks home for the same keys, and does what
`core.custodian.MEETINGS` says. The first after a return only ends doubts (drop, teach), which is
quick, and then the gate is opened; the next ones move.

To move is: seize away, accept at home, settle away as moved. After a crash between any two of these
the message is in one place, or in both with the same nonce, and a look ends that; meanwhile the
seizure keeps it from being leased away. Only what may be repeated is moved.

Where it is at the destination just now, from the other, home's copy is seized until that attempt
has ended; then it ends likewise.

What ended as moved is kept as a note, without its request, as long as a key is known: a receipt and
a repeat find it.

Looks are paced: at most a twentieth of the time is spent on them while something stays that cannot
be moved. Everything has a limit: a page is 200 entries, and 16 requests are in memory at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from ...core.custodian import Meeting, meet
from ...core.lifecycle import Bounced, Deferred, Delivered, Reason, State, Verdict
from ...core.message import NEVER, SKEW_MS, Instant, Key, Response
from ...core.parking import unpark
from ...errors import Corrupt, Refused
from ..protocol import Entry, Lease, Mismatch, New, Query, Spool
from ..secret import SECRETS
from .custodian import Custodian
from .ranks import Ranks, moved

log: Final = logging.getLogger("unspool.chain")

PAGE: Final = 200
MOVE_MAX: Final = 16
"""Requests in memory at once: of a mebibyte each, mostly far less."""
TERM_MS: Final = 20_000
"""How long what is on its way home is out of everybody's reach, should we die."""
PAUSE_S: Final = 1.0
GATE_PAUSE_S: Final = 0.1
SHARE: Final = 20
LOOK_S: Final = 30.0
"""Where others may write too, and die: how often somebody looks."""
GATE_MAX_S: Final = 60.0
"""Longer nobody waits for the comparison: then what is due goes out, at the risk of a repeat."""


class Homing:
    def __init__(
        self, ranks: Ranks, *, now: Callable[[], Instant], keep_ms: int, ring: Callable[[], None]
    ) -> None:
        self.compared = True
        self.pause_s = PAUSE_S
        """The least rest between two looks."""
        self.share = SHARE
        """So many times as long as a look took the rest is at least."""
        self.moved = 0
        """Messages that were brought home, since we started."""
        self._ranks = ranks
        self._now = now
        self._keep_ms = keep_ms
        self._ring = ring
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._shut_at = 0.0
        self._held: dict[tuple[Key, bytes], Lease] = {}
        """Home's copies of what is being tried from elsewhere, by the message away."""

    def stir(self) -> None:
        self._work.set()

    def shut(self) -> None:
        if not self._ranks.clear:
            self.compared = False
            self._shut_at = asyncio.get_running_loop().time()
            self._hurry.set()
        self.stir()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._ranks.clear else LOOK_S):
                    await self._work.wait()
            self._work.clear()
            began = loop.time()
            try:
                done = await self._round()
            except Refused as error:
                log.info("nothing is brought home just now: %s", error)
                done = False
            except Exception:
                log.exception("bringing home was a mistake; it goes on")
                done = False
            self._mind_the_gate()
            if not done:
                self.stir()
            await self._rest(self.share * (loop.time() - began))

    async def _rest(self, seconds: float) -> None:
        """A while; not so long where deliveries wait for the next look."""
        if not self.compared:
            await asyncio.sleep(GATE_PAUSE_S)
            return
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self.pause_s, seconds)):
                await self._hurry.wait()

    async def _round(self) -> bool:
        """True: nothing is left, or it is not the time."""
        if not self._ranks.home.up or self._ranks.home.returning:
            return True  # its return will shut the gate, and stir
        if not self.compared:
            await self.look(move=False)
            self._open()
        return await self.look(move=True)

    def _mind_the_gate(self) -> None:
        if self.compared or asyncio.get_running_loop().time() - self._shut_at <= GATE_MAX_S:
            return
        log.warning("what was taken elsewhere was not compared in time; deliveries go on")
        self._open()

    def _open(self) -> None:
        self.compared = True
        self._ring()

    async def look(self, *, move: bool) -> bool:
        """Raises `Refused` where home, or the one that is looked at, cannot be asked."""
        done = True
        before = self.moved
        for index, custodian in enumerate(self._ranks.all):
            if not index or custodian.clear:
                continue
            if not custodian.up or custodian.returning:
                done = False
                continue
            seen = custodian.arrivals
            left = await self._look_at(custodian, move=move)
            if left or not move:
                done = False
            elif custodian.arrivals == seen:
                custodian.settled = True
        if self.moved > before:
            log.info("brought home: %d messages", self.moved - before)
            self._ring()
        return done

    async def _look_at(self, away: Custodian, *, move: bool) -> bool:
        """True: something is left that home does not know."""
        left = False
        after: Key | None = None
        while True:

            def browse(spool: Spool, after: Key | None = after) -> Awaitable[Sequence[Entry]]:
                return spool.browse(Query(), after=after, limit=PAGE)

            page = await away.ask(browse, patient=True)
            rows = [e for e in page if not moved(e) and e.message.key not in SECRETS]
            if rows:
                left |= await self._met(away, rows, move=move)
            self._mind_the_gate()  # the notes of a long outage are many
            if len(page) < PAGE:
                return left
            after = page[-1].message.key

    async def _met(self, away: Custodian, rows: Sequence[Entry], *, move: bool) -> bool:
        """As `_meet`; what is spoilt at either place stays where it is, and the rest goes on."""
        try:
            return await self._meet(away, rows, move=move)
        except Corrupt as error:
            if len(rows) == 1:
                log.info("%s cannot be compared: %s", rows[0].message.key, error)
                return True
        half = len(rows) // 2
        left = await self._met(away, rows[:half], move=move)
        return await self._met(away, rows[half:], move=move) or left

    async def _meet(self, away: Custodian, rows: Sequence[Entry], *, move: bool) -> bool:
        home = self._ranks.home
        keys = [entry.message.key for entry in rows]
        homes = await home.ask(lambda spool: spool.find(keys))
        now = self._now()
        todo: dict[Meeting, list[tuple[Entry, Entry | None]]] = {what: [] for what in Meeting}
        for entry, other in zip(rows, homes, strict=True):
            todo[_meeting(entry, other, now)].append((entry, other))
        left = bool(todo[Meeting.STAY])
        await self._hold(todo[Meeting.DROP])
        left |= await self._teach(away, todo[Meeting.TEACH])
        left |= await self._drop(away, [entry for entry, _ in todo[Meeting.DROP]])
        strangers = [entry for entry, _ in todo[Meeting.MOVE]]
        if not move:
            return left or bool(strangers)
        await self._copy(away, [e for e in strangers if e.state is not State.WAITING])
        waiting = [e for e in strangers if e.state is State.WAITING]
        for start in range(0, len(waiting), MOVE_MAX):
            left |= await self._move(away, waiting[start : start + MOVE_MAX])
        return left

    # --- what is done -----------------------------------------------------------------------

    async def _seize(self, at: Custodian, rows: Sequence[Entry]) -> list[Lease]:
        keys = [entry.message.key for entry in rows]
        now = self._now()
        until = Instant(now + TERM_MS)
        got = await at.ask(lambda spool: spool.seize(keys, now=now, until=until))
        return [lease for lease in got if lease is not None]

    async def _end(self, at: Custodian, ends: Sequence[tuple[Lease, Verdict]]) -> bool:
        """True: each of them counted."""
        if not ends:
            return True
        return all(await at.ask(lambda spool: spool.settle(ends), write=True))

    def _note(self, lease: Lease) -> Bounced:
        now = self._now()
        return Bounced(
            Reason.MOVED, Instant(now + self._keep_ms), trail=lease.entry.trail, settled_at=now
        )

    async def _hold(self, pairs: Sequence[tuple[Entry, Entry | None]]) -> None:
        """Out of everybody's reach at home, while it is being tried from elsewhere."""
        now = self._now()
        for entry, other in pairs:
            name = entry.message.key, entry.message.nonce
            waits = other is not None and other.state is State.WAITING
            until = Instant(entry.leased_until + SKEW_MS)
            held = self._held.get(name)
            if entry.leased_until <= now or not waits or (held and held.until >= until):
                continue
            if held is not None and await self._longer(held, until):
                self._held[name] = replace(held, until=until)
                continue
            key = entry.message.key
            [lease] = await self._ranks.home.ask(
                lambda spool, key=key, until=until: spool.seize([key], now=now, until=until)  # type: ignore[misc]
            )
            if lease is not None:
                self._held[name] = lease

    async def _longer(self, held: Lease, until: Instant) -> bool:
        """It is tried again, under another lease."""
        [good] = await self._ranks.home.ask(lambda spool: spool.renew([held], until=until))
        return good

    async def _drop(self, away: Custodian, rows: Sequence[Entry]) -> bool:
        if not rows:
            return False
        leases = await self._seize(away, rows)
        good = await self._end(away, [(lease, self._note(lease)) for lease in leases])
        ends: list[tuple[Lease, Verdict]] = []
        for lease in leases:
            held = self._held.pop((lease.entry.message.key, lease.entry.message.nonce), None)
            if held is not None:
                ends.append((held, _back(lease)))  # with the attempts that were made elsewhere
        await self._end(self._ranks.home, ends)
        return not good or len(leases) < len(rows)

    async def _copy(self, away: Custodian, rows: Sequence[Entry]) -> None:
        """How it ended: a repeat is told so at home, by whichever relay."""
        whole = await self._answered(away, rows)
        if whole:
            await self._ranks.home.ask(lambda spool: spool.accept(whole), write=True)

    async def _answered(self, away: Custodian, rows: Sequence[Entry]) -> list[Entry]:
        """The same with their answers; `browse` leaves those out."""
        if not rows:
            return []
        keys = [entry.message.key for entry in rows]
        found = await away.ask(lambda spool: spool.find(keys))
        return [entry for entry in found if entry is not None]

    async def _teach(self, away: Custodian, pairs: Sequence[tuple[Entry, Entry | None]]) -> bool:
        """Home's still open entry ends as the one away has. Its own claim needs no seizure."""
        if not pairs:
            return False
        home = self._ranks.home
        ended = {e.message.key: e for e in await self._answered(away, [e for e, _ in pairs])}
        others = [other for _, other in pairs if other is not None]
        claims = [Lease(e, e.leased_until) for e in others if e.state is State.CLAIMED]
        waiting = [entry for entry in others if entry.state is State.WAITING]
        names = [(entry.message.key, entry.message.nonce) for entry, _ in pairs]
        held = [lease for name in names if (lease := self._held.pop(name, None)) is not None]
        ours = {lease.entry.message.key for lease in held}
        waiting = [entry for entry in waiting if entry.message.key not in ours]
        seized = [*held, *(await self._seize(home, waiting) if waiting else ())]
        ends: list[tuple[Lease, Verdict]] = []
        for lease in (*claims, *seized):
            if (entry := ended.get(lease.entry.message.key)) is not None:
                ends.append((lease, _verdict(entry)))
        told = await home.ask(lambda spool: spool.settle(ends), write=True) if ends else ()
        good = {end[0].entry.message.key for end, one in zip(ends, told, strict=True) if one}
        # What waits now waits in two places, until it ends here; what home was not told waits here
        # alone: somebody else has home's entry in his hands, and may forget it.
        waits = [entry for entry, _ in pairs if entry.state is State.WAITING]
        left = await self._drop(away, [one for one in waits if one.message.key in good])
        return left or len(good) < len(pairs)

    async def _move(self, away: Custodian, rows: Sequence[Entry]) -> bool:
        leases = await self._seize(away, rows)
        if not leases:
            return True
        arriving = [_arriving(lease.entry) for lease in leases]
        try:
            got = await self._ranks.home.ask(lambda spool: spool.accept(arriving), write=True)
        except Refused:
            # It may be there as well: what is compared at its next return. It goes on from here.
            await self._end(away, [(lease, _back(lease)) for lease in leases])
            raise
        ends: list[tuple[Lease, Verdict]] = []
        stays = False
        for lease, answer in zip(leases, got, strict=True):
            other = answer.entry
            own = other.message.nonce == lease.entry.message.nonce and not moved(other)
            if isinstance(answer, New) or (own and not isinstance(answer, Mismatch)):
                ends.append((lease, self._note(lease)))
                self._ranks.lies(lease.entry, 0)
                self.moved += 1
            else:
                ends.append((lease, _back(lease)))
                stays = True
        good = await self._end(away, ends)
        return stays or not good or len(leases) < len(rows)


def _meeting(entry: Entry, other: Entry | None, now: Instant) -> Meeting:
    """What becomes of it, by what is known of its key at home."""
    message = entry.message
    waits, tried = entry.state is State.WAITING, entry.leased_until > now
    if waits and unpark(entry.trail):
        return Meeting.STAY  # whoever moves it in lets it go here
    if other is not None and moved(other):
        return Meeting.STAY  # the URLs stood in another order: this is what was moved
    what = meet(
        entry.state,
        None if other is None else other.state,
        own=other is not None and other.message.nonce == message.nonce,
        alike=other is not None and other.message.fingerprint == message.fingerprint,
        repeat=message.repeat,
        lapsed=other is not None and other.leased_until + SKEW_MS <= now,
    )
    if what is Meeting.TEACH and waits and tried:
        return Meeting.STAY  # home's would be free while this one is at the destination
    open_ = other is not None and other.state is State.WAITING and other.due_at != NEVER
    if what is Meeting.DROP and entry.due_at == NEVER and open_ and not tried:
        return Meeting.TEACH  # an operator's word; home was not there to hear it
    return what


def _arriving(entry: Entry) -> Entry:
    """As it comes home: free, with its attempts behind it."""
    return replace(entry, leased_until=Instant(0))


def _back(lease: Lease) -> Deferred:
    return Deferred(lease.entry.due_at, trail=lease.entry.trail)


def _verdict(entry: Entry) -> Verdict:
    """That by which an entry came to be as it is."""
    if entry.state is State.WAITING:
        return Deferred(entry.due_at, trail=entry.trail)
    if entry.state is State.DELIVERED:
        status = entry.trail[-1].status if entry.trail else 200
        return Delivered(
            entry.answer or Response(status=status, reason=b"", fields=()),  # no longer kept
            entry.keep_until,
            entry.answer_until,
            trail=entry.trail,
            stored=entry.stored and entry.answer is not None,
            settled_at=entry.settled_at,
        )
    return Bounced(
        Reason(entry.reason or Reason.UNKNOWN),
        entry.keep_until,
        trail=entry.trail,
        settled_at=entry.settled_at,
    )
