"""The road of a request: known already? on disk first? the route; the outbox.

    result = await Road(parts, known, before=…).carry(request, deadline_ms=…)

What somebody owns at the end is a result; what nobody owns raises `Undelivered`.

Bugs: what waits is counted by this process: of what another one has put into the same outbox it
hears within ten seconds, and until then an ordered request may overtake it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from ..core.lifecycle import State
from ..core.message import Response as Answered
from ..core.message import fingerprint
from ..core.outcome import retry_after
from ..errors import NotDone, Refused, Unavailable, UnspoolError
from ..spools.protocol import Entry, Mismatch
from .endings import answered, undelivered, unknown
from .known import Known, reused
from .outbox import Outbox, Reserved
from .parts import Parts
from .passing import Carried, End, carry
from .record import result_of, taken_by
from .request import Request
from .results import Accepted, Bounced, Queued, Result

log: Final = logging.getLogger("unspool.client")


class Road:
    def __init__(self, parts: Parts, known: Known, *, before: bool) -> None:
        self._route: Final = parts.route
        self._outbox: Final = parts.outbox
        self._watch: Final = parts.watch
        self._known: Final = known
        self._before: Final = before

    async def carry(self, request: Request, *, deadline_ms: int) -> Result:
        outbox = self._outbox if request.kind.keepable else None
        reserved: Reserved | None = None
        if outbox is not None and self._before:
            found = await self._reserve(outbox, request)
            if isinstance(found, Entry):
                return self._already(outbox, request, found)
            reserved = found
        elif outbox is not None and self._may_wait(outbox, request):
            known = await _found(outbox, request)
            if known is not None:
                return self._already(outbox, request, known)
        if outbox is not None and self._stands_behind(outbox, request, reserved):
            return await self._kept(outbox, request, Carried(End.KEEP), reserved)
        went: list[bool] = []
        try:
            carried = await carry(
                self._route, request, deadline_ms=deadline_ms, outbox=outbox is not None,
                sending=lambda: went.append(True),
            )  # fmt: skip
        except asyncio.CancelledError:
            if outbox is not None and reserved is not None and not went:
                # The outbox alone has it: it goes out from there, also where it may not twice.
                await outbox.wait_on(reserved, (), hint_ms=None)
            raise
        if outbox is None:
            return self._ended(request, carried)
        if carried.end is not End.KEEP:
            if reserved is not None:
                await _settled(outbox, reserved, carried)
            return self._ended(request, carried)
        return await self._kept(outbox, request, carried, reserved)

    def _may_wait(self, outbox: Outbox, request: Request) -> bool:
        """May the outbox know this key? Asked of memory: the usual touches no disk."""
        return not request.minted and (outbox.waiting > 0 or self._known.queued(request.key))

    def _stands_behind(self, outbox: Outbox, request: Request, reserved: Reserved | None) -> bool:
        """What has an order key does not overtake what waits. One of another order is not told from
        one of the same: asking would cost more than waiting behind it."""
        itself = 0 if reserved is None else 1
        return bool(request.order) and outbox.waiting > itself

    def _ended(self, request: Request, carried: Carried) -> Result:
        """How a pass ended that left nothing to keep."""
        if carried.end is End.GIVEN_UP:
            raise undelivered(request, carried.why, carried)
        if carried.end is End.UNCERTAIN:
            return unknown(request, carried)
        if carried.end is End.TAKEN:
            assert carried.receipt is not None
            return Accepted(carried.receipt, request.key, carried.tries)
        assert isinstance(carried.answer, Answered)
        return answered(request, carried.answer, carried.tries)

    # --- the outbox --------------------------------------------------------------------------

    def _lifetime_ms(self, request: Request) -> int:
        """Longer than the servers know a key nothing is repeated: it would run again."""
        known_ms = self._route.retention_ms
        return min(request.lifetime_ms, known_ms) if known_ms else request.lifetime_ms

    async def _reserve(self, outbox: Outbox, request: Request) -> Reserved | Entry:
        try:
            found = await outbox.reserve(request, lifetime_ms=self._lifetime_ms(request))
        except Refused as error:
            why = f"it was to be kept before it is sent. {error}"
            doubt = Carried(End.GIVEN_UP, maybe=True) if _in_doubt(error) else None
            raise undelivered(request, why, doubt) from error
        if isinstance(found, Mismatch):
            raise reused(request)
        return found if isinstance(found, Reserved) else found.entry

    async def _kept(
        self, outbox: Outbox, request: Request, carried: Carried, reserved: Reserved | None
    ) -> Result:
        answer = carried.answer
        hint_ms = retry_after(answer, now=self._route.now()) if answer is not None else None
        if reserved is not None:
            # Not written down, it comes due all the same when its lease ends.
            await outbox.wait_on(reserved, carried.tries, hint_ms=hint_ms)
        else:
            try:
                found = await outbox.keep(
                    request, carried.tries, lifetime_ms=self._lifetime_ms(request), hint_ms=hint_ms
                )
            except Refused as error:
                if _in_doubt(error):
                    return await self._doubted(outbox, request, carried, error)
                raise undelivered(request, str(error), carried) from error
            if isinstance(found, Mismatch):
                raise reused(request)
            if found.entry.state is not State.WAITING:
                return self._already(outbox, request, found.entry)
        self._expect(outbox, request)
        return Queued(request.key, outbox.survives, carried.tries)

    async def _doubted(
        self, outbox: Outbox, request: Request, carried: Carried, error: Refused
    ) -> Result:
        """It may have been written down or not (clause 12). What was is sent: whoever sends it as
        well must be sure that this does no harm."""
        entry = await _found(outbox, request)
        if entry is not None:
            if entry.state is not State.WAITING:
                return self._already(outbox, request, entry)
            self._expect(outbox, request)
            return Queued(request.key, outbox.survives, carried.tries)
        doubtful = msgspec.structs.replace(carried, maybe=True, why=f"{error}".rstrip("."))
        if not request.kind.repeat:
            return unknown(request, doubtful)
        raise undelivered(request, str(error), doubtful) from error

    def _expect(self, outbox: Outbox, request: Request) -> None:
        self._known.queue(request)
        if self._watch is not None:
            self._watch.expect(outbox.key(request.key, request.scope), request.key)

    def _already(self, outbox: Outbox, request: Request, entry: Entry) -> Result:
        """The key is known here: what became of it, or that it still waits."""
        result = result_of(entry, survives=outbox.survives, receipt_from=self._route.receipt_from)
        if isinstance(result, Bounced):
            raise undelivered(
                request,
                f"the request under this key was given up ({result.reason}), and is not tried again"
                " under it; give it a new key if it is to be",
            )
        if isinstance(result, Queued):
            self._expect(outbox, request)
        else:
            self._known.settled(request.key)
        return result


def _in_doubt(error: Refused) -> bool:
    return isinstance(error, Unavailable) and not isinstance(error, NotDone)


async def _settled(outbox: Outbox, reserved: Reserved, carried: Carried) -> None:
    """Write down what came of a request that is on disk."""
    if carried.end is End.UNCERTAIN:
        await outbox.uncertain(reserved, carried.tries)
        return
    assert isinstance(carried.answer, Answered), "what may be kept is kept, and not given up"
    taken = carried.end is End.TAKEN
    answer = taken_by(carried.answer, carried.by) if taken else carried.answer
    await outbox.answered(reserved, answer, carried.tries)


async def _found(outbox: Outbox, request: Request) -> Entry | None:
    """What the outbox knows of this key. Trouble with it is no reason not to send."""
    try:
        entry = await outbox.find(request.key, request.scope)
    except UnspoolError as error:
        log.warning("the outbox does not tell whether it knows %s: %s", request.key, error)
        return None
    if entry is not None and entry.message.fingerprint != fingerprint(request.wire):
        raise reused(request)
    return entry
