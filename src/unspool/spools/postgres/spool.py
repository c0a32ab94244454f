"""PostgreSQL: the spool that several relays on several hosts share.

    spool = await open_postgres("postgres://me:secret@db/mail")     see `target`
    …                                                               the verbs of `protocol`
    await spool.aclose()

Promises, measured at open and every ten seconds (`form`): survives a power cut, or with
synchronous standbys the loss of the host; is shared, remembers, fences. Where it comes to be less,
nothing more is accepted. Needs psycopg 3 (the extra `postgres`) and a server from 12 on.

Each verb is one transaction, `postgres.sql` has all it says, and most are one round trip. One
statement leases from all wanted lanes at once and steps over what others have locked. Every lease
is synced, also of what may be repeated: the server may lose its power while the holder lives, and
then two would hold one token. No verb waits longer than its deadline (`link`), and each is
on its way when it is called; who is cancelled leaves it to end by itself (13).

Two batches that cross lock in one order, and are done again where PostgreSQL undid one. What a line
(5) is made of changes under a lock of that line, so ids follow one another in it.

Bugs: leases of a relay that was killed run out by themselves: that its session has ended does not
say that it is dead, so its messages wait that long (`lease_ms`; docs/explanation/architecture.md).
Ids are given before their commit, so `browse` may pass by an
entry that is being accepted just then beside a later one, and show it the next time. A transaction
that stays open for hours, anybody's in the cluster, keeps the dead rows: `pg_stat_activity`. Of a
damaged page the server gives nothing (`Corrupt`); what our own checksums find is set aside alone.
`browse` but by key, and `tally`, read all rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from ...core.lifecycle import Deferred, State, Verdict
from ...core.message import Destination, Instant, Key
from ...errors import Broken, Corrupt, NotDone
from ..arrivals import Arrivals
from ..protocol import Acceptance, Damaged, Entry, LaneDue, Lease, New, Promises, Query, Tally
from ..taking import lend
from . import read, write
from .bell import Bell
from .form import measure, prepare
from .link import Link, Transaction, closed, in_turn
from .rows import abandoned, entry_of, queries
from .target import read_target

MEASURE_S: Final = 10.0
"""How long a promise is believed to hold."""

T = TypeVar("T")
_Soon = Coroutine[Any, Any, T]


async def open_postgres(url: str, *, create: bool = True) -> PostgresSpool:
    """Raises a `Broken` that says what to do, or `Unavailable` where waiting helps."""
    target = read_target(url)
    link = Link(target, queries(target.schema))
    try:
        promises, link.commit = await prepare(link, create=create)
        cursor = await link.run(lambda tx: tx.ask("count_aside"))
        [[aside]] = await cursor.fetchall()
    except BaseException:
        await link.aclose()
        raise
    return PostgresSpool(link, promises, aside)


class PostgresSpool:
    def __init__(self, link: Link, promises: Promises, aside: int) -> None:
        self.promises: Final = promises
        self.corrupt = aside
        """Records set aside, as far as this process knows."""
        self._link = link
        link.in_use = True
        self._loop = asyncio.get_running_loop()
        self.measure_at = self._loop.time() + MEASURE_S
        """When what is promised is looked at again."""
        self._arrivals = Arrivals()
        self._bell = Bell(link, self._arrivals)
        self._accepting = asyncio.Lock()  # the order in which we are told is the order of the ids
        self._working: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def hears(self) -> bool:
        """Do others' notifications come? Else their messages are looked for, which is slower."""
        return self._bell.hears

    def _soon(self, work: Coroutine[Any, Any, T]) -> _Soon[T]:
        """On its way at once, and to its end whoever is cancelled (13)."""
        if self._closed:
            work.close()
            return _refuse(closed(self._link.target))
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self._loop:  # it was only called here, and is awaited where it belongs
            return work
        task = self._loop.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._ended)
        return _result(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # who asked may have gone

    async def _run(
        self, work: Callable[[Transaction], Awaitable[T]], *, within_s: float | None = None
    ) -> T:
        """Fails closed on what cannot be read (12)."""
        try:
            return await self._link.run(work, within_s=within_s)
        except write.SpoiltRows as found:
            raise await self._set_aside(found.ids) from found

    async def _set_aside(self, ids: Sequence[int]) -> Corrupt:
        self.corrupt += await self._link.run(lambda tx: write.set_aside(tx, ids))
        return Corrupt(
            f"{len(ids)} record(s) in the spool {self._link.target.shown} failed their checksum."
            " They were set aside with all their bytes; nothing is run under their keys, and the"
            " rest goes on. See them: unspool queue --corrupt"
        )

    # -- writing -------------------------------------------------------------------------------

    def accept(self, entries: Sequence[Entry], /) -> _Soon[Sequence[Acceptance]]:
        return self._soon(self._accept(entries))

    async def _accept(self, entries: Sequence[Entry]) -> Sequence[Acceptance]:
        until = self._loop.time() + self._link.target.deadline_s
        async with in_turn(self._accepting, self._link.target, until=until):
            await self._still_as_promised(until)
            answers = await self._taken(entries, until)
        if any(isinstance(a, New) and a.entry.state is State.WAITING for a in answers):
            self._arrivals.ring()
            self._bell.ring()
        return answers

    def _left_s(self, until: float) -> float:
        return max(0.001, until - self._loop.time())

    async def _still_as_promised(self, until: float) -> None:
        """Somebody may set the server up anew, or another one takes its place."""
        now = self._loop.time()
        if now < self.measure_at:
            return
        try:
            found = await measure(self._link, within_s=self._left_s(until))
        except Broken as error:
            raise NotDone(str(error)) from error  # it may be mended while we run
        if found.survives < self.promises.survives:
            raise NotDone(
                f"The spool {self._link.target.shown} promised more when it was opened than its"
                f" server gives now ({found.detail}). Nothing was accepted. Set it up as it was, or"
                " start anew with what it gives: unspool serve"
            )
        self.measure_at = now + MEASURE_S

    async def _taken(self, entries: Sequence[Entry], until: float) -> Sequence[Acceptance]:
        answers: Sequence[Acceptance] | None = None
        if len({entry.message.key for entry in entries}) == len(entries):
            left_s = self._left_s(until)
            answers = await self._run(lambda tx: write.take_new(tx, entries), within_s=left_s)
        while answers is None:
            left_s = self._left_s(until)
            answers = await self._run(lambda tx: write.take(tx, entries), within_s=left_s)
        return answers

    def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> _Soon[Sequence[Lease]]:
        return self._soon(self._lease(wants, now, until))

    async def _lease(
        self, wants: Mapping[Destination, int], now: Instant, until: Instant
    ) -> Sequence[Lease]:
        if not wants:
            return []
        cursor = await self._run(lambda tx: write.lease(tx, wants, now, until))
        return await self._leased(await cursor.fetchall(), until)

    def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> _Soon[Sequence[Lease | None]]:
        return self._soon(self._seize(keys, now, until))

    async def _seize(
        self, keys: Sequence[Key], now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        if not keys:
            return []
        cursor = await self._run(lambda tx: write.seize(tx, keys, now, until))
        taken = await self._leased(await cursor.fetchall(), until)
        leases = {lease.entry.message.key: lease for lease in taken}
        return [leases.pop(key, None) for key in keys]  # a key given twice is seized once

    def expire(self, *, now: Instant, until: Instant, limit: int) -> _Soon[Sequence[Lease]]:
        return self._soon(self._expire(now, until, limit))

    async def _expire(self, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        cursor = await self._run(
            lambda tx: tx.ask("expire", now=now, until=until, limit=limit), within_s=read.LOOK_S
        )
        return await self._leased(await cursor.fetchall(), until, whole=False)

    async def _leased(
        self, rows: Sequence[Any], until: Instant, *, whole: bool = True
    ) -> list[Lease]:
        lent = lend(rows, until, entry_of=entry_of, abandoned=abandoned, whole=whole)
        if lent.spoilt:
            await self._set_aside(lent.spoilt)
        return lent.leases

    def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> _Soon[Sequence[bool]]:
        return self._soon(self._settle(settlements))

    async def _settle(self, settlements: Sequence[tuple[Lease, Verdict]]) -> Sequence[bool]:
        if not settlements:
            return []
        places: set[int] = set()
        for cursor in await self._run(lambda tx: write.settle(tx, settlements)):
            places.update(place for (place,) in await cursor.fetchall())
        if places:
            self._arrivals.ring()
        if any(
            isinstance(verdict, Deferred) or lease.entry.message.order_key
            for lease, verdict in settlements
        ):
            self._bell.ring()  # something is due earlier than others may think
        return [place in places for place in range(len(settlements))]

    def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> _Soon[Sequence[bool]]:
        return self._soon(self._renew(leases, until))

    async def _renew(self, leases: Sequence[Lease], until: Instant) -> Sequence[bool]:
        if not leases:
            return []
        cursor = await self._run(lambda tx: write.renew(tx, leases, until))
        places = {place for (place,) in await cursor.fetchall()}
        return [place in places for place in range(len(leases))]

    def sweep(self, *, now: Instant, limit: int) -> _Soon[int]:
        return self._soon(self._sweep(now, limit))

    async def _sweep(self, now: Instant, limit: int) -> int:
        cursor = await self._run(
            lambda tx: tx.ask("sweep", now=now, limit=limit), within_s=read.LOOK_S
        )
        [[count]] = await cursor.fetchall()
        return int(count)

    def discard(self, marks: Sequence[str], /) -> _Soon[Sequence[bool]]:
        return self._soon(self._discard(marks))

    async def _discard(self, marks: Sequence[str]) -> Sequence[bool]:
        ids = [int(mark) for mark in marks if mark.isdecimal() and len(mark) < 19]
        if not ids:
            return [False for _ in marks]
        cursor = await self._run(lambda tx: tx.ask("discard", ids=ids))
        gone = {str(id_) for (id_,) in await cursor.fetchall()}
        self.corrupt = max(0, self.corrupt - len(gone))
        return [mark in gone for mark in marks]

    # -- reading -------------------------------------------------------------------------------

    async def wait_arrival(self) -> None:
        if self._closed:
            raise closed(self._link.target)
        await self._bell.wait()

    def find(self, keys: Sequence[Key], /) -> _Soon[Sequence[Entry | None]]:
        return self._soon(self._find(keys))

    async def _find(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if not keys:
            return []
        entries, spoilt = await read.find(self._link, keys)
        if spoilt:
            raise await self._set_aside(spoilt)
        return entries

    def survey(self, *, after: Destination | None, limit: int) -> _Soon[Sequence[LaneDue]]:
        return self._soon(self._seen(read.survey(self._link, after, limit)))

    def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> _Soon[Sequence[Entry]]:
        return self._soon(self._seen(read.browse(self._link, query, after, limit, requests)))

    async def _seen(self, looking: Awaitable[tuple[list[T], list[int]]]) -> Sequence[T]:
        """What cannot be read is set aside; the rest is served."""
        found, spoilt = await looking
        if spoilt:
            await self._set_aside(spoilt)
        return found

    def tally(self, edges: Sequence[Instant], /) -> _Soon[Sequence[Tally]]:
        return self._soon(read.tally(self._link, edges))

    def damaged(self, *, after: str | None, limit: int) -> _Soon[Sequence[Damaged]]:
        return self._soon(read.damaged(self._link, after, limit))

    async def aclose(self) -> None:
        """Finish what was begun, and let go."""
        self._closed = True
        while self._working:
            with suppress(Exception):
                await asyncio.wait([*self._working])
        await self._bell.aclose()  # the last of them may have rung it
        await self._link.aclose()


async def _result(task: asyncio.Task[T]) -> T:
    return await asyncio.shield(task)


async def _refuse(error: Exception) -> Any:
    raise error
