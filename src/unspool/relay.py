"""The relay: one request, now. A function from a request to an answer.

    relay = Relay(…); response = await relay(request, caller)

The road, in this order (design section 2):

    1  fields.onward      what goes on, and what speaks to us
    2  idempotency.recall is the key known? the same answer again, or the same receipt
    3  lane.probe         may it go now, or is the destination known to be down?
    4  transport.attempt  one try
    5  outcome.judge      OK and FAIL are passed on (and remembered, if keyed)
    6  admission.admit    an ERROR: may we take responsibility?
    7  custody.accept     saved, synced: 202 with a receipt

A sender who repeats a request himself says so (`Unspool-Attempt`), and for how long he waits
(`Unspool-Deadline`): then we do not go from server to server again, and do not wait for longer than
he does, so that he hears of the receipt. What he says is `Unspool-Contended` is never saved.

Promises: nothing is answered 202 before the spool has it (I1); a key gets one answer, and only in
the scope it was recorded in (I5, I10); what was not saved is passed back as it is, with the reason.
Never raises: whatever goes wrong is an answer.

Bugs: a PUT that waits in the spool is delivered after a newer PUT that went through at once. Who
minds sends `Unspool-Order`, or If-Match.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import random
from typing import Any, Final

from .answers import (
    by_age,
    closed,
    passed_back,
    replayed,
    retention,
    why_not_saved,
    with_fields,
)
from .clock import Clock
from .core.fields import Onward, onward, values
from .core.idempotency import Do, Unreadable, read_key, recall
from .core.lane import Lane
from .core.lifecycle import State
from .core.message import (
    IDEMPOTENT_METHODS,
    SAFE_METHODS,
    SKEW_MS,
    Answer,
    Field,
    Key,
    Request,
    Response,
    fingerprint,
    identify,
)
from .core.outcome import Judgement, Outcome, cause_of, judge, retry_after
from .core.prefer import read_prefer
from .custody import Custody
from .errors import Corrupt, Refused
from .express import FIRST, Express
from .gather import gather
from .ingress.protocol import Caller
from .passage import Options, Passage, forwarded, patience_ms, plain, untried
from .problems import PREFIX, problem
from .receipts import POLL_MS, Receipts
from .saving import Saving
from .transports.protocol import Transport
from .transports.timed import timed
from .tries import Tries, Turn

log = logging.getLogger("unspool.relay")

_OURS: Final = PREFIX.encode()
NOT_STORED: Final[Field] = (b"Idempotency-Stored", b"false")
SWEEP_MAX: Final = 1_000


class Relay:
    def __init__(
        self,
        *,
        options: Options,
        secret: bytes,
        custody: Custody,
        saving: Saving,
        receipts: Receipts,
        transport: Transport,
        lane: Lane,
        clock: Clock,
        wake: Callable[[], None],
        luck: Callable[[], float] = random,
    ) -> None:
        self._options = options
        self._secret = secret
        self._custody = custody
        self._saving = saving
        self._receipts = receipts
        self._transport = transport
        self._overtaken: set[asyncio.Task[Response]] = set()
        self._lane = lane
        self._clock = clock
        self._wake = wake
        self._luck = luck
        self._via: Field = (b"Via", b"1.1 " + options.via.encode())
        self._retention = retention(options.policy.keeping)
        self.tries: Final = Tries(clock=clock)
        """Which keys are being tried here just now: whoever brings requests in by another way, too,
        takes his turn."""
        self.begin: Final = Express(
            other=self,
            options=options,
            secret=secret,
            custody=custody,
            saving=saving,
            prompt=getattr(transport, "begin", None),
            lane=lane,
            clock=clock,
            tries=self.tries,
            via=self._via,
        ).begin
        """The usual, without a coroutine. See ingress.protocol.Express."""
        self._live = 0

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        return await self._guarded(self._handle(request, caller))

    async def _guarded(self, road: Awaitable[Response]) -> Response:
        try:
            return await road
        except Exception as error:
            return self.complaint(error)

    def complaint(self, error: Exception) -> Response:
        """What the sender hears of what went wrong here."""
        if isinstance(error, Corrupt):
            log.error("a record is spoilt: %s", error)
            return problem("refused", "what we know of this key cannot be read", retry_after_s=60)
        if isinstance(error, Refused):
            return problem("refused", str(error), retry_after_s=1)
        log.error("the relay made a mistake", exc_info=error)
        return problem("internal")

    # --- the express road: see express.py ----------------------------------------------------

    def take_over(
        self, road: Coroutine[Any, Any, Response], done: Callable[[Response], None]
    ) -> None:
        """What began there, and turned out otherwise."""
        task = asyncio.get_running_loop().create_task(self._guarded(road))
        self._overtaken.add(task)

        def tell(task: asyncio.Task[Response]) -> None:
            self._overtaken.discard(task)
            if not task.cancelled():
                done(task.result())

        task.add_done_callback(tell)

    # --- 1  what goes on, and what speaks to us ---------------------------------------------

    async def _handle(self, request: Request, caller: Caller) -> Response:
        if request.target.startswith(_OURS):
            return await self._receipts.serve(request)
        head = onward(request.fields)
        if head.vias and any(self._options.via.encode() in via for via in head.vias):
            return problem("loop")
        fields = head.fields
        fields.append(self._via)
        if self._options.forwarded:
            fields.append(forwarded(caller, head.host))
        onwards = Request(
            request.method, request.target, fields, request.body, request.rest, request.length
        )
        if not head.asks:
            passage = plain(onwards, self._options, began_at=self._clock.now())
            return await self.passed(passage)
        return await self._asked(onwards, head, request.fields)

    async def _asked(self, request: Request, head: Onward, raw: Sequence[Field]) -> Response:
        """A request that speaks to us: by key, preference, order or lifetime."""
        options = self._options
        safe = request.method in SAFE_METHODS
        name = None if safe else read_key(head.keys, chars_max=options.key_max_chars)
        if isinstance(name, Unreadable):
            return closed(request, problem("key-malformed", name.why))
        lifetime_ms = options.lifetime_ms
        if head.lifetime:
            if not head.lifetime.isdigit() or len(head.lifetime) > 9 or not int(head.lifetime):
                why = "Unspool-Lifetime takes a number of seconds, at least 1"
                return closed(request, problem("field-malformed", why))
            lifetime_ms = min(lifetime_ms, int(head.lifetime) * 1000)
        if len(head.order) > options.key_max_chars or not head.order.isascii():
            why = f"Unspool-Order takes at most {options.key_max_chars} ASCII characters"
            return closed(request, problem("field-malformed", why))
        passage = Passage(
            request=request,
            wishes=read_prefer(head.prefers, wait_max_ms=options.wait_max_ms),
            began_at=self._clock.now(),
            repeat=bool(name) or options.repeat_always or request.method in IDEMPOTENT_METHODS,
            lifetime_ms=lifetime_ms,
            order_key="" if safe else head.order.decode(),
            contended=head.contended,
            patience_ms=patience_ms(head.deadline),
            again=head.again,
        )
        if request.rest is not None:
            if (passage.wishes.respond_async or passage.order_key) and not passage.contended:
                return closed(request, problem("too-large"))
            response = await self.passed(passage)
            if name:  # a body we did not see whole cannot be told from another
                return with_fields(response, NOT_STORED)
            return response
        if name:
            passage.name = name
            # As they came: a field that ends here may still tell callers apart (I10).
            scope = [b"\0".join(values(raw, field)) for field in options.scope_fields]
            return with_fields(await self._keyed(passage, scope), self._retention)
        return await self.passed(passage)

    # --- 2  is the key known? ---------------------------------------------------------------

    async def _keyed(self, passage: Passage, scope: Sequence[bytes]) -> Response:
        key = passage.key = identify(
            self._secret, scope=scope, destination=self._options.destination, name=passage.name
        )
        print_ = passage.fingerprint = fingerprint(passage.request)
        until = passage.began_at + passage.wishes.wait_ms
        turn = await self.tries.begin(key, print_, until=until)
        if isinstance(turn, str):
            return problem(turn, retry_after_s=1 if turn == "running" else None)
        passage.let_go = turn.ends
        return await self.looked(passage, turn)

    async def looked(self, passage: Passage, turn: Turn) -> Response:
        """From looking the key up on, which is nobody else's turn."""
        try:
            known = await self._known(
                passage, turn, until=passage.began_at + passage.wishes.wait_ms
            )
            if known is not None:
                return known
            turn.tries()
            return await self.passed(passage)
        finally:
            turn.ends()

    async def _known(self, passage: Passage, turn: Turn, *, until: int) -> Response | None:
        """The answer for a key that is known; None: it is ours to try."""
        swept = False
        while True:
            now = self._clock.now()
            if self._options.claims:
                entry = await self._saving.claim(passage, now=now)
            else:
                entry = await self._custody.find(passage.key)
            assert passage.fingerprint is not None
            what = recall(entry, fingerprint=passage.fingerprint, now=now)
            if entry is None:
                refusal = by_age(passage.name, now=now, keeping=self._options.policy.keeping)
                if refusal is not None:
                    await self._saving.forget(passage)
                return refusal
            if what.do is Do.RUN and entry.state in (State.DELIVERED, State.BOUNCED):
                # Kept long enough, and still in the way of a new entry under its key (J6).
                if swept:
                    return problem("expired")
                await self._custody.spool.sweep(now=now, limit=SWEEP_MAX)
                swept = True
            elif what.do is Do.WAIT and now < until:
                turn.tries()  # by somebody else: whoever does not wait is told at once (C8, E3)
                await asyncio.sleep(min(POLL_MS, until - now) / 1000)
            else:
                break
        if what.do is Do.RUN:
            return None
        if what.do is Do.REPLAY:
            return replayed(entry)
        if what.do is Do.ATTACH:
            return await self._saving.promised(passage, entry)
        if what.do is Do.WAIT:
            return problem("running", retry_after_s=1)
        return problem(what.problem, what.detail)

    # --- 3 to 5  one try --------------------------------------------------------------------

    async def passed(self, passage: Passage) -> Response:
        now = self._clock.now()
        if (passage.wishes.respond_async or passage.order_key) and not passage.contended:
            return await self._saving.save(passage, None)
        lane = self._lane
        if not lane.probe(now) and not self._options.always_try:
            wait_s = max(1, -(-(lane.opens_at(now) - now) // 1000))
            failure = untried(lane.last_trouble)
            return await self._troubled(passage, failure, judge(failure), retry_after_s=wait_s)
        passage.tried = True
        request = passage.request
        fields = [*request.fields, FIRST]
        if passage.patience_ms:  # of this attempt, and not of what is delivered later
            left = b"%d.%03d" % divmod(passage.patience_ms, 1000)
            fields.append((b"Unspool-Deadline", left))
        onwards = Request(
            request.method, request.target, fields, request.body, request.rest, request.length
        )
        repeat = passage.repeat and request.rest is None and not passage.again
        claim = passage.claim
        left_ms = passage.patience_ms if request.rest is None else 0
        if claim is not None:
            # However many servers there are to try: when the claim lapses another may begin (I4).
            lapses_ms = claim.until - SKEW_MS - now
            left_ms = min(left_ms, lapses_ms) if left_ms else lapses_ms
        elif not left_ms:
            answer = await self._transport.attempt(onwards, repeat=repeat)
            return await self.judged(passage, answer)
        answer = await timed(self._transport, onwards, repeat=repeat, timeout_ms=max(0, left_ms))
        return await self.judged(passage, answer)

    async def judged(self, passage: Passage, answer: Answer) -> Response:
        """Step 5: what is it? What streams is passed on, or closed: it has a connection of ours."""
        rest = answer.rest if isinstance(answer, Response) else None
        goes_on = False
        try:
            response = await self._judged(passage, answer)
            goes_on = response.rest is not None
        finally:
            if rest is not None and not goes_on:
                rest.close()
        return response

    async def _judged(self, passage: Passage, answer: Answer) -> Response:
        if passage.name and isinstance(answer, Response) and answer.rest is not None:
            answer = await self._gathered(answer)
        judgement = judge(answer)
        if judgement.outcome is Outcome.ERROR:
            self._saw(passage, answer, judgement)
            return await self._troubled(passage, answer, judgement)
        assert isinstance(answer, Response)
        if not self._lane.calm:
            self._saw(passage, answer, judgement)
        if passage.name and passage.request.rest is None:
            return await self._saving.record(passage, answer)
        return answer

    def _saw(self, passage: Passage, answer: Answer, judgement: Judgement) -> None:
        """The lane's weather; and whoever waits for it to clear, or for its window, is told."""
        self._live += 1
        now = self._clock.now()
        room = self._lane.room(now)
        self._lane.saw(
            judgement,
            key=passage.key or Key(f"live-{self._live}"),
            now=now,
            chance=self._luck(),
            hint_ms=retry_after(answer, now=now),
            detail=cause_of(answer)[1],
        )
        if self._lane.room(now) > room:
            self._wake()

    async def _gathered(self, answer: Response) -> Answer:
        """A keyed answer is recorded before it is passed on, so we want it whole if it is small."""
        return await gather(
            answer,
            max_bytes=self._options.policy.keeping.answer_max_bytes,
            timeout_ms=self._options.total_ms,
        )

    # --- 6 and 7  responsibility: see saving.py -----------------------------------------------

    async def _troubled(
        self,
        passage: Passage,
        answer: Answer,
        judgement: Judgement,
        *,
        retry_after_s: int | None = None,
    ) -> Response:
        """No answer that stands. Save it, or pass it back and say why not."""
        request = passage.request
        why = why_not_saved(request, judgement, repeat=passage.repeat, contended=passage.contended)
        if not why:
            return await self._saving.save(passage, answer)
        await self._saving.forget(passage)
        return closed(request, passed_back(answer, why, retry_after_s=retry_after_s))
