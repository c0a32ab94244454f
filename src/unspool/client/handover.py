"""Handing over: a request is offered to a relay, or to somebody else's queue.

    await taker.take(request, …) -> Handed      taken, answered, or not, and how sure that is

A relay (an http or https URL) is asked to save it first (`Prefer: respond-async`), which takes it
milliseconds; a 202 with a receipt of ours is custody, and any other 202 is just an answer. Where it
knows the key already, it gives the answer that it has: so a repeat that was long delivered ends
here.

A queue (`gearman:`, `s3:`, …; queues/protocol.py) gets the bytes of `core/handover.py`. It is
opened at its first use, and anew after trouble with opening it.

Whoever takes a request with a key repeats it under that key. So where the servers do not know keys,
a relay gets it without one, which it then never sends twice; and a queue, which takes nothing
without a key, does not get it at all.

Promises: raises for nothing that a network or a server does. What a relay refuses by one of its own
problems was not taken; what it passes on from the service is the service's answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from ..core import handover
from ..core.message import Answer, Cause, Failure, Instant, Sent, Value
from ..core.message import Request as Wire
from ..core.message import Response as Answered
from ..core.outcome import Outcome, is_busy, is_unknown, judge
from ..core.urls import concealed
from ..errors import Full, Unacceptable, UnspoolError
from ..problems import PREFIX, STILL_YOURS
from ..queues.open import open_queue
from ..queues.protocol import Queue
from ..transports.protocol import Transport
from ..transports.timed import timed
from .receipt import Place, Receipt, is_ours, receipt_path
from .request import Request

log: Final = logging.getLogger("unspool.client")

_PROBLEMS: Final = f"{PREFIX}problems/".encode()
ANSWERS: Final = frozenset({"key-reused", "expired", "bounced", "settled", "outcome-unknown"})
"""Problems of a relay that are the answer: another queue would not know better."""
SURVIVES_BYTES: Final = 4096


class Handed(Value, frozen=True):
    """What came of an offer."""

    sent: Sent
    """Of the offer, where it was not taken: can it have been all the same?"""
    why: str = ""
    receipt_of: Answered | None = None
    """The answer by which it was taken."""
    answer: Answered | None = None
    """An answer that stands, instead."""


class Taker(Protocol):
    """Somebody who may take a request over."""

    @property
    def where(self) -> str:
        """For people; without a password."""
        ...

    async def take(self, request: Request, *, now: Instant, timeout_ms: int) -> Handed: ...

    def receipt(
        self, request_key: str, taken: Answered, *, elsewhere: Sequence[Place] = ()
    ) -> Receipt:
        """The receipt of what was taken by this answer; also of one that was read from a disk.
        `elsewhere`: who else may have it one day."""
        ...

    async def aclose(self) -> None: ...


class Relay:
    """A relay of ours, over HTTP."""

    def __init__(self, where: str, transport: Transport) -> None:
        self.where: Final = where
        self._transport: Final = transport

    async def take(self, request: Request, *, now: Instant, timeout_ms: int) -> Handed:
        keyed = request.keyed and request.kind.repeat
        wire = request.wire if keyed else msgspec.structs.replace(request, keyed=False).wire
        extra = [(b"Prefer", b"respond-async")]
        extra.append((b"Unspool-Lifetime", b"%d" % max(1, request.lifetime_ms // 1000)))
        if request.order:
            extra.append((b"Unspool-Order", request.order.encode()))
        asked = Wire(wire.method, wire.target, (*wire.fields, *extra), wire.body)
        answer = await attempt(
            self._transport, asked, repeat=request.kind.repeat, timeout_ms=timeout_ms
        )
        return read(answer)

    def receipt(
        self, request_key: str, taken: Answered, *, elsewhere: Sequence[Place] = ()
    ) -> Receipt:
        return receipt_at(self.place(), request_key, taken, elsewhere=elsewhere)

    def place(self) -> Place:
        return place_at(self.where, self._transport)

    async def aclose(self) -> None:
        await self._transport.aclose()


def place_at(where: str, transport: Transport) -> Place:
    """Somebody who may be asked for receipts."""

    async def ask(request: Wire, *, timeout_ms: int) -> Answer:
        return await attempt(transport, request, repeat=True, timeout_ms=timeout_ms)

    return Place(where, ask)


def receipt_at(
    place: Place, key: str, taken: Answered, *, elsewhere: Sequence[Place] = ()
) -> Receipt:
    """The receipt that a relay of ours gave."""
    return Receipt(
        where=place.where,
        key=key,
        path=receipt_path(taken),
        survives=_survives(taken),
        ask=place.ask,
        elsewhere=elsewhere,
    )


def _survives(taken: Answered) -> str:
    body = taken.body[:SURVIVES_BYTES]
    for grade in ("machine", "power", "process", "nothing"):
        if b'"survives":"%b"' % grade.encode() in body:
            return grade
    return ""


def read(answer: Answer) -> Handed:
    """What a relay's answer to an offer means. Total."""
    if isinstance(answer, Failure):
        return Handed(answer.sent, answer.detail or str(answer.cause))
    if receipt_path(answer):
        return Handed(Sent.YES, receipt_of=answer)
    if is_busy(answer):
        return Handed(Sent.REFUSED, "the key is being tried there just now")
    judgement = judge(answer)
    if is_ours(answer) and (named := _problem(answer)):
        # The relay itself speaks. What it refuses was not taken (the problems table says so).
        if named in ANSWERS or is_unknown(answer):
            return Handed(Sent.YES, answer=answer)
        maybe = judgement.sent is Sent.MAYBE and named not in STILL_YOURS
        return Handed(Sent.MAYBE if maybe else Sent.REFUSED, f"refused: {named}")
    if judgement.outcome is Outcome.ERROR:
        return Handed(judgement.sent, f"{answer.status}: {judgement.why}")
    return Handed(Sent.YES, answer=answer)


