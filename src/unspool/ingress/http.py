"""The HTTP door: an HTTP/1.1 server for one handler, for a hostile network.

    door = Door(handler, limits=Limits())
    await door.listen([listener("127.0.0.1:8700")])
    …
    await door.close(drain_ms=10_000)

What the handler is asked and gives is told in `protocol`. What reaches it is whole and strict:
`reading` and `strict` say what is refused, each refusal a problem document (RFC 9457) followed by
the end of the connection. What comes from it goes out as given: `writing` and `head`. How a
connection lives is in `connection`, what it may cost in `limits`.

Promises. A request reaches the handler once or not at all, in the order of its connection. Memory
is bounded by `Limits`: per connection a head and a small body; for all together `bodies_max_bytes`
of bodies that are half here, wait for their turn or are being handled. No timer exists per request
or per connection: one sweep looks at all of them, four times a second.

Stress. From `stress_percent` (90 %) of `connections_max` on, idle connections are kept for
`stress_keepalive_ms` (2 s) and a head must come within `stress_head_ms` (2 s). At the cap itself
a newcomer is answered 503 with Retry-After without being read. Slow or idle callers lose their
place before busy ones do.

Closing. `close` stops accepting, closes idle connections at once, says `Connection: close` in
every answer from then on, and after `drain_ms` aborts what is left. A handler that still runs then
runs on, as it does whenever its caller has gone; whoever stops the event loop cancels it.

Does not: HTTP/2 (the ASGI door, behind a server that speaks it), CONNECT, Upgrade (`h2c` is
ignored, anything else is 501), trailers (dropped), 417 (an unknown expectation is passed on: RFC
9110 §10.1.1 makes it a MAY), methods that llhttp does not know (501).

Known: a TLS handshake under way is not counted in `connections_max` (it has `head_ms` to end). A
caller beyond the cap of those who are being told so is cut off without an answer.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, cast

from ..outgoing import Outgoing
from ..problems import problem
from .connection import BUSY_RETRY_S, Connection
from .head import last_words
from .limits import Limits, Statistics
from .listen import Listener, Opened, open_listener
from .protocol import Handler
from .reading import Ledger

__all__ = ["Door", "Limits", "Statistics"]

log: Final = logging.getLogger("unspool.door")

_BACKLOG: Final = 1024
_AFTER_ABORT_S: Final = 1.0
"""How long `close` waits for the event loop to take notice of what it aborted."""


class Door:
    """Listening sockets, their connections, and the clock over them."""

    def __init__(self, handler: Handler, *, limits: Limits | None = None) -> None:
        self._handler = handler
        self.limits: Final = limits or Limits()
        self.ledger: Final = Ledger()
        self.outgoing: Final = Outgoing()
        self.refused: Final[Counter[str]] = Counter()
        self.mistakes_total = 0
        self.broken_off_total = 0
        self.closing = False
        self.now_ms = 0
        self.date = b""
        self.ordinary = not self.limits.requests_per_connection_max
        """Does every answer that can keep its connection alive do so?"""
        self.head_ms = self.limits.head_ms
        self.keepalive_ms = self.limits.keepalive_ms
        self._connections: set[Connection] = set()
        self._turned_away: set[_TurnedAway] = set()
        self._connections_total = 0
        self._requests_total = 0
        self._date_second = 0
        self._opened: list[Opened] = []
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None
        self._gone: asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open" if self._servers else "not open"
        stress = ", stressed" if self.stressed else ""
        where = ", ".join(self.addresses) or "nowhere"
        return f"<Door {state} on {where}: {len(self._connections)} connections{stress}>"

    # opening and closing

    @property
    def sockets(self) -> list[socket.socket]:
        return [opened.socket for opened in self._opened]

    @property
    def addresses(self) -> list[str]:
        """What a caller would write: `http://127.0.0.1:8700`, `unix:/run/unspool.sock`."""
        return [opened.address for opened in self._opened]

    async def listen(self, listeners: Sequence[Listener | Opened]) -> None:
        """Open them all, or none; what is open already is taken over.

        Raises CannotCreate or Misconfigured.
        """
        loop = asyncio.get_running_loop()
        opened: list[Opened] = []
        try:
            for listener in listeners:
                if isinstance(listener, Opened):
                    opened.append(listener)
                else:
                    opened.extend(open_listener(listener))
        except BaseException:
            for one in opened:
                one.close()
            raise
        self._opened += opened
        if self._timer is None:
            self._tick()
        for one in opened:
            scheme = "http" if one.tls is None else "https"

            def accept(scheme: str = scheme) -> asyncio.Protocol:
                return self._accept(scheme)

            seconds = None if one.tls is None else self.limits.head_ms / 1000
            settings: dict[str, Any] = {
                "sock": one.socket, "backlog": _BACKLOG, "ssl": one.tls,
                "ssl_handshake_timeout": seconds,
            }  # fmt: skip
            server: asyncio.Server
            if one.socket.family != socket.AF_UNIX:
                server = await loop.create_server(accept, **settings)
            else:
                if sys.version_info >= (3, 13):  # it would remove systemd's file too
                    settings["cleanup_socket"] = False
                server = await loop.create_unix_server(accept, **settings)
            self._servers.append(server)

    async def close(self, *, drain_ms: int = 10_000) -> int:
        """Stop. Returns how many connections had to be aborted."""
        self.closing = True
        self.ordinary = False
        for server in self._servers:
            server.close()
        for opened in self._opened:
            opened.close()
        for connection in list(self._connections):
            connection.retire()
        left = 0
        if not await self._empty_within(drain_ms / 1000):
            left = len(self._connections)
            if left:
                log.warning("The door closes on %d connections that are still open", left)
            for connection in list(self._connections):
                connection.abort()
            await self._empty_within(_AFTER_ABORT_S)
        for turned in list(self._turned_away):
            turned.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return left

    async def _empty_within(self, seconds: float) -> bool:
        if not self._connections:
            return True
        self._gone.clear()
        try:
            await asyncio.wait_for(self._gone.wait(), seconds)
        except TimeoutError:
            return False
        return True

    # connections come and go

    @property
    def stressed(self) -> bool:
        limits = self.limits
        return len(self._connections) * 100 >= limits.connections_max * limits.stress_percent

    def _accept(self, scheme: str) -> asyncio.Protocol:
        if len(self._connections) < self.limits.connections_max:
            return Connection(self, self._handler, scheme)
        self.refused["busy"] += 1
        return _TurnedAway(self)

    def came(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._connections_total += 1

    def went(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._requests_total += connection.served
        if not self._connections:
            self._gone.set()

    def turn_away(self, turned: _TurnedAway) -> bytes:
        """What to say to one connection too many; nothing, if too many are being told already."""
        if len(self._turned_away) * 8 > self.limits.connections_max + 64:
            return b""
        self._turned_away.add(turned)
        return last_words(problem("busy", retry_after_s=BUSY_RETRY_S), date=self.date)

    def turned(self, turned: _TurnedAway) -> None:
        self._turned_away.discard(turned)

    def statistics(self) -> Statistics:
        under_way = sum(connection.served for connection in self._connections)
        return Statistics(
            connections=len(self._connections),
            connections_total=self._connections_total,
            requests_total=self._requests_total + under_way,
            refused=dict(self.refused),
            mistakes_total=self.mistakes_total,
            broken_off_total=self.broken_off_total,
            stressed=self.stressed,
        )

    # the clock

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        sweep_ms = self.limits.sweep_ms
        self._timer = loop.call_later(sweep_ms / 1000, self._tick)
        now_ms = int(loop.time() * 1000)
        # A loop that was held up has not read either: nobody pays for more than two sweeps of it.
        elapsed_ms = min(now_ms - self.now_ms, 2 * sweep_ms) if self.now_ms else 0
        self.now_ms = now_ms
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self.date = b"Date: %b\r\n" % email.utils.formatdate(second, usegmt=True).encode()
        stressed = self.stressed
        limits = self.limits
        self.head_ms = min(limits.head_ms, limits.stress_head_ms) if stressed else limits.head_ms
        self.keepalive_ms = (
            min(limits.keepalive_ms, limits.stress_keepalive_ms)
            if stressed
            else limits.keepalive_ms
        )
        for connection in list(self._connections):
            connection.sweep(now_ms, elapsed_ms)
            if self.closing:
                connection.retire()
        for turned in list(self._turned_away):
            turned.sweep(now_ms)


class _TurnedAway(asyncio.Protocol):
    """One connection too many: told so without being read, and given a moment to read it."""

    __slots__ = ("_door", "_transport", "_until_ms")

    _transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
        self._door = door
        self._until_ms = door.now_ms + door.limits.linger_ms

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        words = self._door.turn_away(self)
        if not words:
            self._transport.abort()
            return
        self._transport.write(words)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.turned(self)

    def sweep(self, now_ms: int) -> None:
        if now_ms >= self._until_ms:
            self.abort()

    def abort(self) -> None:
        self._transport.abort()
