"""Writing: the answers of one connection become bytes, no faster than the caller takes them.

    writing.small(response)                 a whole answer on a connection that lives on: the usual
    await writing.answer(response, …)       any answer; says whether the connection lives on
    writing.close()                         the end, once all is written
    writing.stuck(now_ms)                   has the caller taken too little for too long?
    writing.over()                          is it only TLS that keeps a closed connection?

Framing (RFC 9112 §6.3): Content-Length where the length is known, else chunks, or for HTTP/1.0 the
end of the connection. An answer whose body breaks off (`Severed`), or has more or fewer bytes than
were declared, ends in a reset: what came can never be taken for the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from ..core.message import Reader, Response, Severed
from ..problems import problem
from ..untaken import unacknowledged, untaken
from .head import CHUNKED, CLOSE, KEEP_ALIVE, Unwritable, head, short_head

if TYPE_CHECKING:
    from .http import Door

log: Final = logging.getLogger("unspool.door")

_JOIN_MAX_BYTES: Final = 64 * 1024
"""Larger bodies are written by themselves: copying them costs more than a second write."""
_RESET: Final = struct.pack("ii", 1, 0)


class Writing:
    """The writing half of one connection."""

    __slots__ = (
        "_closed",
        "_door",
        "_held",
        "_quiet",
        "_rest",
        "_slow_since_ms",
        "_taken_bytes",
        "_transport",
        "_written_bytes",
        "drained",
        "lost",
    )  # fmt: skip

    def __init__(self, door: Door, transport: asyncio.Transport) -> None:
        self._door = door
        self._transport = transport
        self.drained: asyncio.Future[None] | None = None
        """Set while the caller takes less than it is sent."""
        self._held = b""  # small answers of this turn: see outgoing
        self._rest: Reader | None = None
        self._closed = self._quiet = False
        self._slow_since_ms = door.now_ms
        self._written_bytes = self._taken_bytes = 0
        self.lost = False

    # the socket's side

    def pause(self) -> None:
        if self.drained is None:
            self.drained = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def lose(self) -> None:
        """The caller is gone: whoever waits for it waits no longer."""
        self.lost = True
        self._held = b""
        self.resume()
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.close()

    def stuck(self, now_ms: int) -> bool:
        limits = self._door.limits
        left = untaken(self._transport)
        taken = self._written_bytes - left
        due = max(1, limits.body_rate_min_bytes * limits.write_ms // 1000)
        if not left or taken - self._taken_bytes >= due:
            self._slow_since_ms, self._taken_bytes = now_ms, taken
        return now_ms - self._slow_since_ms > limits.write_ms

    def over(self) -> bool:
        """TLS waits half a minute for the caller to say goodbye, and one that idles does not.

        Asked at each sweep, and so when the caller's kernel has taken all, and our goodbye; at the
        second time, for in between the event loop writes what it has.
        """
        transport = self._transport
        busy = not self._closed or transport.get_write_buffer_size() or unacknowledged(transport)
        before, self._quiet = self._quiet, not busy
        return before and self._quiet

    @property
    def full(self) -> bool:
        return self.drained is not None

    async def drain(self) -> None:
        """Until the caller has taken most of what it was sent, or is gone."""
        if self.drained is not None:
            await self.drained

    def reset(self) -> None:
        """End the connection so that nobody can take what was sent for the whole.

        An answer without length would look whole if the connection merely closed, so it is reset:
        SO_LINGER of zero seconds, on whatever object the event loop shows for the socket.
        """
        self._door.broken_off_total += 1
        self.flush()
        shown = self._transport.get_extra_info("socket")
        if shown is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(shown.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # answers

    def write(self, data: bytes) -> None:
        """Now, behind what is held."""
        if not self.lost:
            if self._held:
                self.flush()
            self._written_bytes += len(data)
            self._transport.write(data)

    def flush(self) -> None:
        """What is held goes out. Before whatever ends the connection, or passes by `_hold`."""
        held = self._held
        if held:
            self._held = b""
            self._written_bytes += len(held)
            try:  # noqa: SIM105 - on the way of every answer, and free where nothing is raised
                self._transport.write(held)
            except RuntimeError:
                pass  # uvloop: closed, and about to tell us

    def close(self) -> None:
        self.flush()
        if not self._closed:  # asyncio's TLS forgets at a second time what it would have to abort
            self._closed = True
            self._transport.close()

    def small(self, response: Response) -> None:
        """The fast path: everything is here, and the connection lives on."""
        body = response.body
        status = response.status
        door = self._door
        empty = status == 204 or status == 304
        written = None if empty else short_head(response, len(body), door.date)
        if written is None:
            try:
                if empty:
                    written = head(response, _length_of(response), door.date)
                    body = b""
                else:
                    written = head(response, b"Content-Length: %d\r\n" % len(body), door.date)
            except Unwritable as fault:
                self.small(self.mistake(f"An answer cannot be written: {fault}"))
                return
        if len(body) < _JOIN_MAX_BYTES:
            if self._held:
                self._held += written + body
                if len(self._held) > _JOIN_MAX_BYTES:
                    self.flush()  # so that back-pressure is felt
            else:
                self._held = written + body  # until the end of this turn, with the others'
                door.outgoing.add(self)
        else:
            self.write(written)
            self.write(body)

    def mistake(self, what: str) -> Response:
        """A broken contract on our side of the door: told to the log, and to the caller as 500."""
        log.exception("%s; the caller gets a 500", what)
        self._door.mistakes_total += 1
        return problem("internal")

    async def answer(self, response: Response, *, head_only: bool, old: bool, keep: bool) -> bool:
        """Write any answer. False: the connection ends here."""
        rest = response.rest
        status = response.status
        chunked = False
        if status == 204 or status == 304:
            framing = _length_of(response)
        elif rest is None:
            length = response.length if head_only and response.length >= 0 else len(response.body)
            framing = b"Content-Length: %d\r\n" % length
        elif response.length >= 0:
            framing = b"Content-Length: %d\r\n" % response.length
        elif old:
            framing = b""
            keep = keep and head_only
        else:
            framing = CHUNKED
            chunked = not head_only
        framing += CLOSE if not keep else KEEP_ALIVE if old else b""
        try:
            written = head(response, framing, self._door.date)
        except Unwritable as fault:
            if rest is not None:
                rest.close()
            response = self.mistake(f"An answer cannot be written: {fault}")
            return await self.answer(response, head_only=head_only, old=old, keep=keep)
        if head_only or status == 204 or status == 304:
            self.write(written)
            if rest is not None:
                rest.close()
            return keep
        body = response.body
        if chunked and body:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        self.write(written + body)
        if rest is None:
            return keep
        left = -1 if response.length < 0 else response.length - len(response.body)
        return await self._pour(rest, left, chunked) and keep

    async def _pour(self, rest: Reader, left: int, chunked: bool) -> bool:
        """Write what streams. False: it broke off, or the caller did."""
        self._rest = rest
        counted = left >= 0
        try:
            while True:
                if self.drained is not None:
                    await self.drained
                if self.lost:
                    return False
                data = await rest.read()
                if not data:
                    break
                left -= len(data)
                if counted and left < 0:
                    raise Severed("There were more bytes than were declared.")
                self.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if counted and left:
                raise Severed("There were fewer bytes than were declared.")
        except Severed as severed:
            if not self.lost:
                log.info("An answer broke off on its way: %s", severed)
                self.reset()
            return False
        except Exception:
            if not self.lost:
                log.exception("An answer could not be read to its end")
                self._door.mistakes_total += 1
                self.reset()
            return False
        else:
            self._rest = None
            if chunked:
                self.write(b"0\r\n\r\n")
            return True
        finally:
            if self._rest is not None:
                self._rest = None
                rest.close()


def _length_of(response: Response) -> bytes:
    """What a 304 may say of the body it spares (RFC 9110 §8.6); of a 204, nothing."""
    if response.status == 204 or response.length < 0:
        return b""
    return b"Content-Length: %d\r\n" % response.length