def _problem(answer: Answered) -> str:
    """The name of a problem of ours; empty where it is none."""
    _, found, rest = answer.body[:SURVIVES_BYTES].partition(_PROBLEMS)
    return rest.partition(b'"')[0].decode("latin-1") if found else ""


def still_ours(answer: Answer) -> bool:
    """Does a relay in front of the server say that it did nothing, and that we still have it?"""
    return isinstance(answer, Answered) and is_ours(answer) and _problem(answer) in STILL_YOURS


class Foreign:
    """Somebody else's queue."""

    def __init__(self, url: str, *, opener: Callable[[str], Awaitable[Queue]] = open_queue) -> None:
        self.where: Final = concealed(url)
        self._url: Final = url
        self._opener: Final = opener
        self._opening: asyncio.Task[Queue] | None = None

    async def open(self) -> Queue:
        """The queue. Raises what opening it does, to everybody who waits for it."""
        if self._opening is None or (self._opening.done() and not _well(self._opening)):
            self._opening = asyncio.ensure_future(self._opener(self._url))
        return await asyncio.shield(self._opening)

    async def take(self, request: Request, *, now: Instant, timeout_ms: int) -> Handed:
        if not request.keyed:
            return Handed(Sent.NEVER, "a queue takes no request without a key")
        if not request.kind.repeat:
            why = (
                "whoever takes it from a queue repeats it under its key, and the servers know none"
            )
            return Handed(Sent.NEVER, why)
        wire = request.wire
        try:
            payload = handover.pack(
                handover.Handover(
                    request=wire,
                    key=request.key,
                    order_key=request.order,
                    expires_at=Instant(now + request.lifetime_ms),
                )
            )
        except handover.Unfit as error:
            return Handed(Sent.NEVER, f"a queue cannot carry it: {error}")
        begun = False
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                queue = await self.open()
                begun = True
                await queue.put([payload])
        except TimeoutError:
            return Handed(Sent.MAYBE if begun else Sent.NEVER, "it did not answer in time")
        except (Full, Unacceptable) as error:
            return Handed(Sent.NEVER, str(error))
        except UnspoolError as error:
            return Handed(Sent.MAYBE if begun else Sent.NEVER, str(error))
        except Exception as error:
            log.exception("the queue %s made a mistake", self.where)
            return Handed(Sent.MAYBE if begun else Sent.NEVER, type(error).__name__)
        survives = queue.promises.survives.name.lower()
        return Handed(
            Sent.YES,
            receipt_of=Answered(202, b"Accepted", (), b'{"survives":"%b"}' % survives.encode()),
        )

    def receipt(
        self, request_key: str, taken: Answered, *, elsewhere: Sequence[Place] = ()
    ) -> Receipt:
        return Receipt(where=self.where, key=request_key, survives=_survives(taken))

    async def aclose(self) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            return
        if not opening.done():
            opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        if _well(opening):
            await opening.result().aclose()


def _well(task: asyncio.Task[Queue]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def attempt(
    transport: Transport,
    wire: Wire,
    *,
    repeat: bool,
    timeout_ms: int,
    reach_ms: int = 0,
    sending: Callable[[], None] = lambda: None,
) -> Answer:
    """One try, for so long."""
    try:
        return await timed(
            transport,
            wire,
            repeat=repeat,
            timeout_ms=timeout_ms,
            reach_ms=reach_ms,
            sending=sending,
        )
    except Exception as error:
        if isinstance(error, RuntimeError) and "shutdown" in str(error):
            # Names are resolved in threads, and there are no more of those: nothing was sent.
            return Failure(Cause.CLOSING, "the interpreter is shutting down", Sent.NEVER)
        log.exception("an attempt failed by our own mistake")
        return Failure(Cause.PROXY_INTERNAL_ERROR, type(error).__name__, Sent.MAYBE)
