"""The connections to one origin: idle ones last in, first out, and a bounded queue for more.

    connection = pool.idle.pop()                the fast way, where there is one
    connection = await pool.obtain()            an idle one, a new one, or a place in the queue
    connection = await pool.obtain(fresh=True)  a new one, where an idle one has just failed
    pool.sound()                                an idle one the kernel still thinks well of, or None

Whatever stands in the way is a Failure, never an exception, and nothing was sent (`Sent.NEVER`).

Last in, first out keeps few connections warm and lets the others grow idle and close. Waiters are
served in order: a connection that becomes free goes to the first of them and a newcomer cannot take
it. One sweep looks at all connections every 50 ms while anything is busy; no timer is set per
request. A sweep that comes late is put off once, until the loop has read: a loop that was blocked
finds the answers that lie in the kernel before it finds them overdue.

Names are resolved for each new connection; the addresses are tried one after the other, and each
gets its share of `connect_ms`. No proxy is taken from the environment.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from functools import partial
from typing import Any, Final

from ..core.message import Cause, Failure, Sent, Value
from ..outgoing import Outgoing
from .connection import Connection
from .limits import Limits

SWEEP_S: Final = 0.05
READ_FIRST_S: Final = 0.001
"""Later than this turn of the loop. asyncio reads before it runs timers; uvloop, where it was held
up by what it had read, runs them first."""

_UNROUTABLE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EAFNOSUPPORT}
)
_OURS: Final = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES, errno.EPERM,
        errno.EADDRNOTAVAIL,
    }
)  # fmt: skip
"""Of this machine: out of descriptors, of memory, of ports, or forbidden by its own firewall."""


class Origin(Value, frozen=True, kw_only=True):
    """Where connections go."""

    host: str
    port: int
    name: bytes
    """As a Host field says it."""
    tls: ssl.SSLContext | None = None

    @property
    def where(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Statistics(Value, frozen=True, kw_only=True):
    """A transport at one moment, and since it began."""

    idle: int
    busy: int
    waiting: int
    opened: int
    """Connections, ever."""
    reused: int
    """Requests, ever, that went out on a connection that had carried another."""


def _same(connection: Connection) -> Connection:
    return connection


class Pool:
    """See the head of this file."""

    def __init__(self, origin: Origin, *, limits: Limits) -> None:
        self.origin = origin
        self.limits = limits
        self.where = origin.where
        self.idle: list[Connection] = []
        self.outgoing = Outgoing()
        self.brisk = False
        """Is the sweep under way every 50 ms? Whoever makes a connection busy calls `hurry`."""
        self.closed = False
        self.waiting: deque[tuple[float, asyncio.Future[Connection | Failure | None]]] = deque()
        self._all: set[Connection] = set()
        self._taken = 0  # connections open, being opened, or promised to a waiter
        self._opened = 0
        self._requests = 0  # on connections that are gone
        self._retired = 0  # of those connections, the ones that were used
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0  # of the timer
        self._put_off = False

    def statistics(self) -> Statistics:
        requests = self._requests + sum(c.requests for c in self._all)
        used = sum(1 for c in self._all if c.requests)
        return Statistics(
            idle=len(self.idle),
            busy=len(self._all) - len(self.idle),
            waiting=len(self.waiting),
            opened=self._opened,
            reused=requests - used - self._retired,
        )

    # -- taking ---------------------------------------------------------------------------------

    def sound(self) -> Connection | None:
        """An idle connection that is not readable and not closed."""
        while self.idle:
            connection = self.idle[-1]
            if connection.alive():
                return self.idle.pop()
            connection.close()
        return None

    async def obtain(self, *, fresh: bool = False) -> Connection | Failure:
        """A connection for one request."""
        if self.closed:
            return self._failure(Cause.CLOSING, "we have shut down")
        if fresh and self.idle and self._taken >= self.limits.connections_max:
            self.idle[0].close()
        elif not fresh and (idle := self.sound()) is not None:
            return idle
        if self._taken < self.limits.connections_max:
            self._taken += 1
            return await self._dial()
        if len(self.waiting) >= self.limits.waiting_max:
            return self._failure(
                Cause.CONNECTION_LIMIT_REACHED,
                f"{self._taken} connections are busy and {len(self.waiting)} requests wait",
            )
        return await self._wait()

    async def _wait(self) -> Connection | Failure:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Connection | Failure | None] = loop.create_future()
        self.waiting.append((loop.time(), future))
        if not self.brisk:
            self.hurry()
        try:
            got = await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self._return(future.result())
            raise
        if got is None:
            return await self._dial()
        if isinstance(got, Connection) and got.dead:
            return await self.obtain()  # it closed on its way to us
        return got

    def _return(self, got: Connection | Failure | None) -> None:
        """A waiter was cancelled with something already in its hands."""
        if isinstance(got, Connection):
            if not got.dead:
                self.put(got)
        elif got is None:
            self._release()

    async def _dial(self) -> Connection | Failure:
        """Open a connection. A place for it is taken already."""
        try:
            async with asyncio.timeout(self.limits.connect_ms / 1000):
                connection = await self._connect(asyncio.get_running_loop())
        except BaseException as error:
            self._release()
            failure = self._explain(error)
            if failure is None:
                raise
            return failure
        if self.closed or connection.dead:
            connection.close()
            self._release()
            return self._failure(Cause.CONNECTION_TERMINATED, "closed before anything was sent")
        self._opened += 1
        self._all.add(connection)
        if not self.brisk:
            self.hurry()
        return connection

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        origin = self.origin
        infos = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        deadline = loop.time() + self.limits.connect_ms / 1000
        options: dict[str, Any] = {}
        if origin.tls is not None:
            options = {"ssl": origin.tls, "server_hostname": origin.host}
        error: OSError | None = None
        for number, (*_, address) in enumerate(infos):
            share = (deadline - loop.time()) / (len(infos) - number)
            connection = Connection(self, loop=loop)
            try:
                async with asyncio.timeout(share):
                    await loop.create_connection(
                        partial(_same, connection), str(address[0]), int(address[1]), **options
                    )
            except (OSError, TimeoutError) as failed:
                connection.dead = True
                error = failed
            except BaseException:
                connection.dead = True
                raise
            else:
                return connection
        raise error or socket.gaierror("no address")

    def _explain(self, error: BaseException) -> Failure | None:
        where = self.where
        if isinstance(error, TimeoutError) or getattr(error, "errno", 0) == errno.ETIMEDOUT:
            return self._failure(
                Cause.CONNECTION_TIMEOUT, f"no connection within {self.limits.connect_ms} ms"
            )
        if isinstance(error, socket.gaierror):
            return Failure(
                Cause.DNS_ERROR, f"the name {self.origin.host} was not found", Sent.NEVER
            )
        if isinstance(error, ConnectionRefusedError):
            return Failure(Cause.CONNECTION_REFUSED, f"{where} refused the connection", Sent.NEVER)
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._failure(Cause.TLS_CERTIFICATE_ERROR, error.verify_message)
        if isinstance(error, ssl.SSLError):
            return self._failure(Cause.TLS_PROTOCOL_ERROR, f"TLS failed: {error.reason or error}")
        if not isinstance(error, OSError):
            return None
        if error.errno in _UNROUTABLE:
            return self._failure(Cause.DESTINATION_IP_UNROUTABLE, "cannot be reached")
        if error.errno in _OURS:
            return self._failure(Cause.PROXY_INTERNAL_ERROR, f"cannot connect: {error.strerror}")
        if self.origin.tls is not None:
            return self._failure(Cause.TLS_PROTOCOL_ERROR, "closed the connection during TLS")
        return self._failure(Cause.CONNECTION_TERMINATED, f"cannot connect: {error}")

    def _failure(self, cause: Cause, what: str) -> Failure:
        return Failure(cause, f"{self.where}: {what}", Sent.NEVER)

    # -- giving back: called by connections -----------------------------------------------------

    def put(self, connection: Connection) -> None:
        """It can carry another request."""
        while self.waiting:
            _, future = self.waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        self.idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """It is gone."""
        if connection not in self._all:
            return
        self._all.remove(connection)
        self._requests += connection.requests
        self._retired += connection.requests > 0
        if connection in self.idle:
            self.idle.remove(connection)
        self._release()

    def _release(self) -> None:
        """A place is free: it passes to the first who waits, who opens his own connection."""
        while self.waiting:
            _, future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self._taken -= 1

    # -- time -----------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Something is busy: look every 50 ms."""
        self.brisk = True
        self._put_off = False  # one that was put off while all were idle: this is another
        self._schedule(SWEEP_S)

    def _schedule(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._due_at = loop.time() + delay
        self._timer = loop.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._put_off = not self._put_off and now - self._due_at > SWEEP_S
        if self._put_off:
            self._schedule(READ_FIRST_S)
            return
        for connection in tuple(self._all):
            connection.check(now)
        self._expire(now)
        if not self._all and not self.waiting:
            self.brisk = False
        elif self.waiting or len(self.idle) < len(self._all):
            self._schedule(SWEEP_S)
        else:
            self.brisk = False
            self._schedule(max(SWEEP_S, self.limits.idle_ms / 4000))

    def _expire(self, now: float) -> None:
        """Waiters are in order of age, so the first who may still wait ends the search."""
        limit = self.limits.connect_ms / 1000
        while self.waiting:
            since, future = self.waiting[0]
            if not future.done() and now - since <= limit:
                return
            self.waiting.popleft()
            if not future.done():
                future.set_result(
                    self._failure(
                        Cause.CONNECTION_LIMIT_REACHED,
                        f"no connection became free within {self.limits.connect_ms} ms",
                    )
                )

    async def aclose(self) -> None:
        """Close all, answer all who wait, and let the sockets go."""
        self.closed = True
        while self.waiting:
            _, future = self.waiting.popleft()
            if not future.done():
                future.set_result(self._failure(Cause.CLOSING, "we shut down before it was sent"))
        for connection in tuple(self._all):
            connection.give_up(Cause.CLOSING, "we shut down before the answer came")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.brisk = False
        for _ in range(3):  # transports close their sockets in the next turns of the loop
            await asyncio.sleep(0)
