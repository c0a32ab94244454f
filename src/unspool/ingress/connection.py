"""Connection: one caller's socket, from its first byte to its last.

One task per connection, for as long as it lives, does one thing after the other:

    take the next request  →  await handler(request, caller)  →  write the answer

so pipelined requests are answered in order and nothing is created per request. `Reading` fills the
queue, `Writing` empties it; this file holds the socket, the turn-taking and the clock.

The express road: where the handler offers `begin` (protocol.Express), an ordinary request that
comes while nothing else is under way is begun the moment it is whole, and answered the moment its
answer is there, while the task sleeps on. Whatever is out of the ordinary wakes the task.

Promises. The handler is never cancelled by what the caller does: if the caller vanishes, the
handler finishes and its answer is dropped (its `rest` closed). A request that had come whole but
whose turn had not come when the caller vanished is not handled. A half-closed connection (the
caller has shut its writing side) gets all its answers. An answer that closes is followed by a short
time in which unread bytes are thrown away, so that it arrives (RFC 9112 §9.6).

Known: a caller that closes looks like one that half-closes, until an answer is written to it.

Does not: keep a half-closed connection over TLS, where asyncio closes both sides together; make a
reset of a unix socket, which has none (chunked and counted answers are seen as broken all the
same, an HTTP/1.0 answer without length is not).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from ..core.message import Request, Response
from ..problems import problem
from .body import StreamedBody
from .head import CONTINUE, last_words
from .parsing import SMALL_BYTES
from .protocol import Caller, Handler
from .reading import BODY, HEAD, IDLE, KEEP, OLD, Reading
from .strict import Refusal
from .writing import Writing

if TYPE_CHECKING:
    from .http import Door

log: Final = logging.getLogger("unspool.door")

BUSY_RETRY_S: Final = 1

Turn = tuple[Request | None, int]

WAKE: Final = 1 << 16
"""A turn that only says: look up, something has changed."""
_SOMETHING: Final = Request(b"POST", b"/", ())
"""Stands for a request that took the express road: ordinary, and no HEAD."""


class Connection(asyncio.Protocol):
    """The door's side of one connection."""

    __slots__ = (
        "_begin", "_body_idle_ms", "_body_seen_bytes", "_busy", "_caller", "_door", "_eof",
        "_handed", "_handled_bytes", "_handler", "_idle_ms", "_lingering_until_ms", "_loop",
        "_paused", "_queue", "_queued_bytes", "_reading", "_refusal", "_scheme", "_task",
        "_transport", "_waited_ms", "_waiter", "_watched_message", "_watched_phase", "_writing",
        "served",
    )  # fmt: skip

    _transport: asyncio.Transport
    _writing: Writing
    _caller: Caller

    def __init__(self, door: Door, handler: Handler, scheme: str) -> None:
        self._door = door
        self._handler = handler
        self._begin = getattr(handler, "begin", None)
        self._handed: Response | None = None
        self._scheme = scheme
        self._loop = asyncio.get_running_loop()
        self._reading = Reading(self, door.limits, door.ledger)
        self._queue: deque[Turn] = deque()
        self._queued_bytes = self._handled_bytes = 0  # the latter: of the body under hand
        self._refusal: Refusal | None = None
        self._waiter: asyncio.Future[Turn] | None = None
        self._busy = self._eof = self._paused = False
        self._idle_ms = 0  # counted by the sweep, which knows how long the loop was held up
        self._watched_message, self._watched_phase = cast(object, None), IDLE
        self._waited_ms = self._body_idle_ms = self._body_seen_bytes = 0
        self.served = self._lingering_until_ms = 0

    def __repr__(self) -> str:
        peer = self._caller.peer if hasattr(self, "_caller") else "nobody yet"
        return f"<Connection from {peer}: {self.state}, {self.served} answered>"

    @property
    def state(self) -> str:
        if hasattr(self, "_writing") and self._writing.lost:
            return "handling for nobody" if self._busy else "closed"
        if self._lingering_until_ms:
            return "lingering"
        if self._busy:
            return "answering"
        return {HEAD: "reading a head", BODY: "reading a body"}.get(self._reading.phase, "idle")

    @property
    def idle(self) -> bool:
        return not (self._busy or self._queue) and self._reading.phase is IDLE

    # what the socket tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writing = Writing(self._door, self._transport)
        peer = transport.get_extra_info("peername")
        name = peer[0] if isinstance(peer, tuple) else "unix"
        self._caller = Caller(peer=name, scheme=self._scheme)
        self._door.came(self)
        self._task = self._loop.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._reading.feed(data)

    def eof_received(self) -> bool:
        self._eof = True
        self._reading.give_up("The sender stopped before the body was whole.")
        if self._lingering_until_ms or not (self._busy or self._queue):
            self._writing.flush()
            return False
        return self._scheme == "http"

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.give_up("The sender went away before the body was whole.")
        self._queue.clear()
        self._door.ledger.held_bytes -= self._queued_bytes
        self._queued_bytes = 0
        self._writing.lose()
        if self._waiter is not None:
            self._wake((None, 0))
        self._door.went(self)

    def pause_writing(self) -> None:
        self._writing.pause()

    def resume_writing(self) -> None:
        self._writing.resume()

    # what the reading half asks for (reading.Sink)

    def arrived(self, request: Request | None, flags: int, refusal: Refusal | None = None) -> None:
        if refusal is not None:
            self._refusal = refusal
        if self._waiter is not None and not self._busy:
            self._busy = True
            if request is not None and len(request.body) > SMALL_BYTES:
                self._handled_bytes = len(request.body)
                self._door.ledger.held_bytes += self._handled_bytes
            if not (
                flags == KEEP
                and self._begin is not None
                and request is not None
                and request.rest is None
                and self._door.ordinary
                and request.method != b"HEAD"
                and self._begin(request, self._caller, self._told)
            ):
                self._wake((request, flags))
            return
        self._queue.append((request, flags))
        if request is not None:
            self._queued_bytes += len(request.body)
            self._door.ledger.held_bytes += len(request.body)
            if self.crowded():
                self.regulate()

    def _wake(self, turn: Turn) -> None:
        """The task has something to do."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():  # done: cancelled, the loop is going down
            waiter.set_result(turn)

    def _told(self, response: Response) -> None:
        """The answer to what took the express road."""
        writing = self._writing
        if self._handled_bytes:
            self._let_go(_SOMETHING)
        if writing.lost:
            if response.rest is not None:
                response.rest.close()
        elif response.rest is not None or not self._door.ordinary:
            self._handed = response
            self._wake((_SOMETHING, KEEP))
        else:
            self.served += 1
            writing.small(response)
            if self._queue or self._eof or writing.drained or self._reading.expecting:
                self._wake((_SOMETHING, WAKE))
            else:
                self._busy = False
                self._idle_ms = 0

    def crowded(self) -> bool:
        limits = self._door.limits
        waiting = len(self._queue)
        if waiting >= limits.pipelined_max or self._queued_bytes > limits.body_max_bytes:
            return True
        return waiting > 0 and self._door.ledger.held_bytes > limits.bodies_max_bytes

    def _let_go(self, request: Request) -> Request:
        """The body under hand is not needed any more; the answer to it may take long."""
        if not self._handled_bytes:
            return request
        self._door.ledger.held_bytes -= self._handled_bytes
        self._handled_bytes = 0
        return Request(request.method, request.target, (), rest=request.rest)

    def regulate(self) -> None:
        stop = self.crowded() or not self._reading.wants_more
        if stop != self._paused and not self._transport.is_closing():
            self._paused = stop
            if stop:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def proceed(self, its_turn: bool, /) -> None:
        if (its_turn or not (self._busy or self._queue)) and self._reading.continued():
            self._writing.write(CONTINUE)

    # one request after the other

    async def _run(self) -> None:
        try:
            await self._serve()
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception:
            log.exception("A connection ended by a mistake of ours: %r", self)
            self._transport.abort()
        finally:
            self._waiter = None
            self._busy = False

    async def _serve(self) -> None:
        handler, caller, queue = self._handler, self._caller, self._queue
        door, reading, writing = self._door, self._reading, self._writing
        while True:
            if queue:
                self._busy = True  # also for what came before this task's first step
                request, flags = self._next_in_queue()
            elif self._eof or writing.lost:
                self._writing.close()
                return
            else:
                self._busy = False
                self.proceed(False)
                self._idle_ms = 0
                self._waiter = self._loop.create_future()  # only there: it holds the request
                request, flags = await self._waiter
            if request is None:
                self._leave()
                return
            if flags == WAKE:
                if writing.full:
                    await writing.drain()
                continue
            if self._handed is not None:
                response, self._handed = self._handed, None
            else:
                try:
                    response = await handler(request, caller)
                except Exception:
                    response = writing.mistake("The handler raised")
                request = self._let_go(request)
            self.served += 1
            if writing.lost:
                if response.rest is not None:
                    response.rest.close()
                return
            if (
                flags == KEEP
                and response.rest is None
                and request.rest is None
                and door.ordinary
                and request.method != b"HEAD"
            ):
                writing.small(response)
            else:
                rest = request.rest
                unread = isinstance(rest, StreamedBody) and not rest.ended
                if not await writing.answer(
                    response,
                    head_only=request.method == b"HEAD",
                    old=bool(flags & OLD),
                    keep=bool(flags & KEEP) and not unread and self._may_go_on(),
                ):
                    self._linger(unread or bool(queue) or reading.phase is not IDLE)
                    return
                if rest is not None:
                    rest.close()
            del request, response  # an idle connection holds nobody's body
            if writing.full:
                await writing.drain()

    def _next_in_queue(self) -> Turn:
        turn = self._queue.popleft()
        if turn[0] is not None:
            self._handled_bytes = len(turn[0].body)  # as before in the ledger
            self._queued_bytes -= self._handled_bytes
        if self._paused:
            self._reading.resume()
            self.regulate()
        return turn

    def _may_go_on(self) -> bool:
        most = self._door.limits.requests_per_connection_max
        return not self._door.closing and not 0 < most <= self.served

    def _leave(self) -> None:
        """Nothing more will be handled here: the last word, if there is one."""
        refusal = self._refusal
        if refusal is None or self._writing.lost:
            self._writing.close()
            return
        self._door.refused[refusal.name] += 1
        retry_after_s = BUSY_RETRY_S if refusal.name == "busy" else None
        answer = problem(refusal.name, refusal.detail, retry_after_s=retry_after_s)
        self._writing.write(last_words(answer, date=self._door.date))
        self._linger(True)

    def _linger(self, unread: bool) -> None:
        """Close, once the caller has had time to read what it was told."""
        transport = self._transport
        self._reading.give_up("The request was answered before its body was whole.")
        if not unread or self._eof or transport.is_closing():
            self._writing.close()
            return
        self._lingering_until_ms = self._door.now_ms + self._door.limits.linger_ms
        if transport.can_write_eof():
            self._writing.flush()
            transport.write_eof()
        if self._paused:
            self._paused = False
            transport.resume_reading()

    # the clock

    def retire(self) -> None:
        """The door is closing: go, if nobody is talking."""
        if self.idle and not self._lingering_until_ms:
            self._writing.close()

    def abort(self) -> None:
        self._writing.flush()
        self._transport.abort()

    def sweep(self, now_ms: int, elapsed_ms: int) -> None:
        """Called for every connection, again and again: has anything taken too long?"""
        if self._writing.stuck(now_ms):
            self._door.broken_off_total += 1
            self._transport.abort()
        elif self._writing.over():
            self._transport.abort()
        elif self._lingering_until_ms:
            thrown = self._reading.thrown_away_bytes > self._door.limits.linger_max_bytes
            if thrown or now_ms >= self._lingering_until_ms:
                self._transport.abort()
        elif self._reading.phase is not IDLE:
            self._sweep_message(elapsed_ms)
        elif not (self._busy or self._queue):
            door = self._door
            self._idle_ms += elapsed_ms
            if self._idle_ms > (door.keepalive_ms if self.served else door.head_ms):
                self._writing.close()

    def _sweep_message(self, elapsed_ms: int) -> None:
        reading = self._reading
        limits = self._door.limits
        phase = reading.phase
        if self._watched_message is not reading.message or self._watched_phase is not phase:
            self._watched_message, self._watched_phase = reading.message, phase
            # It may have begun just now: nobody has less time than was promised.
            self._waited_ms = self._body_idle_ms = self._body_seen_bytes = elapsed_ms = 0
        if self._paused or reading.waits_for_us:
            return
        self._waited_ms += elapsed_ms
        if phase is HEAD:
            if self._waited_ms > self._door.head_ms:
                reading.refuse("timeout", "The head did not come in time.")
            return
        came = reading.body_bytes
        self._body_idle_ms = self._body_idle_ms + elapsed_ms if came == self._body_seen_bytes else 0
        self._body_seen_bytes = came
        due_bytes = limits.body_rate_min_bytes * self._waited_ms // 1000
        if self._body_idle_ms > limits.body_ms:
            reading.refuse("timeout", "The body stopped coming.")
        elif self._waited_ms > limits.body_grace_ms and came < due_bytes:
            reading.refuse("timeout", "The body came too slowly.")
