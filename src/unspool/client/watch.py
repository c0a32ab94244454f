"""The watch: what became of requests that were queued, by whomever they are sent.

    watch.expect(key, name)        we queued this one
    watch.posted(key)              the dispatcher here has a verdict on this one
    await watch.wait(name, …)      what became of one
    async for settled in watch.news()
    await watch.catch_up()         what has a verdict by now is told when this returns

With several processes on one outbox, one sends and all want to know: so each looks for its own, a
few times a second while there are some, and hears at once of what it sends itself. Whoever sends
also tells of what nobody else here may be waiting for any more, because it died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from ..core.lifecycle import State
from ..core.message import Instant, Key
from ..custody import Custody
from ..errors import Corrupt, UnspoolError
from ..spools.protocol import Entry
from .results import Fate, Queued, Settled

log: Final = logging.getLogger("unspool.client")

LOOK_S: Final = 0.5
BATCH: Final = 200
NEWS_MAX: Final = 10_000
"""So much news waits for an iterator that does not come; then the oldest goes."""


class Watch:
    def __init__(
        self, *, custody: Custody, read: Callable[[Entry], Fate | Queued],
        told: Callable[[Settled], None],
    ) -> None:  # fmt: skip
        self._custody = custody
        self._read = read
        self._told = told
        self._ours: dict[Key, str] = {}
        self._posted: dict[Key, None] = {}
        self._latest: dict[Key, Instant] = {}
        """Of which we told last, and when each was accepted."""
        self._awake = asyncio.Event()
        self._listeners: set[asyncio.Queue[Settled | None]] = set()
        self._looking = asyncio.Lock()
        self._ended = False
        self.settled = 0

    def expect(self, key: Key, name: str) -> None:
        self._ours[key] = name
        self._awake.set()

    def posted(self, key: Key) -> None:
        self._posted[key] = None
        self._awake.set()

    async def run(self) -> None:
        while not self._ended:
            await self._sleep()
            try:
                await self.catch_up()
            except UnspoolError as error:
                log.warning("the outbox does not tell what became of its requests: %s", error)
                await asyncio.sleep(LOOK_S)
            except Exception:
                log.exception("watching the outbox was a mistake; it goes on")
                await asyncio.sleep(LOOK_S)

    async def _sleep(self) -> None:
        self._awake.clear()
        if self._posted:
            return
        try:
            async with asyncio.timeout(LOOK_S if self._ours else None):
                await self._awake.wait()
        except TimeoutError:
            return

    async def catch_up(self) -> None:
        """Look now. Raises what the outbox does."""
        async with self._looking:
            if not self._ended:
                await self._look()

    async def last(self, within_s: float) -> bool:
        """Look once more, and never again: nothing is under way any more, and the outbox is about
        to be closed. False: it has not answered within so many seconds."""
        answered = True
        try:
            async with asyncio.timeout(within_s):
                await self.catch_up()
        except (TimeoutError, UnspoolError) as error:
            answered = not isinstance(error, TimeoutError)
            log.warning("what became of the latest requests is not told: %r", error)
        except Exception:
            log.exception("the last look at the outbox was a mistake")
        self._ended = True
        return answered

    async def _look(self) -> None:
        posted, self._posted = self._posted, {}
        keys = list(dict.fromkeys([*posted, *self._ours]))
        for at in range(0, len(keys), BATCH):
            some = keys[at : at + BATCH]
            try:
                found = await self._found(some)
            except BaseException:  # also who is cancelled: these are told by the next look
                self._posted = {key: None for key in keys[at:] if key in posted} | self._posted
                raise
            for key, entry in zip(some, found, strict=True):
                if isinstance(entry, Corrupt):
                    self._ours.pop(key, None)
                    log.error("what became of a request is not known: %s", entry)
                elif not isinstance(entry, Entry):
                    self._ours.pop(key, None)
                elif entry.state in (State.DELIVERED, State.BOUNCED):
                    self._tell(key, entry)

    async def _found(self, keys: Sequence[Key]) -> Sequence[Entry | BaseException | None]:
        """Each for itself: one that is spoilt says nothing of the others."""
        found = await asyncio.gather(*map(self._custody.find, keys), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, Corrupt):
                raise one
        return found

    def _tell(self, key: Key, entry: Entry) -> None:
        ours = self._ours.pop(key, None) is not None
        result = self._read(entry)
        accepted_at = entry.message.accepted_at
        # It may be found here before the dispatcher says so, and would be told again.
        if isinstance(result, Queued) or self._latest.get(key) == accepted_at:
            return
        self._latest[key] = accepted_at
        if len(self._latest) > NEWS_MAX:
            del self._latest[next(iter(self._latest))]
        self.settled += 1
        settled = Settled(entry.message.name or key, result, ours)
        self._told(settled)
        for listener in self._listeners:
            if listener.full():
                listener.get_nowait()
            listener.put_nowait(settled)

    async def news(self) -> AsyncIterator[Settled]:
        """Everything from now on, until the client closes."""
        listener: asyncio.Queue[Settled | None] = asyncio.Queue(NEWS_MAX)
        self._listeners.add(listener)
        try:
            while (settled := await listener.get()) is not None:
                yield settled
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        for listener in self._listeners:
            if listener.full():
                listener.get_nowait()
            listener.put_nowait(None)
