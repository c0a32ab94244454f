"""The outbox: a spool at the sender's, and what sends from it in the background.

    outbox = await Outbox.open(url, …)
    await outbox.reserve(request)         on disk before it is sent (`durability="before"`)
    await outbox.settle(reserved, …)      what came of it
    await outbox.keep(request, tries)     on disk because nobody took it: Queued
    outbox.start();  await outbox.aclose()

It is the relay's machine with another end: the same spools, the same dispatcher, the same
lifecycle. Its transport is the client's own route (servers, then queues), so what is sent later
goes the same ways as what is sent now. Of several processes on one file one has the turn (`turn`);
leases keep the others out of its way when they are wrong about that.

A reserved request is an entry that waits under a lease of ours. If this process dies, the lease
runs out, or is freed by the next process that opens the file alone, and the request comes due: it
is sent again where it may be repeated, and ends as unknown where it may not (clause 4).

Promises: what is kept is found after a crash, as far as the spool says (`survives`). What cannot be
kept is refused: `Full`, `Unavailable`, in time for the caller to do something else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ..clock import Clock
from ..core.admission import Terms
from ..core.lane import Conduct
from ..core.lifecycle import (
    Bounced,
    Deferred,
    Delivered,
    Keeping,
    Policy,
    Reason,
    State,
    bounced,
    delivered,
)
from ..core.message import Attempt as Tried
from ..core.message import Destination, Instant, Key, Message, identify
from ..core.message import Response as Answered
from ..core.schedule import Pace, next_due
from ..core.scheduler import Scheduler
from ..custody import Custody
from ..dispatcher import Dispatcher
from ..errors import CannotCreate, Full, Misconfigured, Refused
from ..spools.closing import closed
from ..spools.disk import disk_free
from ..spools.open import open_spool
from ..spools.protocol import Acceptance, Duplicate, Entry, Lease, Mismatch, New, Spool
from ..transports.protocol import Transport
from ..tries import LoopClock
from .record import message, size_of, trail_of
from .request import Request
from .results import Try
from .room import Room, open_room
from .turn import Turn

log: Final = logging.getLogger("unspool.client")

LEASE_MS: Final = 30_000
ATTEMPTS_MAX: Final = 5
"""At once, and so the outbox's window. What is late must not crowd out what is asked now: with the
relay's 20 a service that had just recovered was overloaded again by what had waited for it."""
TURN_S: Final = 1.0  # how often those whose turn it is not look whether it is
RECOUNT_S: Final = 10.0
LAST_WRITES_MS: Final = 2_000  # for giving back what is just leased, with no time to drain
DISK_FREE_MIN_BYTES: Final = 16 * 1024 * 1024


class Reserved:
    """A request that is on disk, and being sent."""

    __slots__ = ("entry", "lease")

    def __init__(self, lease: Lease) -> None:
        self.lease: Final = lease
        self.entry: Final = lease.entry


class Telling:
    """Tells of keys that have a new verdict, as the dispatcher wants to."""

    def __init__(self, tell: Callable[[Key], None]) -> None:
        self._tell = tell

    def post(self, key: Key) -> None:
        self._tell(key)


