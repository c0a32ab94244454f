"""The PostgreSQL spool's bell: a NOTIFY for others' arrivals, and a clock for where none is heard.

    bell = Bell(link, arrivals)
    bell.ring()                something of ours may interest the others
    await bell.wait()          until something may have arrived, here or elsewhere
    await bell.aclose()

LISTEN has a connection of its own, made at the first `wait` and again whenever it breaks. Whether
anything is heard on it is tried, not believed: a NOTIFY goes out over another connection and must
come back. Behind PgBouncer, where transactions share sessions, it does not; then `wait` returns
POLL_S later whatever happens, and LISTEN is tried again from time to time. Where it is heard,
`wait` returns after LISTENING_S all the same: a relay that died between its COMMIT and its NOTIFY
told nobody.

NOTIFY goes out by itself, after the batch, at most every RING_S: in the batch's own transaction it
would make the commits of the whole cluster wait for one another while they sync.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from ...errors import UnspoolError
from ..arrivals import Arrivals
from .link import Link, Transaction, cut

log: Final = logging.getLogger("unspool.spool")

POLL_S: Final = 0.5
LISTENING_S: Final = 5.0
RING_S: Final = 0.02
PROBE_S: Final = 2.0
CHECK_S: Final = 30.0
"""A connection over which nothing comes is asked whether it is there."""
PAUSES_S: Final = (0.2, 1.0, 5.0)
"""Before the connection is made again."""
DEAF_S: Final = 60.0
"""Before LISTEN is tried again where nothing was heard."""


class Bell:
    def __init__(self, link: Link, arrivals: Arrivals) -> None:
        self.hears = False
        """Does a NOTIFY reach us?"""
        self._link = link
        self._arrivals = arrivals
        self._me = os.urandom(8).hex()
        self._probe = ""
        self._listening: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._again = False
        self._told_deaf = False
        self._closed = False

    # -- others hear of us ---------------------------------------------------------------------

    def ring(self) -> None:
        if self._closed:
            return
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.get_running_loop().create_task(self._ring())
        else:
            self._again = True

    async def _ring(self) -> None:
        while True:
            self._again = False
            with suppress(UnspoolError):  # they look by themselves, a little later
                await self._notify(self._me)
            await asyncio.sleep(RING_S)
            if not self._again:
                return

    async def _notify(self, who: str) -> None:
        async def work(transaction: Transaction) -> None:
            await transaction.ask("ring", who=who)

        await self._link.run(work)

    # -- we hear of others ---------------------------------------------------------------------

    async def wait(self) -> None:
        if self._listening is None and not self._closed:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTENING_S if self.hears else POLL_S):
                await self._arrivals.wait()

    async def _listen(self) -> None:
        failures = 0
        while True:
            connection: AsyncConnection[Any] | None = None
            pause = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
            failures += 1
            try:
                connection = await self._link.connect()
                await self._ask(connection, self._link.queries["listen"])
                self._arrivals.ring()  # what came in while nobody listened
                if await self._hear(connection):
                    failures = 0
                else:
                    pause = DEAF_S
            except (UnspoolError, psycopg.Error, OSError) as error:
                log.debug("the spool's notifications broke off: %s", error)
            finally:
                self.hears = False
                if connection is not None:
                    await connection.close()
            await asyncio.sleep(pause)

    async def _hear(self, connection: AsyncConnection[Any]) -> bool:
        """Until the connection breaks, which raises. False: nothing comes over it."""
        self._probe = os.urandom(8).hex()
        await self._notify(self._probe)
        until = asyncio.get_running_loop().time() + PROBE_S
        while True:
            within = CHECK_S if self.hears else until - asyncio.get_running_loop().time()
            if within <= 0:
                self._say_deaf()
                return False
            async with aclosing(connection.notifies(timeout=within)) as notes:
                async for note in notes:
                    self._heard(note.payload)
                    if note.payload == self._probe:
                        break  # from now on there is another timeout
            if self.hears:
                await self._ask(connection, "SELECT 1")

    def _heard(self, who: str) -> None:
        if who == self._probe:
            self.hears = True
        elif who != self._me:
            self._arrivals.ring()

    def _say_deaf(self) -> None:
        if not self._told_deaf:
            self._told_deaf = True
            log.warning(
                "no notification comes from the spool %s: PgBouncer pools transactions, probably."
                " Others' messages are looked for every %g s instead",
                self._link.target.shown, POLL_S,
            )  # fmt: skip

    async def _ask(self, connection: AsyncConnection[Any], query: str) -> None:
        timer = asyncio.get_running_loop().call_later(self._link.target.deadline_s, cut, connection)
        try:
            await connection.execute(query.encode())
        finally:
            timer.cancel()

    async def aclose(self) -> None:
        self._closed = True
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._ringing is not None:
            self._again = False
            await self._ringing  # it has a deadline
