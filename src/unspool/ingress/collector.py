"""The collector: brings custody back, from somebody else's queue into our spool.

    collector = Collector(queue=…, called=…, custody=…, options=…, secret=…, clock=…, chance=…)
    await collector.run(told)           until the event `told`
    await collector.drain(told)         until the queue has nothing more; True: all of it is ours

    entered(payload, …) -> Entry        what the spool is to have of it; raises `Unfit`
    ruled(acceptance) -> Ruling         what becomes of what the queue gave

A handed-over message becomes what the relay would have made of it, had it come to the door and been
saved: the same key (name, scope, destination), the same fingerprint, due at once. So a request that
was tried at the door, and then handed over, is one message; and so is one that a queue gives twice.

| what the spool said | what becomes of it |
|---|---|
| it is new | completed: it is ours, synced |
| it is known, waiting or settled | completed: it was ours before |
| it is being tried just now for a sender who still waits | given back: nothing was promised yet |
| another request has its key | set aside |
| it is too old for its key to be remembered, or cannot be read | set aside |
| what it has under this key is damaged | set aside, once the spool has taken another beside it |
| nothing, or that it is full | given back |

Promises: nothing is completed before the spool has synced it (I1): kill -9 anywhere loses nothing,
and what is then given again is known by its key (I5). While custody cannot be taken nothing is
taken from the queue. After trouble it pauses, longer each time, and goes on for ever.

A relay with one worker writes no claims. What a collector in another process brings while such a
relay tries it is new to the spool; that relay attempts nothing that is being tried at its own door,
and the answer which comes there is the message's.

Bugs: of two relays with one worker each on one spool, which no setting makes, one may attempt what
the other is trying.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from random import random
from typing import Final

from ..clock import Clock
from ..core.admission import Reject
from ..core.fields import onward, values
from ..core.handover import Unfit, unpack
from ..core.idempotency import Unreadable, minted
from ..core.lifecycle import State
from ..core.message import Instant, Key, Request, Value, identify, seal
from ..custody import Custody
from ..errors import Broken, Corrupt, TooLarge, UnspoolError
from ..passage import Options
from ..queues.protocol import Queue, Taken
from ..spools.protocol import Acceptance, Entry, Mismatch, New
from ..tries import Tries

log: Final = logging.getLogger("unspool.collector")

TAKE_MAX: Final = 128
"""Messages taken at once: one sync of the spool for all of them."""
TAKE_WAIT_MS: Final = 10_000
"""How long one take waits for something to come. Each one shows that the server is alive."""
DRAINED_MS: Final = 500
"""A queue that gives nothing for so long has nothing more."""
PAUSE_LEAST_S: Final = 1.0
PAUSE_MOST_S: Final = 60.0
COUNT_S: Final = 10.0
"""So often it is counted how many wait, where that has a limit."""
REPORT_S: Final = 60.0
"""At most so often it is logged how many were collected."""


class Fate(enum.Enum):
    """What becomes of what the queue gave."""

    KEPT = "collected"
    KNOWN = "known already"
    ASIDE = "set aside"
    BACK = "given back"


class Ruling(Value, frozen=True):
    fate: Fate
    why: str = ""
    """For ASIDE and BACK, for people."""
    damaged: bool = False
    """The spool could not read what it has: of this key, or of all."""


def entered(
    payload: bytes, *, options: Options, secret: bytes, now: Instant, nonce: bytes
) -> Entry:
    """The entry of a handed-over message. Raises `Unfit`."""
    handover = unpack(payload)
    asked = handover.request
    head = onward(asked.fields)
    via = options.via.encode()
    if any(via in passed for passed in head.vias):
        raise Unfit("it has been through this relay before: a loop")
    if len(handover.key) > options.key_max_chars:
        raise Unfit(f"`key` takes at most {options.key_max_chars} characters here (key_max_chars)")
    scope = [b"\0".join(values(asked.fields, field)) for field in options.scope_fields]
    message = seal(
        Request(asked.method, asked.target, (*head.fields, (b"Via", b"1.1 " + via)), asked.body),
        key=identify(secret, scope=scope, destination=options.destination, name=handover.key),
        name=handover.key,
        destination=options.destination,
        now=now,
        lifetime_ms=min(options.lifetime_ms, handover.expires_at - now),
        nonce=nonce,
        repeat=True,  # it has a key
        order_key=handover.order_key,
    )
    return Entry(message, State.WAITING, now)


def ruled(acceptance: Acceptance) -> Ruling:
    """What the spool's answer means for the queue."""
    if isinstance(acceptance, New):
        return Ruling(Fate.KEPT)
    if isinstance(acceptance, Mismatch):
        return Ruling(Fate.ASIDE, "another request has its key")
    if acceptance.entry.state is State.CLAIMED:
        return Ruling(Fate.BACK, "it is being tried just now for a sender who waits")
    return Ruling(Fate.KNOWN)


