"""The PostgreSQL spool's connections: borrowed for one transaction, each with a deadline.

    link = Link(target)
    value = await link.run(work)                 BEGIN, what `work(transaction)` asks, COMMIT
    value = await link.run(work, within_s=60)
    connection = await link.connect()            one for itself; the caller's to close
    await link.aclose()

A transaction is sent as a pipeline: what needs no answer in between is one round trip, its COMMIT
with it. Nothing is prepared, and nothing is set but for the transaction: PgBouncer may give each to
another session.

Deadlines. Whoever waits for a connection, for the server to be reached, and for its answers waits
`within_s` in all, or as long as the URL says. Then the socket is shut under libpq, which says so at
once, whatever the server does; the server itself gives a statement up a little earlier.

A connection that has had any trouble is closed, and all that are idle with it: they mostly have had
the same. One that the server has closed while it was idle is readable, and not used. So after a
restart of the server the next call connects anew. Where the server refuses, that is known at once:
psycopg_pool would wait for its timeout first, and not say why. Two transactions that crossed are
done again, whole, up to TRIES times.

Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import TransactionStatus

from ...errors import Misconfigured, NotDone, Unavailable
from .errors import translate
from .target import Target

T = TypeVar("T")

SPARE: Final = 0.1
"""Of the time: so much earlier does the server give a statement up than we the server."""
IDLE_MS: Final = 5_000
"""Of a transaction whose client stands still: then its locks are let go. Less, where the deadline
is shorter."""
IDLE_MAX_S: Final = 300.0
"""A firewall forgets a connection that nothing goes over."""
TRIES: Final = 4

_CROSSED: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


class Transaction:
    """What has been begun on a borrowed connection. `ask` sends; the cursor has the answer."""

    def __init__(
        self, connection: AsyncConnection[Any], queries: dict[str, str], target: Target
    ) -> None:
        self.connection: Final = connection
        self.target: Final = target
        self._queries = queries
        self.ends_with = "COMMIT"
        self.committing = False
        self.late = False
        self.unconfirmed = False

    def noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        # "canceling wait for synchronous replication": it is committed, and on one host alone.
        if notice.severity_nonlocalized == "WARNING":
            self.unconfirmed = True

    def give_up(self) -> None:
        """Its time is over."""
        self.late = True
        cut(self.connection)

    async def ask(self, query: str, **values: Any) -> AsyncCursor[Any]:
        """Rows are there with `fetchall`: in between, for a round trip; after `run`, for none."""
        return await self.connection.execute(
            self._queries[query].encode(), values, binary=True, prepare=False
        )

    async def do(self, statement: str) -> None:
        """One that is no query of ours: for making tables."""
        await self.connection.execute(statement.encode(), prepare=False)

    def roll_back(self) -> None:
        """Nothing of this is to have happened."""
        self.ends_with = "ROLLBACK"


class Link:
    def __init__(self, target: Target, queries: dict[str, str], *, commit: str = "on") -> None:
        self.target: Final = target
        self.queries: Final = queries
        self.commit = commit
        """What a commit waits for: synchronous_commit of each transaction."""
        self.in_use = False
        """Was it opened? Then what is wrong with it is an outage, and no reason to stop."""
        self._slots = asyncio.Semaphore(target.connections)
        self._idle: list[tuple[AsyncConnection[Any], float]] = []
        self._closed = False

    async def run(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        within_s: float | None = None,
        begin: str = "begin",
        walks: bool = False,
    ) -> T:
        """`walks`: it reads all rows, and is not to look each up. Raises what `translate` makes of
        trouble; what `work` raises undoes the transaction."""
        until = asyncio.get_running_loop().time() + (within_s or self.target.deadline_s)
        for left in reversed(range(TRIES)):
            try:
                return await self._once(work, until, begin, walks)
            except _CROSSED as error:
                if not left:
                    raise translate(error, self.target, committing=False) from error
            except Misconfigured as error:
                if self.in_use:
                    raise NotDone(str(error)) from error  # it may be mended while we run
                raise
        raise AssertionError("the last try gives or raises")

    async def _once(
        self, work: Callable[[Transaction], Awaitable[T]], until: float, begin: str, walks: bool
    ) -> T:
        loop = asyncio.get_running_loop()
        async with in_turn(self._slots, self.target, until=until):
            connection = await self._borrowed(until)
            transaction = Transaction(connection, self.queries, self.target)
            timer = loop.call_at(until, transaction.give_up)
            connection.add_notice_handler(transaction.noticed)
            try:
                left_ms = max(1, int((until - loop.time()) * (1 - SPARE) * 1000))
                settings = {
                    "commit": self.commit,
                    "statement_ms": str(left_ms),
                    "idle_ms": str(min(IDLE_MS, left_ms)),
                    "walks": "on" if walks else "off",
                }
                result = await self._piped(transaction, work, begin, settings)
                if transaction.unconfirmed:
                    raise unconfirmed(self.target)
            except BaseException as error:
                await self._drop(connection)
                if isinstance(error, psycopg.Error | OSError) and not isinstance(error, _CROSSED):
                    raise translate(
                        error, self.target, committing=transaction.committing, late=transaction.late
                    ) from error
                raise
            finally:
                timer.cancel()
            connection.remove_notice_handler(transaction.noticed)
            self._give_back(connection)
            return result

    async def _piped(
        self,
        transaction: Transaction,
        work: Callable[[Transaction], Awaitable[T]],
        begin: str,
        settings: dict[str, str],
    ) -> T:
        connection = transaction.connection
        trouble: Exception | None = None
        try:
            async with connection.pipeline():
                try:
                    await transaction.ask(begin)
                    await transaction.ask("settings", **settings)
                    result = await work(transaction)
                    transaction.committing = True
                    await connection.execute(transaction.ends_with.encode())
                except Exception as error:
                    trouble = error  # psycopg would log what the end of the pipeline adds to it
        except psycopg.Error as error:
            trouble = trouble or error
        if trouble is not None:
            raise trouble
        return result

    # -- connections ---------------------------------------------------------------------------

    async def connect(self, *, within_s: float | None = None) -> AsyncConnection[Any]:
        """A new connection. Raises as `run`."""
        if self._closed:
            raise closed(self.target)
        try:
            async with asyncio.timeout(within_s or self.target.deadline_s):
                connection = await AsyncConnection.connect(
                    **self.target.parameters, autocommit=True, prepare_threshold=None
                )
        except (psycopg.Error, OSError, TimeoutError) as error:
            await self._forget_idle()
            raise translate(error, self.target, committing=False, connecting=True) from error
        return connection

    async def _borrowed(self, until: float) -> AsyncConnection[Any]:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, since = self._idle.pop()
            if not readable(connection) and now - since < IDLE_MAX_S:
                return connection
            await connection.close()
        return await self.connect(within_s=max(0.001, until - now))

    def _give_back(self, connection: AsyncConnection[Any]) -> None:
        assert connection.info.transaction_status is TransactionStatus.IDLE
        if self._closed:
            connection.pgconn.finish()
        else:
            self._idle.append((connection, asyncio.get_running_loop().time()))

    async def _drop(self, connection: AsyncConnection[Any]) -> None:
        await connection.close()
        await self._forget_idle()

    async def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await connection.close()

    async def aclose(self) -> None:
        self._closed = True
        await self._forget_idle()


@asynccontextmanager
async def in_turn(
    turns: asyncio.Semaphore | asyncio.Lock, target: Target, *, until: float | None = None
) -> AsyncIterator[None]:
    """One of those who may go on at once, waited for until then, or its deadline."""
    try:
        until = until or asyncio.get_running_loop().time() + target.deadline_s
        async with asyncio.timeout_at(until):
            await turns.acquire()
    except TimeoutError as error:
        raise NotDone(
            f"The spool {target.shown} was busy for too long with what had come before, over at"
            f" most {target.connections} connections. Nothing of this was done; repeat it. See what"
            f" they do: {target.command('psql')} -c 'TABLE pg_stat_activity'"
        ) from error
    try:
        yield
    finally:
        turns.release()


def readable(connection: AsyncConnection[Any]) -> bool:
    """Of an idle connection: has the server said something, which can only be good-bye?"""
    try:
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN | select.POLLERR | select.POLLHUP)
        return bool(poll.poll(0))
    except (psycopg.Error, OSError):
        return True


def cut(connection: AsyncConnection[Any]) -> None:
    """End what is going on over it, now: libpq sees a closed socket."""
    with suppress(psycopg.Error, OSError), _again(connection.pgconn.socket) as again:
        again.shutdown(socket.SHUT_RDWR)


def _again(descriptor: int) -> socket.socket:
    return socket.socket(fileno=os.dup(descriptor))


def unconfirmed(target: Target) -> Unavailable:
    return Unavailable(
        f"The spool {target.shown} wrote this, and its standby has not confirmed it in time. It may"
        " or may not outlive the host; repeat it under the same key. See who replicates:"
        f" {target.command('psql')} -c 'TABLE pg_stat_replication'"
    )


def closed(target: Target) -> NotDone:
    return NotDone(
        f"The spool {target.shown} is closed. Nothing of this was done; what was accepted is kept."
        " Start again: unspool serve"
    )
