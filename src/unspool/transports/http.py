"""HTTP/1.1 out: one attempt at one origin, and what came of it.

    transport = HttpTransport("https://api.example", limits=Limits())
    answer = await transport.attempt(request, repeat=True)      Response | Failure
    await transport.aclose()

The request goes out as it is: method, target, and fields in their order, case and number. Framing
is written here, from the body. The answer comes back as it is, less the fields that belong to this
connection. A body up to `keep_max_bytes` comes whole; a larger or a slow one streams in `rest`.

A Failure says whether the request can have been received: `Sent.NEVER` until its first byte was
written, `Sent.MAYBE` afterwards. A request that died on a connection which had been used before,
without a byte of an answer, goes out once more on a new one if `repeat`; one that may not be
repeated is sent only on a connection that the kernel thinks well of, or that answered just now.

Does not retry otherwise, follow redirects, decompress, cache, keep cookies, read proxies from the
environment, or speak HTTP/2. TLS always verifies the certificate and the name.

Known faults: a request of which a byte was given to the kernel counts as sent, although it may
never have left the machine. An answer that comes before a streamed request was read to its end
ends that request. A connection that dies between a check, or an answer STALE_AFTER_S ago, and the
write costs a request that may not be repeated a Failure with `Sent.MAYBE`: unless the loop hears of
it within the turn, at whose end a request with a small body is written.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from ..core.message import Answer, Cause, Failure, Request, Sent
from ..core.urls import concealed
from ..errors import Misconfigured
from .connection import Connection
from .head import Unsendable, render
from .limits import Limits
from .pool import Origin, Pool, Statistics
from .upload import upload

__all__ = ["HttpTransport", "Limits", "Statistics"]


class HttpTransport:
    """See the head of this file."""

    tells: Final = True

    def __init__(
        self, origin: str, *, limits: Limits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """`tls` is for https: an own trust store, or a client certificate. It must verify."""
        self._pool = Pool(parse(origin, tls=tls), limits=limits or Limits())
        self._idle = self._pool.idle
        self._host = self._pool.origin.name
        self._repeats: set[asyncio.Task[Answer]] = set()

    def __repr__(self) -> str:
        now = self.statistics()
        state = "closed" if self._pool.closed else f"{now.busy} busy, {now.idle} idle"
        return f"<HttpTransport to {self._pool.where}: {state}, {now.waiting} waiting>"

    def statistics(self) -> Statistics:
        return self._pool.statistics()

    async def attempt(
        self,
        request: Request,
        /,
        *,
        repeat: bool = True,
        sending: Callable[[], None] | None = None,
    ) -> Answer:
        """One try. Cancelling it closes its connection. `sending` is called when there is one, and
        the request goes out."""
        try:
            head = render(request, self._host)
        except Unsendable as complaint:
            return Failure(Cause.PROXY_INTERNAL_ERROR, f"not sent: {complaint}", Sent.NEVER)
        pool = self._pool
        streamed = request.rest is not None
        connection: Connection | None = None
        if self._idle:
            connection = self._idle.pop() if repeat and not streamed else pool.sound()
        if connection is None:
            obtained = await pool.obtain()
            if isinstance(obtained, Failure):
                return obtained
            connection = obtained
        if not pool.brisk:
            pool.hurry()
        if sending is not None:
            sending()
        if streamed:
            return await upload(connection, head, request)
        future = connection.send(head, request.body, request.method == b"HEAD")
        try:
            answer = await future
        except asyncio.CancelledError:
            connection.abandon(future)
            raise
        if type(answer) is Failure and _goes_again(answer, connection, repeat):
            return await self._once_more(head, request, answer.sent)
        return answer

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Told | None:
        """The same without waiting, where a connection is at hand; None: nothing was begun."""
        pool = self._pool
        if not self._idle or request.rest is not None:
            return None
        try:
            head = render(request, self._host)
        except Unsendable:
            return None
        connection = self._idle.pop() if repeat else pool.sound()
        if connection is None:
            return None
        if not pool.brisk:
            pool.hurry()
        told = Told(self, connection, head, request, repeat, done)
        connection.send_for(told, head, request.body, request.method == b"HEAD")
        return told

    async def _once_more(self, head: bytes, request: Request, sent: Sent) -> Answer:
        """On a new connection, after a used one had died without us knowing."""
        connection = await self._pool.obtain(fresh=True)
        if isinstance(connection, Failure):
            return Failure(connection.cause, connection.detail, sent)  # of both tries
        future = connection.send(head, request.body, request.method == b"HEAD")
        try:
            return await future
        except asyncio.CancelledError:
            connection.abandon(future)
            raise

    def once_more(
        self, head: bytes, request: Request, sent: Sent, done: Callable[[Answer], None]
    ) -> asyncio.Task[Answer]:
        """As `_once_more`, for somebody who does not wait."""
        task = asyncio.get_running_loop().create_task(self._once_more(head, request, sent))
        self._repeats.add(task)

        def tell(task: asyncio.Task[Answer]) -> None:
            self._repeats.discard(task)
            if not task.cancelled():
                done(task.result())

        task.add_done_callback(tell)
        return task

    async def aclose(self) -> None:
        """Close idle connections and give up the busy ones."""
        await self._pool.aclose()


class Told:
    """Whoever began an attempt without waiting for it: told at once, in the middle of a read."""

    __slots__ = (
        "_again", "_answered", "_connection", "_done", "_head", "_repeat", "_request", "_transport",
    )  # fmt: skip

    def __init__(
        self,
        transport: HttpTransport,
        connection: Connection,
        head: bytes,
        request: Request,
        repeat: bool,
        done: Callable[[Answer], None],
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._head = head
        self._request = request
        self._repeat = repeat
        self._done = done
        self._answered = False
        self._again: asyncio.Task[Answer] | None = None

    def done(self) -> bool:
        return self._answered

    def set_result(self, answer: Answer) -> None:
        self._answered = True
        if type(answer) is Failure and _goes_again(answer, self._connection, self._repeat):
            self._again = self._transport.once_more(
                self._head, self._request, answer.sent, self._done
            )
        else:
            self._done(answer)

    def abandon(self) -> None:
        """Nobody waits for it any longer."""
        if self._again is not None:
            self._again.cancel()
        elif not self._answered:
            self._answered = True
            self._connection.close()


def _goes_again(answer: Failure, connection: Connection, repeat: bool) -> bool:
    """Once more, on a new connection? Not where it was we who waited for long enough."""
    died = connection.stale and answer.cause is Cause.CONNECTION_TERMINATED
    return died and (repeat or answer.sent is Sent.NEVER)


def parse(origin: str, *, tls: ssl.SSLContext | None) -> Origin:
    """An origin as a person writes it."""
    try:
        parts = urlsplit(origin)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        said = concealed(origin)
        raise Misconfigured(f"{said!r} is no origin: {error}. Write http://host:port.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise Misconfigured(
            f"{concealed(origin)!r} is no origin. Write http://host:port or https://host."
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise Misconfigured(
            f"{concealed(origin)!r} says more than an origin: leave scheme, host and port."
        )
    if not origin.isascii() or not origin.isprintable() or " " in origin or port == 0:
        raise Misconfigured(
            f"{origin!r} cannot be a host. Write a name in ASCII (xn--…), and a port."
        )
    secure = parts.scheme == "https"
    if tls is not None and not secure:
        raise Misconfigured(f"{origin!r} has no TLS, but a TLS context was given. Write https://.")
    usual = 443 if secure else 80
    shown = f"[{host}]" if ":" in host else host
    name = shown if port in (None, usual) else f"{shown}:{port}"
    context = _context(origin, tls) if secure else None
    return Origin(host=host, port=port or usual, name=name.encode(), tls=context)


def _context(origin: str, tls: ssl.SSLContext | None) -> ssl.SSLContext:
    context = tls or ssl.create_default_context()
    if not context.check_hostname or context.verify_mode is not ssl.CERT_REQUIRED:
        raise Misconfigured(f"The TLS context for {origin} does not verify certificate and name.")
    context.set_alpn_protocols(["http/1.1"])  # a server that would rather speak h2 may not
    return context