class Outbox:
    def __init__(
        self,
        *,
        spool: Spool,
        custody: Custody,
        secret: bytes,
        dispatcher: Dispatcher,
        turn: Turn,
        destination: Destination,
        policy: Policy,
        clock: Clock,
        chance: Callable[[int], bytes],
        serves: Sequence[Destination],
        room: Room | None,
    ) -> None:
        self.spool: Final = spool
        self.custody: Final = custody
        self.dispatcher: Final = dispatcher
        self.destination: Final = destination
        self.survives: Final = custody.survives
        self._secret = secret
        self._turn = turn
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._serves = frozenset(serves)
        self._room = room
        self._tasks: list[asyncio.Task[None]] = []
        self._running: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        destination: Destination,
        serves: Sequence[Destination],
        transport: Transport,
        clock: Clock,
        luck: Callable[[], float],
        chance: Callable[[int], bytes],
        told: Callable[[Key], None],
        waiting_max: int,
        waiting_max_bytes: int,
        pace: Pace,
    ) -> Outbox:
        """Raises what the spool raises: `CannotCreate` on a disk that cannot be written, `Newer`
        for a file of a newer version, `Misconfigured` for a URL that names no spool."""
        turn = Turn.at(url, destination)
        spool = await open_spool(url)
        room: Room | None = None
        try:
            terms = Terms(
                survives=spool.promises.survives,
                required=0,
                backlog_max=waiting_max,
                disk_free_min_bytes=DISK_FREE_MIN_BYTES,
            )
            custody = Custody(spool=spool, terms=terms, disk_free=disk_free(url))
            secret = await custody.open(now=clock.now(), chance=chance)
            await custody.count()
            room = await open_room(url, max_bytes=waiting_max_bytes)
            policy = Policy(pace=pace, keeping=Keeping())
            dispatcher = Dispatcher(
                custody=custody,
                transport=transport,
                scheduler=Scheduler(
                    attempts_max=ATTEMPTS_MAX, conduct=Conduct(window_max=ATTEMPTS_MAX)
                ),
                board=Telling(told),
                policy=policy,
                clock=clock,
                lease_ms=LEASE_MS,
                serves=serves,
                chance=luck,
                among_others=True,
            )
        except BaseException:
            if room is not None:
                await room.aclose()
            await spool.aclose()
            raise
        return cls(
            spool=spool, custody=custody, secret=secret, dispatcher=dispatcher, turn=turn,
            destination=destination, policy=policy, clock=clock, chance=chance,
            serves=serves, room=room,
        )  # fmt: skip

    # --- taking in ---------------------------------------------------------------------------

    def key(self, name: str, scope: Sequence[bytes]) -> Key:
        """Of what the caller with these credentials calls so."""
        return identify(self._secret, scope=scope, destination=self.destination, name=name)

    async def find(self, name: str, scope: Sequence[bytes]) -> Entry | None:
        """What is known here of this name of this caller's."""
        return await self.custody.find(self.key(name, scope))

    async def reserve(
        self, request: Request, *, lifetime_ms: int
    ) -> Reserved | Duplicate | Mismatch:
        """On disk before the first byte is sent. Raises `Full`, `Unavailable`."""
        now = self._clock.now()
        until = Instant(now + max(LEASE_MS, 2 * request.deadline_ms))
        entry = Entry(
            message=self._sealed(request, now, lifetime_ms),
            state=State.WAITING,
            due_at=now,
            attempt=1,
            leased_until=until,
        )
        acceptance = await self._accept(entry, now)
        if isinstance(acceptance, New):
            return Reserved(Lease(entry=acceptance.entry, until=until))
        return acceptance

    async def keep(
        self, request: Request, tries: Sequence[Try], *, lifetime_ms: int, hint_ms: int | None
    ) -> New | Duplicate | Mismatch:
        """On disk, for later. Raises `Full`, `Unavailable`: it is not, and it is still yours."""
        now = self._clock.now()
        sealed = self._sealed(request, now, lifetime_ms)
        trail = trail_of(tries, at=now)
        due_at = self._due(sealed, trail, now, hint_ms)
        entry = Entry(
            message=sealed, state=State.WAITING, due_at=due_at, attempt=len(trail), trail=trail
        )
        return await self._accept(entry, now)

    async def _accept(self, entry: Entry, now: Instant) -> Acceptance:
        try:
            self._admit(now)
            return await self._put(entry, now)
        except Full:
            # What is here already takes no room, and is not "still yours".
            if (found := await self.custody.find(entry.message.key)) is None:
                raise
            same = found.message.fingerprint == entry.message.fingerprint
            return Duplicate(found) if same else Mismatch(found)

    async def _put(self, entry: Entry, now: Instant) -> Acceptance:
        if self._room is None:
            return await self.custody.accept(entry, now=now)
        size = size_of(entry.message)
        await self._room.take(size)
        kept = False
        try:
            acceptance = await self.custody.accept(entry, now=now)
            kept = isinstance(acceptance, New)
            return acceptance
        finally:
            self._room.took(size, kept=kept)

    async def wait_on(
        self, reserved: Reserved, tries: Sequence[Try], *, hint_ms: int | None
    ) -> bool:
        """What was reserved waits from now on. False: somebody else is at it."""
        now = self._clock.now()
        trail = trail_of(tries, at=now)
        due_at = self._due(reserved.entry.message, trail, now, hint_ms)
        return await self._settle(reserved, Deferred(due_at, trail))

    async def answered(self, reserved: Reserved, answer: Answered, tries: Sequence[Try]) -> bool:
        """What was reserved has its answer, or was taken over by somebody."""
        now = self._clock.now()
        verdict = delivered(
            answer, now=now, keeping=self._policy.keeping, trail=trail_of(tries, at=now)
        )
        return await self._settle(reserved, verdict)

    async def uncertain(self, reserved: Reserved, tries: Sequence[Try]) -> bool:
        now = self._clock.now()
        verdict = bounced(
            Reason.UNKNOWN, now=now, keeping=self._policy.keeping, trail=trail_of(tries, at=now)
        )
        return await self._settle(reserved, verdict)

    async def _settle(self, reserved: Reserved, verdict: Deferred | Delivered | Bounced) -> bool:
        """Trouble with the disk is no trouble of the caller: it has its answer. What is not written
        down comes due again, under the same key."""
        try:
            kept = await self.custody.settle(reserved.lease, verdict, now=self._clock.now())
        except Refused as error:
            log.warning(
                "what came of %s was not written down: %s", reserved.entry.message.name, error
            )
            return False
        if kept and not isinstance(verdict, Deferred):
            self.custody.backlog -= 1
        return kept

    def _admit(self, now: Instant) -> None:
        reject = self.custody.admit(now)
        if reject is not None:
            raise Full(
                f"The outbox takes no more: {reject.detail}. This request is not in it. See what"
                " waits: unspool outbox list"
            )

    def _sealed(self, request: Request, now: Instant, lifetime_ms: int) -> Message:
        return message(
            request,
            key=self.key(request.key, request.scope),
            destination=self.destination,
            now=now,
            lifetime_ms=lifetime_ms,
            nonce=self._chance(16),
        )

    def _due(
        self, sealed: Message, trail: Sequence[Tried], now: Instant, hint_ms: int | None
    ) -> Instant:
        """When it is tried next. `hint_ms` is the last answer's Retry-After."""
        pace = self._policy.pace
        return next_due(sealed, attempt=len(trail), now=now, retry_after_ms=hint_ms, pace=pace)

    # --- sending -----------------------------------------------------------------------------

    async def count(self) -> int:
        """How many wait for whom we send to. What others keep in the same file is theirs."""
        rows = await self.spool.tally([Instant(0)])
        return sum(sum(row.counts) + row.held for row in rows if row.destination in self._serves)

    @property
    def waiting(self) -> int:
        """How many wait in the file, for whomever, as last counted and since."""
        return max(0, self.custody.backlog)

    @property
    def sends(self) -> bool:
        """Is it our turn?"""
        return self._running is not None and not self._running.done()

    def start(self, *, sends: bool) -> None:
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._recount(), name="unspool outbox count"))
        if sends:
            self._tasks.append(loop.create_task(self._take_turns(), name="unspool outbox turn"))

    async def _take_turns(self) -> None:
        while not self._take():
            await asyncio.sleep(TURN_S)
        self._running = asyncio.get_running_loop().create_task(
            self.dispatcher.run(), name="unspool outbox"
        )

    def _take(self) -> bool:
        try:
            return self._turn.take()
        except CannotCreate as error:
            log.warning("%s", error)
            return False

    async def _recount(self) -> None:
        while True:
            await asyncio.sleep(RECOUNT_S)
            try:
                await self.custody.count()
            except Exception as error:  # whatever it is, it is counted again
                log.warning("what waits in the outbox could not be counted: %r", error)

    def hurry(self) -> None:
        """A server that was in trouble is well again: what waits for it may go."""
        self.dispatcher.scheduler.lane(self.destination).wake()
        self.dispatcher.wake()

    async def aclose(self, *, drain_ms: int, last: Callable[[float], Awaitable[bool]]) -> None:
        """Let what is under way end, for so long; what is left stays on disk. `last` is awaited
        when nothing is under way, unless the disk hangs. It has so many seconds, and tells whether
        the disk has answered."""
        until = LoopClock().now() + drain_ms
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.dispatcher.stop(drain_ms=drain_ms)
        try:
            if self._running is not None:
                # Left leased, what it is just leasing would look as if it had been sent.
                left_ms = until + LAST_WRITES_MS - LoopClock().now()
                await asyncio.wait([self._running], timeout=max(0, left_ms) / 1000)
                self._running.cancel()  # it waits for a disk that hangs
                await asyncio.gather(self._running, return_exceptions=True)
                await self.dispatcher.stop(drain_ms=max(0, until - LoopClock().now()))
            left_ms = until + LAST_WRITES_MS - LoopClock().now()
            if whole := await self.custody.drain(within_ms=max(500, left_ms)):
                whole = await last(max(LAST_WRITES_MS, left_ms) / 1000)
            if self._room is not None:
                await self._room.aclose()
            if not await closed(self.spool, hung=not whole):
                log.warning("the outbox does not answer, and was not waited for; it is kept")
        finally:
            self._turn.give_up()


def outbox_url(given: str) -> str:
    """A path is the SQLite spool's; anything else is a URL already."""
    if not given.strip():
        raise Misconfigured(
            "The outbox has no name. Nothing was opened. Give a path or a URL:"
            ' outbox="sqlite:///outbox.db"'
        )
    scheme, colon, _ = given.partition(":")
    if colon and scheme.isidentifier():
        return given
    return f"sqlite:///{given}"
