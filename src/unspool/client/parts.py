"""The parts of a client, made and wired together. The one place that constructs.

    parts = await open_parts(options, …);  await parts.aclose()

`Background` is the outbox's transport: one pass of the route for what the dispatcher wants sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from random import random
from typing import Final

import msgspec

from ..chance import Chance
from ..core.message import Answer, Cause, Destination, Failure, Key, Sent
from ..core.message import Request as Wire
from ..core.message import Response as Answered
from ..core.outcome import is_unknown
from ..core.schedule import Pace
from ..spools.protocol import Entry
from ..transports.http import HttpTransport, Limits
from ..transports.protocol import Transport
from .events import News, OnEvent
from .handover import Foreign, Relay, Taker
from .options import RELAYS, Options
from .outbox import LEASE_MS, Outbox
from .passing import Carried, End, carry
from .plan import Terms
from .record import number_of, restored, result_of, taken_by
from .results import Fate, Queued, Settled
from .route import Route, Server
from .watch import Watch

PASS_MAX_MS: Final = LEASE_MS // 2
"""A pass in the background ends before its lease does (I4)."""


class Background:
    """The route, as the dispatcher's transport."""

    tells: Final = True

    def __init__(self, route: Route, *, deadline_ms: int) -> None:
        self._route = route
        self._deadline_ms = min(deadline_ms, PASS_MAX_MS)

    async def attempt(
        self, wire: Wire, /, *, repeat: bool, sending: Callable[[], None] | None = None
    ) -> Answer:
        now = self._route.now()
        request = restored(wire, repeat=repeat, now=now, deadline_ms=self._deadline_ms)
        carried = await carry(
            self._route, request, deadline_ms=self._deadline_ms, outbox=False,
            first=number_of(wire), background=True, sending=sending or (lambda: None),
        )  # fmt: skip
        return answer_of(carried)

    async def aclose(self) -> None:
        """The route is closed by whoever opened it."""


def answer_of(carried: Carried) -> Answer:
    """How a pass ended, as the lifecycle reads it."""
    answer = carried.answer
    match carried.end:
        case End.ANSWERED:
            assert answer is not None
            return answer
        case End.TAKEN:
            assert isinstance(answer, Answered)
            return taken_by(answer, carried.by)
        case End.UNCERTAIN:
            if answer is not None and is_unknown(answer):
                return answer
            return Failure(Cause.HTTP_RESPONSE_INCOMPLETE, carried.why, Sent.MAYBE)
    if answer is None:
        return Failure(Cause.CONNECTION_LIMIT_REACHED, carried.why, Sent.NEVER)
    if carried.maybe and isinstance(answer, Failure) and answer.sent is Sent.NEVER:
        return msgspec.structs.replace(answer, sent=Sent.MAYBE)
    return answer


class Parts:
    def __init__(
        self, *, route: Route, outbox: Outbox | None, watch: Watch | None, drain_ms: int
    ) -> None:
        self.route: Final = route
        self.outbox: Final = outbox
        self.watch: Final = watch
        self._drain_ms = drain_ms
        self._watching: asyncio.Task[None] | None = None

    def start(self, *, sends: bool) -> None:
        if self.outbox is not None and self.watch is not None:
            self.outbox.start(sends=sends)
            loop = asyncio.get_running_loop()
            self._watching = loop.create_task(self.watch.run(), name="unspool outbox watch")

    async def aclose(self) -> None:
        try:
            if self.outbox is not None and self.watch is not None:
                await self.outbox.aclose(drain_ms=self._drain_ms, last=self.watch.last)
        finally:
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
            if self.watch is not None:
                self.watch.close()
            await self.route.aclose()


async def open_parts(options: Options, *, tell: OnEvent) -> Parts:
    """Everything, or nothing and the reason. Raises what opening the outbox or a queue does."""
    make = options.transport or _maker(options)
    outboxes: list[Outbox] = []
    watches: list[Watch] = []
    route = Route(
        servers=[Server(one, make(one)) for one in options.servers],
        takers=[_taker(one, make) for one in options.queues],
        terms=Terms(attempts_max=options.attempts, queue_ms=options.queue_ms),
        clock=options.clock,
        luck=options.luck,
        tell=tell,
        hedge=options.hedge,
        answer_max_bytes=options.answer_max_bytes,
        recovered=lambda: outboxes[0].hurry() if outboxes else None,
    )
    try:
        for taker in route.takers:
            if isinstance(taker, Foreign):
                await taker.open()  # a URL that names no queue is said now, not in need
        if options.outbox is None:
            return Parts(route=route, outbox=None, watch=None, drain_ms=options.drain_ms)
        name = Destination(options.destination or options.servers[0])
        outbox = await Outbox.open(
            options.outbox,
            destination=name,
            serves=tuple(dict.fromkeys([name, *map(Destination, options.servers)])),
            transport=Background(route, deadline_ms=round(options.deadline * 1000)),
            clock=options.clock,
            luck=options.luck,
            chance=_bytes_of(options.luck),
            told=lambda key: _post(watches, key),
            waiting_max=options.outbox_max,
            waiting_max_bytes=options.outbox_max_bytes,
            pace=Pace(least_ms=options.backoff_least_ms, most_ms=options.backoff_most_ms),
        )
    except BaseException:
        await route.aclose()
        raise
    outboxes.append(outbox)
    watch = Watch(custody=outbox.custody, read=_reader(route, outbox), told=_news(options, tell))
    watches.append(watch)
    return Parts(route=route, outbox=outbox, watch=watch, drain_ms=options.drain_ms)


def _bytes_of(luck: Callable[[], float]) -> Callable[[int], bytes]:
    """Where random bytes come from: the machine; or a test's own luck, to be repeatable."""
    if luck is random:
        return Chance()
    return lambda count: bytes(int(luck() * 256) for _ in range(count))


def _post(watches: list[Watch], key: Key) -> None:
    for watch in watches:
        watch.posted(key)


def _reader(route: Route, outbox: Outbox) -> Callable[[Entry], Fate | Queued]:
    def read(entry: Entry) -> Fate | Queued:
        return result_of(entry, survives=outbox.survives, receipt_from=route.receipt_from)

    return read


def _news(options: Options, tell: OnEvent) -> Callable[[Settled], None]:
    from .events import log

    def told(settled: Settled) -> None:
        tell(News(settled))
        if options.on_settled is None:
            return
        try:
            options.on_settled(settled)
        except Exception:
            log.exception("on_settled made a mistake; what became of %s is as it is", settled.key)

    return told


def _taker(url: str, make: Callable[[str], Transport]) -> Taker:
    return Relay(url, make(url)) if url.startswith(RELAYS) else Foreign(url)


def _maker(options: Options) -> Callable[[str], Transport]:
    limits = Limits(
        connections_max=options.connections_max,
        connect_ms=options.connect_ms,
        keep_max_bytes=min(options.answer_max_bytes, 16 * 1024 * 1024),
        first_byte_ms=PATIENCE_MS,
        idle_ms_between_bytes=PATIENCE_MS,
        total_ms=PATIENCE_MS,
    )

    def make(origin: str) -> Transport:
        tls: ssl.SSLContext | None = options.tls if origin.startswith("https://") else None
        return HttpTransport(origin, limits=limits, tls=tls)

    return make


PATIENCE_MS: Final = 10 * 60_000
"""Of the transport; the deadline of the call is shorter as a rule, and is what counts."""
