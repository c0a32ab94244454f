"""Switch: a real spool behind a switch that can take it away in every way there is.

    spool = Switch(await SqliteSpool.open(path))
    spool.mode = "down"       nothing is done, and nobody knows
    spool.mode = "refuses"    nothing is done, and that is said
    spool.mode = "slow"       nothing is done, and nothing is said
    spool.mode = "full"       what is to be kept is refused; all else goes on
    spool.mode = "lost"       it is done, and the answer is lost
    spool.mode = "mute"       it is done, and nothing is said
    spool.mode = "well"
    spool.asked               verbs that came, by name

Whatever comes through is done by the spool itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from unspool.core.lifecycle import Verdict
from unspool.core.message import Destination, Instant, Key
from unspool.errors import Full, NotDone, Unavailable
from unspool.spools.protocol import Entry, Lease, Promises, Query, Spool


class Switch:
    def __init__(self, spool: Spool, *, mode: str = "well") -> None:
        self.spool = spool
        self.mode = mode
        self.asked: Counter[str] = Counter()

    @property
    def promises(self) -> Promises:
        return self.spool.promises

    async def _through(self, verb: str, call: Callable[[], Awaitable[Any]]) -> Any:
        self.asked[verb] += 1
        mode = self.mode
        if mode == "down":
            raise Unavailable("switched off")
        if mode == "refuses":
            raise NotDone("switched off")
        if mode == "slow":
            await asyncio.Event().wait()
        if mode == "full" and verb == "accept":
            raise Full("no room")
        result = await call()
        if mode == "lost":
            raise Unavailable("the answer was lost")
        if mode == "mute":
            await asyncio.Event().wait()
        return result

    async def accept(self, entries: Sequence[Entry], /) -> Any:
        return await self._through("accept", lambda: self.spool.accept(entries))

    async def survey(self, *, after: Destination | None, limit: int) -> Any:
        return await self._through("survey", lambda: self.spool.survey(after=after, limit=limit))

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Any:
        return await self._through("lease", lambda: self.spool.lease(wants, now=now, until=until))

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Any:
        return await self._through("settle", lambda: self.spool.settle(settlements))

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Any:
        return await self._through("renew", lambda: self.spool.renew(leases, until=until))

    async def wait_arrival(self) -> None:
        await self.spool.wait_arrival()

    async def find(self, keys: Sequence[Key], /) -> Any:
        return await self._through("find", lambda: self.spool.find(keys))

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Any:
        return await self._through(
            "browse",
            lambda: self.spool.browse(query, after=after, limit=limit, requests=requests),
        )

    async def tally(self, edges: Sequence[Instant], /) -> Any:
        return await self._through("tally", lambda: self.spool.tally(edges))

    async def seize(self, keys: Sequence[Key], /, *, now: Instant, until: Instant) -> Any:
        return await self._through("seize", lambda: self.spool.seize(keys, now=now, until=until))

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Any:
        return await self._through(
            "expire", lambda: self.spool.expire(now=now, until=until, limit=limit)
        )

    async def sweep(self, *, now: Instant, limit: int) -> Any:
        return await self._through("sweep", lambda: self.spool.sweep(now=now, limit=limit))

    async def damaged(self, *, after: str | None, limit: int) -> Any:
        return await self._through("damaged", lambda: self.spool.damaged(after=after, limit=limit))

    async def discard(self, marks: Sequence[str], /) -> Any:
        return await self._through("discard", lambda: self.spool.discard(marks))

    async def aclose(self) -> None:
        await self.spool.aclose()