def sorted_out(rulings: Sequence[Ruling]) -> list[Ruling]:
    """Where the spool took others, only this key is damaged: nobody shall wait behind it."""
    works = any(ruling.fate in (Fate.KEPT, Fate.KNOWN) for ruling in rulings)
    return [
        Ruling(Fate.ASIDE, ruling.why) if ruling.damaged and works else ruling for ruling in rulings
    ]


def too_old(name: str, *, now: Instant, key_ms: int) -> str:
    """Why a key that nobody knows is not taken in; empty where it may be."""
    found = minted(name, now=now, key_ms=key_ms)
    if found is None:
        return ""
    if isinstance(found, Unreadable):
        return found.why
    return "its key was made longer ago than keys are remembered"


def pause_s(failures: int, *, luck: float) -> float:
    """How long to leave off after so many failures in a row; `luck` is from 0 to 1."""
    longest: float = min(PAUSE_MOST_S, PAUSE_LEAST_S * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + luck / 2)


class Collector:
    def __init__(
        self,
        *,
        queue: Queue,
        called: str,
        custody: Custody,
        options: Options,
        secret: bytes,
        clock: Clock,
        chance: Callable[[int], bytes],
        tries: Tries | None = None,
        exacting: bool = False,
        luck: Callable[[], float] = random,
    ) -> None:
        """`called`: the queue's URL as it may be shown. `tries`: those of the relay in this
        process, which writes no claims. `exacting`: a queue that cannot be used from the start, and
        that only a person can mend, is raised as `Broken`; later, and otherwise, it is trouble."""
        self.counts: Final = dict.fromkeys(Fate, 0)
        self._queue = queue
        self._called = called
        self._custody = custody
        self._options = options
        self._secret = secret
        self._clock = clock
        self._chance = chance
        self._tries = tries
        self._exacting = exacting
        self._counts = tries is None and custody.terms.backlog_max > 0
        self._count_at = 0.0
        self._luck = luck
        self._failures = 0
        self._trouble = ""
        self._told_of = 0
        self._tell_at = 0.0

    # --- the loop ---------------------------------------------------------------------------

    async def run(self, told: asyncio.Event) -> None:
        """Collect until `told`. What is under way then is finished; what is held is given back."""
        async with self._listening(told) as ear:
            while not told.is_set():
                await self._round(ear, wait_ms=TAKE_WAIT_MS)
                if self._failures:
                    rest_s = pause_s(self._failures, luck=self._luck())
                    await asyncio.wait([ear], timeout=rest_s)

    async def drain(self, told: asyncio.Event, *, wait_ms: int = DRAINED_MS) -> bool:
        """Collect what there is. False: something was left, and the log says why."""
        async with self._listening(told) as ear:
            while await self._round(ear, wait_ms=wait_ms) and not self._failures:
                pass
        return not self._failures and not told.is_set()

    @contextlib.asynccontextmanager
    async def _listening(self, told: asyncio.Event) -> AsyncIterator[asyncio.Task[bool]]:
        ear = asyncio.create_task(told.wait())
        try:
            yield ear
        finally:
            ear.cancel()
            await self._queue.aclose()
            self._report(last=True)

    async def _round(self, ear: asyncio.Task[bool], *, wait_ms: int) -> int:
        """Take some, accept them, tell the queue. How many the queue gave."""
        try:
            reject = await self._rejected()
        except UnspoolError as error:
            self._in_trouble(f"{error}")
            return 0
        if reject is not None:
            self._in_trouble(f"nothing is taken: {reject.detail}. What is queued stays there")
            return 0
        taking = asyncio.create_task(self._queue.take(limit=TAKE_MAX, wait_ms=wait_ms))
        try:
            await asyncio.wait([taking, ear], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not taking.done():
                taking.cancel()
        try:
            taken = await taking
        except asyncio.CancelledError:
            if not ear.done():
                raise
            return 0
        except UnspoolError as error:
            if self._exacting and isinstance(error, Broken):
                raise
            self._in_trouble(f"{error}")
            return 0
        self._exacting = False
        if not taken:
            self._all_well()
            return 0
        rulings = await asyncio.gather(*(self._kept(one.payload) for one in taken))
        await self._tell(taken, sorted_out(rulings))
        return len(taken)

    async def _rejected(self) -> Reject | None:
        """Why custody cannot be taken now. In a process of our own nobody else counts how many
        wait, while relays elsewhere accept and deliver."""
        reject = self._custody.admit(self._clock.now())
        began = asyncio.get_running_loop().time()
        if self._counts and (reject is not None or began >= self._count_at):
            await self._custody.count()
            ended = asyncio.get_running_loop().time()
            self._count_at = ended + max(COUNT_S, 50 * (ended - began))
            reject = self._custody.admit(self._clock.now())
        return reject

    async def _kept(self, payload: bytes) -> Ruling:
        """Have the spool keep it, synced; or why not."""
        now = self._clock.now()
        try:
            entry = entered(
                payload, options=self._options, secret=self._secret, now=now, nonce=self._chance(16)
            )
        except Unfit as error:
            return Ruling(Fate.ASIDE, f"{error}")
        except Exception as error:  # it would be the same each time: nobody shall wait behind it
            log.exception("a handed-over message met a mistake of ours")
            return Ruling(Fate.ASIDE, f"a mistake of ours: {type(error).__name__}")
        key, print_ = entry.message.key, entry.message.fingerprint
        turn = None
        if self._tries is not None and (turn := self._tries.begin_now(key, print_)) is None:
            return Ruling(Fate.BACK, "it is being tried just now for a sender who waits")
        try:
            old = too_old(entry.message.name, now=now, key_ms=self._options.policy.keeping.key_ms)
            if old and not await self._known(key):
                return Ruling(Fate.ASIDE, old)
            return ruled(await self._custody.accept(entry, now=now))
        except TooLarge as error:
            return Ruling(Fate.ASIDE, f"{error}")
        except Corrupt as error:
            return Ruling(Fate.BACK, f"{error}", damaged=True)
        except UnspoolError as error:
            return Ruling(Fate.BACK, f"{error}")
        finally:
            if turn is not None:
                turn.ends()

    async def _known(self, key: Key) -> bool:
        return await self._custody.find(key) is not None

    async def _tell(self, taken: Sequence[Taken], rulings: Sequence[Ruling]) -> None:
        """Tell the queue what became of it. What it does not hear it gives again."""
        by_fate: dict[Fate, list[Taken]] = {fate: [] for fate in Fate}
        for one, ruling in zip(taken, rulings, strict=True):
            by_fate[ruling.fate].append(one)
            self.counts[ruling.fate] += 1
        try:
            await self._queue.complete([*by_fate[Fate.KEPT], *by_fate[Fate.KNOWN]])
            if by_fate[Fate.ASIDE]:
                await self._queue.set_aside(by_fate[Fate.ASIDE])
                self._say_aside(taken, rulings)
        except UnspoolError as error:
            self._in_trouble(f"{error}")
            # What it has not heard of is ours all the same: it is given again, and known.
            await self._queue.give_back(taken)
            return
        if not by_fate[Fate.BACK]:
            self._all_well()
        if back := by_fate[Fate.BACK]:
            await self._queue.give_back(back)
            why = next(ruling.why for ruling in rulings if ruling.fate is Fate.BACK)
            self._in_trouble(f"{len(back)} were given back: {why}")
        self._report()

    # --- what people hear -------------------------------------------------------------------

    def _say_aside(self, taken: Sequence[Taken], rulings: Sequence[Ruling]) -> None:
        for one, ruling in zip(taken, rulings, strict=True):
            if ruling.fate is Fate.ASIDE:
                log.error(
                    "%s from %s was set aside: %s. It is kept there, whole, under the name %s",
                    one.name, self._called, ruling.why, self._queue.promises.aside,
                )  # fmt: skip

    def _in_trouble(self, what: str) -> None:
        self._failures += 1
        # The same again every minute is no news.
        log.log(
            logging.DEBUG if what == self._trouble else logging.WARNING,
            "collecting from %s: %s", self._called, what,
        )  # fmt: skip
        self._trouble = what

    def _all_well(self) -> None:
        if self._trouble:
            log.info("collecting from %s goes on", self._called)
        self._trouble = ""
        self._failures = 0

    def _report(self, *, last: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        total = sum(self.counts.values())
        if total == self._told_of or (now < self._tell_at and not last):
            return
        self._told_of = total
        self._tell_at = now + REPORT_S
        counts = ", ".join(f"{fate.value}: {count}" for fate, count in self.counts.items() if count)
        log.info("from %s: %s", self._called, counts)
