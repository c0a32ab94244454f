"""Commits: batches for a NATS bucket, decided anew until nobody has come between.

    await commits.commit(changes)          raises `Conflict`, having read again what it was about
    await commits.until_done(attempt)      `attempt` again and again, at most ROUNDS times

What is written goes on when its caller is cancelled (13), and is told to the index when it is
acknowledged, so that a relay sees its own writes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from ..errors import Full, Unavailable
from .nats_link import Conflict, Link
from .nats_read import Reader
from .nats_records import Change, lines_in, mails
from .nats_watch import Watch

ROUNDS: Final = 20
PAUSE_S: Final = 0.002
CLOSE_S: Final = 5.0

T = TypeVar("T")


class Commits:
    def __init__(self, link: Link, watch: Watch, reader: Reader) -> None:
        self._link: Final = link
        self._watch: Final = watch
        self._reader: Final = reader
        self._writes: Final[set[asyncio.Task[Any]]] = set()
        self._closed = False

    async def commit(self, changes: Sequence[Change], *, grows: bool = False) -> None:
        """Raises `Conflict`, having read again what it was about. `grows`: all of it or none, also
        where there is no room."""
        if not changes:
            return
        published = mails(self._link.names, changes)
        try:
            sequences = await self._link.commit(published)
        except Conflict:
            await self._reread(changes)
            raise
        except Full:
            if grows or len(changes) == 1:
                raise
            # What ends things may not fail for want of room: a few go where many do not.
            half = len(changes) // 2
            await self.commit(changes[:half])
            await self.commit(changes[half:])
            return
        lines = lines_in(changes)
        ends = sum(len(change.gone) for change in changes)
        parts = len(sequences) - ends - len(lines) - len(changes)
        revisions = iter(sequences[parts:])
        for change in changes:
            self._watch.told(change, next(revisions))
        for line, expected in lines.items():
            self._watch.line_told(line, next(revisions), expected)

    async def _reread(self, changes: Sequence[Change]) -> None:
        await self._reader.known([change.key for change in changes], apart=False)
        lines = [change.line for change in changes if change.line_expected is not None]
        if lines:
            await self._reader.learn_lines(lines)

    async def until_done(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Until nobody has come between. Goes on when its caller is cancelled."""
        if self._closed:
            raise Unavailable(
                f"The spool {self._link.shown} is closed. Nothing of this was done; what"
                " was accepted is kept there. Start again: unspool serve"
            )
        task = asyncio.get_running_loop().create_task(self._rounds(attempt))
        self._writes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _rounds(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        for number in range(ROUNDS):
            try:
                return await attempt()
            except Conflict:
                await asyncio.sleep(number * PAUSE_S)
        raise self._link.wire.gone("others write the same messages all the time")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

    async def aclose(self) -> None:
        """Let what was begun end; nothing more begins."""
        self._closed = True
        if self._writes:
            await asyncio.wait(self._writes, timeout=CLOSE_S)
        for task in [*self._writes]:
            task.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)
