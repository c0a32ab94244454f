"""A node's way to its spool, in a simulated world: it takes time, fails, and shuts.

    door = Door(spool, Trouble(fails_after=0.1), random=…)     a Spool for one node
    door.shut = True                                           its node was killed

Every verb takes a while on its way there and back, and fails now and then as `Unavailable`, before
or after it was done. When the node is killed its door shuts for ever: what a dying node still tries
reaches nobody, for a cancelled task runs its `finally` and a killed process does not. But a settle
that was on its way already arrives, as over a network it would; with `late_settle` so late that its
lease has passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from random import Random
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ..core.lifecycle import Verdict
from ..core.message import Destination, Instant, Key, Value
from ..errors import Unavailable
from ..spools.protocol import (
    Acceptance,
    Damaged,
    Entry,
    LaneDue,
    Lease,
    Promises,
    Query,
    Spool,
    Survives,
    Tally,
)

__all__ = ["LIFE", "WELL", "Door", "Trouble"]

T = TypeVar("T")

LIFE: ContextVar[list[asyncio.Task[Any]] | None] = ContextVar("unspool_testing_life", default=None)
"""The tasks of the node that this code belongs to; None: it belongs to nobody who can be killed."""


class Trouble(Value, frozen=True):
    """How the way to the spool is: for each call."""

    pause_ms: int = 5
    """The longest that a call takes on its way there, and again on its way back."""
    fails_before: float = 0.0
    """Unavailable, and nothing was done."""
    fails_after: float = 0.0
    """Unavailable, and it was done."""
    late_settle: float = 0.0
    """A settle is on its way for `late_ms`: longer than its lease."""
    late_ms: int = 200_000


WELL: Final = Trouble()


class Door:
    """The spool, as one node reaches it."""

    def __init__(self, spool: Spool, trouble: Trouble, *, random: Random) -> None:
        self.shut = False
        self.trouble = trouble
        self._spool = spool
        self._random = random

    @property
    def promises(self) -> Promises:
        """In this world memory outlives a node, so what it keeps survives its crashes."""
        return replace(self._spool.promises, survives=Survives.POWER)

    async def _through(self, call: Callable[[], Awaitable[T]]) -> T:
        trouble, random = self.trouble, self._random
        before, after, dice = random.random(), random.random(), random.random()
        await asyncio.sleep(before * trouble.pause_ms / 1000)
        await self._open()
        if dice < trouble.fails_before:
            raise Unavailable("simulated: the spool was not reached")
        result = await call()
        await asyncio.sleep(after * trouble.pause_ms / 1000)
        await self._open()
        if 0 <= dice - trouble.fails_before < trouble.fails_after:
            raise Unavailable("simulated: the spool did not answer")
        return result

    async def _open(self) -> None:
        if self.shut:  # its node is dead, and hears nothing any more
            await asyncio.get_running_loop().create_future()

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        return await self._through(lambda: self._spool.accept(entries))

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        return await self._through(lambda: self._spool.survey(after=after, limit=limit))

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        return await self._through(lambda: self._spool.lease(wants, now=now, until=until))

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        if self._random.random() >= self.trouble.late_settle or self.shut:
            return await self._through(lambda: self._spool.settle(settlements))
        was = LIFE.set(None)  # it is on its way: no kill calls it back
        try:
            going = asyncio.ensure_future(self._late(settlements))
        finally:
            LIFE.reset(was)
        return await asyncio.shield(going)

    async def _late(self, settlements: Sequence[tuple[Lease, Verdict]]) -> Sequence[bool]:
        await asyncio.sleep(self.trouble.late_ms / 1000)
        return await self._spool.settle(settlements)

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        return await self._through(lambda: self._spool.renew(leases, until=until))

    async def wait_arrival(self) -> None:
        await self._open()
        await self._spool.wait_arrival()
        await self._open()

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        return await self._through(lambda: self._spool.find(keys))

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        return await self._through(
            lambda: self._spool.browse(query, after=after, limit=limit, requests=requests)
        )

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        return await self._through(lambda: self._spool.tally(edges))

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        return await self._through(lambda: self._spool.seize(keys, now=now, until=until))

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        return await self._through(lambda: self._spool.expire(now=now, until=until, limit=limit))

    async def sweep(self, *, now: Instant, limit: int) -> int:
        return await self._through(lambda: self._spool.sweep(now=now, limit=limit))

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        return await self._through(lambda: self._spool.damaged(after=after, limit=limit))

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        return await self._through(lambda: self._spool.discard(marks))

    async def aclose(self) -> None:
        """The spool outlives its nodes."""
