"""BlockingSpool: a store that blocks, on three threads, as a spool.

    spool = await BlockingSpool.over(lambda: open_store(path), name="unspool-leveldb")
    …                                            the verbs of `protocol`
    await spool.aclose()

A store has the verbs as plain functions; it may wait for the disk as long as it likes, and writes
from one thread at a time. All writes are on one thread, finds and surveys on another, so that a
replay does not wait for somebody's sync, and what people look at on the third, for it may be
everything.

A verb's work is on its way when the verb is called, not when it is awaited: the loop goes on with
the next request while the disk syncs.

What comes in through here rings the bell. Where other processes have the store open too, it is
asked four times a second, while somebody waits, whether they have changed it: `Store.changed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from ..core.lifecycle import State, Verdict
from ..core.message import Destination, Instant, Key
from .arrivals import Arrivals
from .protocol import Acceptance, Damaged, Entry, LaneDue, Lease, New, Promises, Query, Tally
from .thread import OneThread, Outcome, Work

LOOK_S: Final = 0.25
"""How often to ask whether another process has changed the store."""

T = TypeVar("T")
S = TypeVar("S", bound="Store")
_Soon = Coroutine[Any, Any, T]


class Store(Protocol):
    """The verbs of `protocol.Spool`, for whoever may block."""

    @property
    def promises(self) -> Promises: ...

    @property
    def corrupt(self) -> int: ...

    def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]: ...

    def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]: ...

    def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]: ...

    def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]: ...

    def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]: ...

    def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]: ...

    def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]: ...

    def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]: ...

    def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]: ...

    def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]: ...

    def sweep(self, *, now: Instant, limit: int) -> int: ...

    def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]: ...

    def discard(self, marks: Sequence[str], /) -> Sequence[bool]: ...

    def changed(self) -> bool:
        """Has another process changed it since this was last asked? Only asked if it is shared."""
        ...

    def close(self) -> None: ...


class BlockingSpool(Generic[S]):
    def __init__(self, store: S, writer: OneThread, *, name: str) -> None:
        self.store: Final = store
        self._writer = writer
        self._finder = OneThread(f"{name}-find")
        self._browser = OneThread(f"{name}-browse")
        self._arrivals = Arrivals()

    @classmethod
    async def over(
        cls,
        open_store: Callable[[], S],
        *,
        name: str,
        together: Callable[[S], Callable[[Sequence[Work]], Sequence[Outcome]]] | None = None,
    ) -> Self:
        """Open the store on the thread that will write to it. Raises what `open_store` does.

        `together`: how the store does accepts, leases and settles that have queued up in one go.
        """
        writer = OneThread(f"{name}-write")
        stores: list[S] = []
        try:
            await writer.soon(lambda: stores.append(open_store()))
        except BaseException:
            await writer.stop()
            for store in stores:  # it was opened for somebody who has gone
                store.close()
            raise
        if together is not None:
            writer.together = together(stores[0])
        return cls(stores[0], writer, name=name)

    @property
    def promises(self) -> Promises:
        return self.store.promises

    @property
    def corrupt(self) -> int:
        """Records that failed their checksum and were set aside."""
        return self.store.corrupt

    def accept(self, entries: Sequence[Entry], /) -> _Soon[Sequence[Acceptance]]:
        return self._accepted(self._writer.joined(self.store.accept, entries))

    async def _accepted(self, soon: Awaitable[Sequence[Acceptance]]) -> Sequence[Acceptance]:
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

    async def _settled(self, soon: Awaitable[Sequence[bool]]) -> Sequence[bool]:
        kept = await soon
        if any(kept):
            self._arrivals.ring()
        return kept

    def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> _Soon[Sequence[bool]]:
        return _result(self._writer.soon(lambda: self.store.renew(leases, until=until)))

    async def wait_arrival(self) -> None:
        if not self.promises.shared:
            return await self._arrivals.wait()
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

    def damaged(self, *, after: str | None, limit: int) -> _Soon[Sequence[Damaged]]:
        return _result(self._browser.soon(lambda: self.store.damaged(after=after, limit=limit)))

    def discard(self, marks: Sequence[str], /) -> _Soon[Sequence[bool]]:
        return _result(self._writer.soon(self.store.discard, marks))

    async def aclose(self) -> None:
        """Finish what was begun, and let go. Cancelled, it leaves the store as a dead process
        would: its disk may hang."""
        if self._writer.stopped:
            return
        try:
            await self._browser.stop()
            await self._finder.stop()
            await self._writer.soon(self.store.close)
        except asyncio.CancelledError:
            for thread in (self._browser, self._finder, self._writer):
                thread.leave()
            raise
        except BaseException:
            await self._writer.stop()
            raise
        await self._writer.stop()


async def _result(soon: Awaitable[T]) -> T:
    return await soon
