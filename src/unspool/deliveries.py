"""Deliveries: leased messages on their way, and what becomes of each.

    deliveries.start(lease, now)        an attempt: it is under way when this returns
    deliveries.end(lease, verdict)      a verdict without an attempt
    await deliveries.stop(drain_ms=…)   let them end; give up what takes longer

What becomes of a message is the lifecycle's to say; here is only the doing. An attempt on a
connection that is at hand costs no task, no future and no timer: its answer is judged in the middle
of the read that brought it, and the verdict joins what is written at the end of that turn. Every
other attempt has a task.

A place in the window is free as soon as there is an answer; the verdict is written down meanwhile,
again and again while the lease is ours. What is given up is not settled: its lease runs out, and it
comes due by itself, for it may have been applied. What was cut off while it still waited for a
connection was never sent: that is given back.

An attempt never outlives its lease (I4): whatever the transport promises, it is cut short before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from .clock import Clock
from .core.lifecycle import Bounced, Deferred, Delivered, Policy, Verdict, decide
from .core.message import (
    Answer,
    Cause,
    Destination,
    Failure,
    Instant,
    Reader,
    Request,
    Response,
    Sent,
)
from .core.outcome import Weather, cause_of, judge, retry_after
from .core.scheduler import Scheduler
from .custody import Custody
from .errors import Refused
from .gather import gather
from .settling import Settling
from .spools.protocol import SKEW_MS, Lease
from .transports.protocol import Begun, Transport
from .transports.timed import asked

log: Final = logging.getLogger("unspool.dispatcher")

SPOOL_TROUBLE_MS: Final = 1_000
WATCH_S: Final = 0.5
"""How often to look whether a lease has run out under its attempt."""

_LATE: Final = Failure(Cause.HTTP_RESPONSE_TIMEOUT, "no answer within its lease", Sent.MAYBE)
_UNSENT: Final = Failure(Cause.CONNECTION_TIMEOUT, "no connection within its lease", Sent.NEVER)


class Deliveries:
    """See the head of this file."""

    def __init__(
        self,
        *,
        custody: Custody,
        transport: Transport,
        scheduler: Scheduler,
        policy: Policy,
        clock: Clock,
        lease_ms: int,
        chance: Callable[[], float],
        freed: Callable[[Destination], None],
        settled: Callable[[Lease], None],
    ) -> None:
        """`freed`: there is a place in this window. `settled`: this has a new verdict; or it has
        not, as far as anybody can tell, and comes due by itself."""
        self.delivered = self.bounced = self.deferred = 0
        self.ended = 0
        """Attempts that have had an answer, of whatever kind."""
        self.unwritten = 0
        """Verdicts that the spool did not take before we had to end."""
        self._custody: Final = custody
        self._transport: Final = transport
        self._prompt: Final = getattr(transport, "begin", None)
        self._scheduler: Final = scheduler
        self._policy: Final = policy
        self._clock: Final = clock
        self._lease_ms: Final = lease_ms
        self._chance: Final = chance
        self._freed: Final = freed
        self._settled: Final = settled
        self._prompts: dict[Prompted, Begun] = {}
        self._tasks: dict[asyncio.Task[None], tuple[Lease, list[bool]]] = {}
        self._verdicts: set[Settling] = set()
        self._watching: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Event | None = None

    # --- attempts ---------------------------------------------------------------------------

    def start(self, lease: Lease, now: Instant) -> None:
        """Begin an attempt; its lane has been told."""
        message = lease.entry.message
        assert message.request is not None, "I1: a message in custody without its request"
        number = (b"Unspool-Attempt", b"%d" % lease.entry.attempt)
        request = message.request
        onwards = Request(request.method, request.target, [*request.fields, number], request.body)
        if self._prompt is not None:
            prompted = Prompted(self, lease, now)
            try:
                begun = self._prompt(onwards, prompted, repeat=message.repeat)
            except Exception as error:
                prompted(_mistake(error))
                return
            if begun is not None:
                if not prompted.answered:
                    self._prompts[prompted] = begun
                    self._watch()
                return
        sent: list[bool] = []
        work = partial(self._asked, onwards, repeat=message.repeat, sent=sent)
        self._in_a_task(lease, now, work, sent)

    def _in_a_task(
        self, lease: Lease, began_at: Instant, work: Callable[[], Awaitable[Answer]],
        sent: list[bool],
    ) -> None:  # fmt: skip
        """`sent` is empty for as long as no byte of it can have gone out."""
        task = asyncio.create_task(self._attempt(lease, began_at, work, sent))
        self._tasks[task] = lease, sent
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._look_quiet()

    async def _attempt(
        self, lease: Lease, began_at: Instant, work: Callable[[], Awaitable[Answer]],
        sent: list[bool],
    ) -> None:  # fmt: skip
        """An attempt, or what is left of it, and its answer."""
        left_ms = max(0, lease.until - SKEW_MS - self._clock.now())
        answer: Answer
        try:
            # However many servers there are to try: when the lease ends, another may begin (I4).
            async with asyncio.timeout(left_ms / 1000):
                answer = await work()
        except TimeoutError:
            answer = _LATE if sent else _UNSENT
        except Exception as error:
            answer = _mistake(error)
        self._answered(lease, began_at, answer)

    async def _asked(self, onwards: Request, *, repeat: bool, sent: list[bool]) -> Answer:
        answer = await asked(
            self._transport, onwards, repeat=repeat, sending=lambda: sent.append(True)
        )
        if isinstance(answer, Response) and answer.rest is not None:
            return await self._whole(answer, answer.rest)
        return answer

    async def _whole(self, answer: Response, rest: Reader) -> Answer:
        most = self._policy.keeping.answer_max_bytes
        try:
            whole = await gather(answer, max_bytes=most, timeout_ms=self._lease_ms // 3)
        except BaseException:
            rest.close()  # its lease is over, or we are
            raise
        if isinstance(whole, Response) and whole.rest is not None:
            whole.rest.close()  # too large to keep: the fact and the head are kept
        return whole

    def prompted(self, prompted: Prompted, answer: Answer) -> None:
        """An attempt without a task has its answer."""
        self._prompts.pop(prompted, None)
        lease, began_at = prompted.lease, prompted.began_at
        if isinstance(answer, Response) and answer.rest is not None:
            self._in_a_task(lease, began_at, partial(self._whole, answer, answer.rest), [True])
        else:
            self._answered(lease, began_at, answer)

    def _answered(self, lease: Lease, began_at: Instant, answer: Answer) -> None:
        entry = lease.entry
        message = entry.message
        now = self._clock.now()
        judgement = judge(answer)
        lane = self._scheduler.lane(message.destination)
        if judgement.weather is Weather.GOOD:
            lane.ended(judgement, key=message.key, now=now, chance=0.0)
        else:
            lane.ended(
                judgement,
                key=message.key,
                now=now,
                chance=self._chance(),
                hint_ms=retry_after(answer, now=now),
                detail=cause_of(answer)[1],
            )
        self.ended += 1
        self._freed(message.destination)  # the settle need not be waited for
        verdict = decide(
            message,
            answer,
            attempt=entry.attempt,
            trail=entry.trail,
            began_at=began_at,
            now=now,
            policy=self._policy,
            judgement=judgement,
        )
        self.end(lease, verdict)

    def _watch(self) -> None:
        if self._watching is None:
            loop = asyncio.get_running_loop()
            self._watching = loop.call_later(WATCH_S, self._look_late)

    def _look_late(self) -> None:
        """Has a lease run out?"""
        self._watching = None
        ends = self._clock.now() + SKEW_MS + int(WATCH_S * 1000)
        for prompted, begun in list(self._prompts.items()):
            if prompted.lease.until <= ends:
                begun.abandon()
                prompted(_LATE)
        if self._prompts:
            self._watch()

    # --- verdicts ---------------------------------------------------------------------------

    def end(
        self, lease: Lease, verdict: Verdict, *, then: Callable[[], None] | None = None
    ) -> None:
        """Write the verdict down; `then`, when it is, or when that is hopeless."""
        settling = Settling(self, lease, verdict, then)
        self._verdicts.add(settling)
        self.write(settling)

    async def end_all(self, ends: Iterable[tuple[Lease, Verdict]]) -> None:
        """Write these down, and wait until it is done."""
        loop = asyncio.get_running_loop()
        waits = []
        for lease, verdict in ends:
            wait = loop.create_future()
            self.end(lease, verdict, then=partial(wait.set_result, None))
            waits.append(wait)
        if waits:
            await asyncio.wait(waits)

    def write(self, settling: Settling) -> None:
        """Give it to the spool: once more, perhaps."""
        settling.told = False
        settling.again = None
        try:
            self._custody.settle_for(settling, settling.lease, settling.verdict)
        except Refused as error:
            settling.set_exception(error)

    def wrote(self, settling: Settling, kept: bool) -> None:
        if kept:
            self._count(settling.verdict)
        self._done(settling)

    def failed(self, settling: Settling, error: Exception) -> None:
        now = self._clock.now()
        if not isinstance(error, Refused):
            log.error("a verdict could not be written; it comes due again", exc_info=error)
            self._done(settling)
            return
        self._custody.failed(error, now)
        if now >= settling.lease.until or settling.last:
            self.unwritten += settling.last
            log.warning("a verdict could not be written; it comes due again: %s", error)
            self._done(settling)
            return
        loop = asyncio.get_running_loop()
        settling.again = loop.call_later(SPOOL_TROUBLE_MS / 1000, self.write, settling)

    def lost(self, settling: Settling) -> None:
        """Nobody will tell what became of it."""
        self._done(settling)

    def _done(self, settling: Settling) -> None:
        self._verdicts.discard(settling)
        self._settled(settling.lease)
        if settling.then is not None:
            settling.then()
        self._look_quiet()

    def _count(self, verdict: Verdict) -> None:
        if isinstance(verdict, Deferred):
            self.deferred += 1
            return
        self._custody.backlog -= 1
        if isinstance(verdict, Delivered):
            self.delivered += 1
        else:
            assert isinstance(verdict, Bounced)
            self.bounced += 1

    # --- the end ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._prompts or self._tasks or self._verdicts)

    def _look_quiet(self) -> None:
        if self._quiet is not None and not self.busy:
            self._quiet.set()

    async def stop(self, *, drain_ms: int) -> None:
        """Let what is under way end for `drain_ms`; give up the rest, unsettled."""
        if self.busy:
            quiet = self._quiet = asyncio.Event()
            try:
                async with asyncio.timeout(drain_ms / 1000):
                    await quiet.wait()
            except TimeoutError:
                await self._give_up()
            finally:
                self._quiet = None
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _give_up(self) -> None:
        for prompted, begun in list(self._prompts.items()):
            prompted.answered = True
            begun.abandon()
        self._prompts.clear()
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task, (lease, sent) in tasks.items():
            if task.cancelled() and not sent:  # given back: nobody can have had it
                self.end(lease, Deferred(lease.entry.due_at, lease.entry.trail))
        verdicts, self._verdicts = self._verdicts, set()
        for settling in verdicts:
            settling.last = True  # what is being written is; the spool is left alone after that
            if settling.again is not None:
                settling.again.cancel()
                self.unwritten += 1
                self._done(settling)


class Prompted:
    """An attempt without a task: whom the transport tells."""

    __slots__ = ("_deliveries", "answered", "began_at", "lease")

    def __init__(self, deliveries: Deliveries, lease: Lease, began_at: Instant) -> None:
        self._deliveries = deliveries
        self.lease = lease
        self.began_at = began_at
        self.answered = False

    def __call__(self, answer: Answer) -> None:
        if self.answered:
            if isinstance(answer, Response) and answer.rest is not None:
                answer.rest.close()  # nobody wants it any longer
            return
        self.answered = True
        try:
            self._deliveries.prompted(self, answer)
        except Exception:
            log.exception("an attempt ended by our own mistake; it comes due again")


def _mistake(error: Exception) -> Failure:
    """Our own mistakes are failures too: they must not lose a message."""
    log.error("an attempt failed by our own mistake", exc_info=error)
    return Failure(Cause.PROXY_INTERNAL_ERROR, type(error).__name__, Sent.MAYBE)
