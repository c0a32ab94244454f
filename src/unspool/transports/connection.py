"""One connection to an origin: a request goes out, an answer comes in, one at a time.

    future = connection.send(head, body, …)     the Answer, as soon as it is here or streams
    connection.check(now)                       deadlines; called by the pool's sweep
    connection.alive()                          may an idle one be trusted with a request?

It tells its home (the pool) when it can be used again and when it never will, and does so before
the answer is read: the next request need not wait for that.

An answer with more bytes behind it is given, and its connection is not used again. Bytes or an end
on an idle connection close it. Every end is a Failure with `Sent.MAYBE`: a byte was written.

Known faults: an answer that arrives while a streamed request is still being sent ends the sending,
also where the other side meant to answer piece by piece. A reset that overtakes an answer in the
kernel loses that answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade

from ..core import heads
from ..core.message import Answer, Cause, Failure, Response, Sent
from ..untaken import untaken
from .deadlines import overdue
from .home import Hears, Home
from .incoming import ENDS, KINDS, PREFACE, Incoming, Short
from .limits import JOIN_MAX_BYTES, LONG_ANSWER_S, STALE_AFTER_S
from .liveness import Probe, said_goodbye
from .stream import Stream


class Connection(Incoming, asyncio.Protocol):
    """See the head of this file."""

    __slots__ = (
        "_began", "_choked", "_drained", "_future", "_head_max", "_home", "_idle", "_large",
        "_loop", "_moved", "_new_future", "_now", "_outgoing", "_paused_reading", "_probe",
        "_requests_max", "_unsent", "_unwritten", "_waiting", "_write", "dead", "requests",
        "transport", "uploading",
    )  # fmt: skip

    def __init__(
        self, home: Home, *, loop: asyncio.AbstractEventLoop, short: Short = heads.answer
    ) -> None:
        super().__init__(home.limits, short)
        self._home = home
        self._idle = home.idle
        self._waiting = home.waiting
        self._outgoing = home.outgoing
        self._loop = loop
        self._now = loop.time
        self._new_future = loop.create_future
        self._head_max = home.limits.head_max_bytes
        self._requests_max = home.limits.requests_max
        self.transport: Any = None
        self.requests = 0
        self.dead = False
        self.uploading = False
        self._choked = False  # the transport has enough to send
        self._large = False
        self._future: Hears | None = None
        self._probe: Probe | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused_reading = False
        self._unsent = 0
        self._unwritten = b""  # a request that goes out at the end of this turn: see outgoing
        self._began = self._moved = loop.time()

    def __repr__(self) -> str:
        if self.dead:
            state = "closed"
        elif self._stream is not None:
            state = f"streams {self._stream!r}"
        else:
            state = "idle" if self._future is None else "waits for an answer"
        return f"<Connection to {self._home.where}: {state}, request {self.requests}>"

    def send(
        self, head: bytes, body: bytes, head_only: bool = False, upload: bool = False
    ) -> asyncio.Future[Answer]:
        """Write a request, or its beginning: for `upload` the rest comes by `more`."""
        future = self._new_future()
        self.send_for(future, head, body, head_only, upload)
        return future

    def send_for(
        self, future: Hears, head: bytes, body: bytes, head_only: bool = False, upload: bool = False
    ) -> None:
        """The same for somebody who hears the answer in his own way."""
        assert self._future is None
        self._future = future
        self.requests += 1
        self._moved = self._began = self._now()
        self._head_only = head_only
        if head_only or upload:
            self._plain = False
            self.uploading = self._large = upload
        if len(body) <= JOIN_MAX_BYTES:
            self._unwritten = head + body
            if self.requests > 1 and not upload:
                self._outgoing.add(self)  # an answer to a first one may be here already
            else:
                self.flush()
            return
        self._plain = False
        self._large = True
        self._unwritten = head
        self.flush()
        if not self.dead:
            with suppress(RuntimeError):  # uvloop: closed, and the loop is about to tell us
                self._write(body)

    def flush(self) -> None:
        """Write what is unwritten."""
        if self._unwritten and not self.dead:
            try:
                self._write(self._unwritten)
            except RuntimeError:
                # uvloop refuses to write on a connection of whose end it has yet to tell us.
                self.give_up(Cause.CONNECTION_TERMINATED, "closed while idle")
        self._unwritten = b""

    async def more(self, data: bytes) -> None:
        """Send this, and wait while more would only pile up."""
        with suppress(RuntimeError):  # uvloop: closed, and the loop is about to tell us
            self._write(data)
        if self._choked:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    def sent_all(self) -> None:
        """That was the whole request: from now on it is the answer that we wait for."""
        self.uploading = False
        self._began = self._moved = self._now()

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- in -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._write = self.transport.write

    def data_received(self, data: bytes) -> None:
        future = self._future
        if (
            self._preface == b""
            and self._plain
            and not self._unwritten
            and len(data) <= self._head_max
            and future is not None
            and not future.done()
            and (short := self._short(data, KINDS)) is not None
        ):
            self._future = None
            self._free()  # what the parser left behind is as it was
            future.set_result(Response(*short))
            return
        if self._preface is not None:
            if (
                data.startswith(PREFACE)
                and not self._preface
                and self._future is not None
                and not self._unwritten
                and len(data) <= self._head_max
            ):
                self._preface = None
            elif not self._begin(data):
                return
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if fault := self._stumbled(error, data):
                self.give_up(Cause.HTTP_PROTOCOL_ERROR, fault)
                return
        if not self._complete:
            self._progress(data)
        elif self._plain and future is not None and not future.done():
            self._future = None
            answer = Response(
                self._status, self._reason, self._fields, self._body, None, self._length
            )
            self._rest()
            future.set_result(answer)
        else:
            self._finish()

    def _begin(self, data: bytes) -> bool:
        """The first bytes, where they are not simply a good answer. May they be parsed?

        llhttp takes RTSP and HTTP/2.0 for answers, so the first nine bytes are looked at here.
        """
        if self._future is None or self._unwritten or self.dead:
            # Nobody asked, or we have yet to: what came cannot belong to the next request.
            self.give_up(Cause.CONNECTION_TERMINATED, "it spoke before it was asked")
            return False
        if len(data) > self._head_max and data.find(ENDS, 0, self._head_max) < 0:
            self.give_up(*self._excess())
            return False
        assert self._preface is not None
        if self._opens_with((self._preface + data[:9])[:9]):
            return True
        self.give_up(Cause.HTTP_PROTOCOL_ERROR, self._fault)
        return False

    def _progress(self, data: bytes) -> None:
        """More came, and it is not all."""
        self._plain = False
        self._moved = now = self._now()
        if self._size == self._seen:
            # Heads, chunk extensions and trailers would otherwise grow without end in the parser.
            self._dry += len(data)
            if self._dry > self._head_max:
                self.give_up(*self._excess())
                return
        else:
            self._seen = self._size
            self._dry = 0
        if not self._head_done or self._stream is not None:
            return
        keep = self._limits.keep_max_bytes
        if self._size > keep or self._length > keep:
            self._hand_over()
        elif not self._head_at:
            self._head_at = now
            if self._length < 0 and self._is_event_stream():
                self._hand_over()

    def eof_received(self) -> bool:
        if self._until_eof and not self.dead and said_goodbye(self.transport):
            self._complete = True
            self._finish()
        else:
            self._ended("the connection closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        reset = isinstance(exc, ConnectionError)
        self._ended("the connection was reset" if reset else "the connection broke off")

    def _ended(self, how: str) -> None:
        if self._preface != b"":
            self.give_up(Cause.HTTP_RESPONSE_INCOMPLETE, f"{how} within the answer")
        else:
            self.give_up(Cause.CONNECTION_TERMINATED, f"{how} without an answer")

    @property
    def stale(self) -> bool:
        """Did it die under a request, after others, before a byte of the answer?"""
        return self.dead and self.requests > 1 and self._preface == b""

    def _finish(self) -> None:
        """The answer is here, whole, and something about it is unusual."""
        self._plain = False
        future, self._future = self._future, None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.finish()
        elif future is None or future.done():
            self._reusable = False  # cancelled
        else:
            future.set_result(self._response(None))
        unsent = self.uploading or (self._large and self.transport.get_write_buffer_size())
        if unsent or not self._reusable:
            self.close()
            return
        self._large = False
        self._unsent = 0
        if self._paused_reading:
            self.resume()
        self._rest()

    def _rest(self) -> None:
        """Until the next request."""
        self._reset()
        self._free()

    def _free(self) -> None:
        if self.requests == self._requests_max:
            self.close()
            return
        self._moved = self._now()
        if self._waiting:
            self._home.put(self)
        else:
            self._idle.append(self)

    def _hand_over(self) -> None:
        """The head is here, and what came of the body; the remainder will be read as it comes."""
        future, self._future = self._future, None
        if future is None or future.done():
            self.close()
            return
        self._stream = Stream(self, buffer_max_bytes=self._limits.stream_buffer_max_bytes)
        future.set_result(self._response(self._stream))

    def give_up(self, cause: Cause, detail: str, sent: Sent = Sent.MAYBE) -> None:
        """Close it, and tell whoever waits why."""
        if self.dead:
            return
        if self._unwritten:
            sent = Sent.NEVER
        detail = f"{self._home.where}: {detail}"
        future, self._future = self._future, None
        stream, self._stream = self._stream, None
        self.close()
        if stream is not None:
            stream.sever(detail)
        elif future is not None and not future.done():
            future.set_result(Failure(cause, detail, sent))

    def close(self) -> None:
        """Give the connection up, now. What it owes is not answered any more."""
        if self.dead:
            return
        self.dead = True
        self._home.drop(self)
        self.resume_writing()
        self.transport.abort()

    def abandon(self, future: asyncio.Future[Answer]) -> None:
        """Whoever waited for `future` waits no longer."""
        if future.cancelled() or not future.done():
            self.close()
        else:
            answer = future.result()
            if isinstance(answer, Response) and answer.rest is not None:
                answer.rest.close()

    def alive(self) -> bool:
        """Is an idle connection still good, as far as the kernel knows?"""
        if self.dead or self.transport.is_closing():
            return False
        if self._now() - self._moved < STALE_AFTER_S:
            return True
        if self._probe is None:
            self._probe = Probe(self.transport)
        return self._probe.quiet()

    def pause(self) -> None:
        """The stream is full."""
        if not self._paused_reading and not self.dead and not self.transport.is_closing():
            self._paused_reading = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """The stream has room."""
        if self._paused_reading:
            self._paused_reading = False
            self._moved = self._now()
            if not self.dead and not self.transport.is_closing():
                self.transport.resume_reading()

    # -- deadlines ------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Is anything overdue? Called every 50 ms while anything is busy."""
        limits = self._limits
        if self._future is not None:
            self._check_busy(now)
        elif self._stream is None:
            if now - self._moved >= limits.idle_ms / 1000:
                self.close()
        elif not self._paused_reading and (now - self._moved) * 1000 > limits.idle_ms_between_bytes:
            self.give_up(Cause.CONNECTION_READ_TIMEOUT, "the answer stopped coming")

    def _check_busy(self, now: float) -> None:
        limits = self._limits
        unsent = untaken(self.transport)
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        late = overdue(
            limits,
            now=now,
            began_at=self._began,
            moved_at=self._moved,
            unsent=unsent,
            uploading=self.uploading,
            heard=self._preface != b"",
        )
        if late is not None:
            self.give_up(*late)
        elif self._head_at and self._length < 0 and not self.uploading:
            held_ms = (now - self._moved) * 1000
            if held_ms > limits.hold_ms or now - self._head_at > LONG_ANSWER_S:
                self._hand_over()
