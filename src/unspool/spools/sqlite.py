"""SqliteSpool: the spool in one SQLite file, for as many processes of one machine as like.

    spool = await SqliteSpool.open("unspool.db")
    …                                            the verbs of `protocol`
    await spool.aclose()

Promises: survives a power cut (WAL, synchronous=FULL, read back at open; a file on tmpfs: a
process), is shared, remembers, fences. `sqlite_store` does the work and blocks; this runs it on
three threads with a connection each: all writes on one, finds on another, so that a replay does not
wait for somebody's sync, and what people look at on the third, for it may be everything. Accepts,
leases and settles that have queued up are one transaction, with one sync.

A verb's work is on its way when the verb is called, not when it is awaited: the loop goes on with
the next request while the disk syncs.

Other processes' accepts are noticed by asking SQLite four times a second, while somebody waits.

Does not: gather callers into batches; that is `committer`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from ..core.lifecycle import State, Verdict
from ..core.message import Destination, Instant, Key
from .arrivals import Arrivals
from .protocol import Acceptance, Entry, LaneDue, Lease, New, Promises, Query, Tally
from .sqlite_store import SqliteStore
from .thread import OneThread

LOOK_S: Final = 0.25
"""How often to ask whether another process has changed the file."""

T = TypeVar("T")
_Soon = Coroutine[Any, Any, T]


class SqliteSpool:
    def __init__(self, store: SqliteStore, writer: OneThread) -> None:
        self.store: Final = store
        self._writer = writer
        self._finder = OneThread("unspool-sqlite-find")
        self._browser = OneThread("unspool-sqlite-browse")
        self._arrivals = Arrivals()

    @classmethod
    async def open(
        cls, path: str | Path, *, create: bool = True, test_hook_no_sync: bool = False
    ) -> Self:
        """Open or make the file. `test_hook_no_sync` is for tests of power cuts that must fail."""
        writer = OneThread("unspool-sqlite-write")
        stores: list[SqliteStore] = []

        def open_it() -> None:
            where = Path(path).absolute()
            stores.append(
                SqliteStore.open(where, create=create, test_hook_no_sync=test_hook_no_sync)
            )

        try:
            await writer.soon(open_it)
        except BaseException:
            await writer.stop()
            for store in stores:  # it was opened for somebody who has gone
                store.close()
            raise
        writer.together = stores[0].together
        return cls(stores[0], writer)

    @property
    def promises(self) -> Promises:
        return self.store.promises

    @property
    def corrupt(self) -> int:
        """Records that failed their checksum and were set aside."""
        return self.store.corrupt

    def accept(self, entries: Sequence[Entry], /) -> _Soon[Sequence[Acceptance]]:
        return self._accepted(self._writer.joined(self.store.accept, entries))

    async def _accepted(self, soon: Awaitable[list[Acceptance]]) -> Sequence[Acceptance]:
        answers = await soon
        if any(isinstance(a, New) and a.entry.state is State.WAITING for a in answers):
            self._arrivals.ring()
        return answers

    def survey(self, *, after: Destination | None, limit: int) -> _Soon[Sequence[LaneDue]]:
        return _result(self._finder.soon(lambda: self.store.survey(after=after, limit=limit)))

    def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> _Soon[Sequence[Lease]]:
        return _result(self._writer.joined(lambda: self.store.lease(wants, now=now, until=until)))

    def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> _Soon[Sequence[bool]]:
        return self._settled(self._writer.joined(self.store.settle, settlements))

    async def _settled(self, soon: Awaitable[list[bool]]) -> Sequence[bool]:
        kept = await soon
        if any(kept):
            self._arrivals.ring()
        return kept

    def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> _Soon[Sequence[bool]]:
        return _result(self._writer.soon(lambda: self.store.renew(leases, until=until)))

    async def wait_arrival(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    return await self._arrivals.wait()
            except TimeoutError:
                if await self._writer.soon(self.store.changed):
                    return None

    def find(self, keys: Sequence[Key], /) -> _Soon[Sequence[Entry | None]]:
        return _result(self._finder.soon(self.store.find, keys))

    def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> _Soon[Sequence[Entry]]:
        return _result(
            self._browser.soon(
                lambda: self.store.browse(query, after=after, limit=limit, requests=requests)
            )
        )

    def tally(self, edges: Sequence[Instant], /) -> _Soon[Sequence[Tally]]:
        return _result(self._browser.soon(self.store.tally, edges))

    def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> _Soon[Sequence[Lease | None]]:
        return _result(self._writer.soon(lambda: self.store.seize(keys, now=now, until=until)))

    def expire(self, *, now: Instant, until: Instant, limit: int) -> _Soon[Sequence[Lease]]:
        return _result(
            self._writer.soon(lambda: self.store.expire(now=now, until=until, limit=limit))
        )

    def sweep(self, *, now: Instant, limit: int) -> _Soon[int]:
        return _result(self._writer.soon(lambda: self.store.sweep(now=now, limit=limit)))

    async def aclose(self) -> None:
        """Finish what was begun, fold the WAL into the file, let go of it."""
        if self._writer.stopped:
            return
        await self._browser.stop()
        await self._finder.stop()
        try:
            await self._writer.soon(self.store.close)
        finally:
            await self._writer.stop()


async def _result(soon: Awaitable[T]) -> T:
    return await soon
