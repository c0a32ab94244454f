"""Commits: batches for a NATS bucket, decided anew until nobody has come between.

    await commits.commit(changes) -> done  raises `Conflict`, having read again what it was about
    await commits.answered(…)              the same for a verb with an answer for each of its items
    await commits.until_done(attempt)      `attempt` again and again, at most ROUNDS times
    batches(changes)                       which of them go together

What does not fit into one batch of the server's goes in several, each of which is atomic. A change
is never cut: its parts are written under no expectation of their own, and only the one that its
message is written under, in the same batch, keeps them from another's message.

What is written goes on when its caller is cancelled (13), and is told to the index when it is
acknowledged, so that a relay sees its own writes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from ...errors import Full, Unavailable
from .link import BATCH_MAX, Conflict, Link
from .read import Reader
from .records import Change, lines_in, mails
from .watch import Watch

ROUNDS: Final = 20
PAUSE_S: Final = 0.002
CLOSE_S: Final = 5.0
BATCH_BYTES: Final = 32 * 1024 * 1024
"""In one batch: it is a file of the server's, and has five seconds to come."""

T = TypeVar("T")
Item = TypeVar("Item")


class Commits:
    def __init__(self, link: Link, watch: Watch, reader: Reader) -> None:
        self._link: Final = link
        self._watch: Final = watch
        self._reader: Final = reader
        self._writes: Final[set[asyncio.Task[Any]]] = set()
        self._closed = False

    async def commit(self, changes: Sequence[Change], *, grows: bool = False) -> int:
        """How many were done: all of them, or those in front of where somebody had come between or
        the room ended. Where that is none it raises `Conflict`, having read again what it was
        about, or `Full`. `grows`: a batch is not cut smaller for want of room."""
        done = 0
        left = batches(changes)
        while left:
            batch = left.pop(0)
            try:
                await self._commit(batch)
            except Conflict:
                await self._reread(batch)
                if not done:
                    raise
                break
            except Full:
                if not grows and len(batch) > 1:
                    # What ends things may not fail for want of room: a few go where many do not.
                    half = len(batch) // 2
                    left[:0] = [batch[:half], batch[half:]]
                    continue
                if not done:
                    raise
                break
            done += len(batch)
        return done

    async def _commit(self, changes: Sequence[Change]) -> None:
        """All of them or none."""
        sequences = await self._link.commit(mails(self._link.names, changes))
        lines = lines_in(changes)
        ends = sum(len(change.gone) for change in changes)
        parts = len(sequences) - ends - len(lines) - len(changes)
        revisions = iter(sequences[parts:])
        for change in changes:
            self._watch.told(change, next(revisions))
        for line, expected in lines.items():
            self._watch.line_told(line, next(revisions), expected)

    async def answered(
        self, items: Sequence[Item], answers: Sequence[T], changes: Mapping[Any, Change], *,
        key: Callable[[Item], Any], again: Callable[[list[Item]], Coroutine[Any, Any, list[T]]],
        grows: bool = False,
    ) -> list[T]:  # fmt: skip
        """Commit the changes, by the keys of their items. Of those that were done the answers are
        so, whoever came between then; the other items are decided anew."""
        done = await self.commit([*changes.values()], grows=grows)
        if done == len(changes):
            return [*answers]
        kept = {*[*changes][:done]}
        rest = [item for item in items if key(item) not in kept]
        try:
            later = iter(await self._rounds(lambda: again(rest)))
        except Full as error:  # of which nothing may have happened
            raise self._link.wire.gone("there was no room for all of it") from error
        return [
            answer if key(item) in kept else next(later)
            for item, answer in zip(items, answers, strict=True)
        ]

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


def batches(changes: Sequence[Change]) -> list[Sequence[Change]]:
    """Each goes as one, and is as large as may be."""
    found: list[Sequence[Change]] = []
    start = count = size = 0
    for at, change in enumerate(changes):
        messages = len(change.parts) + 1 + bool(change.line) + len(change.gone)
        bytes_ = len(change.body) + sum(map(len, change.parts))
        if at > start and (count + messages > BATCH_MAX or size + bytes_ > BATCH_BYTES):
            found.append(changes[start:at])
            start, count, size = at, 0, 0
        count += messages
        size += bytes_
    return [*found, changes[start:]] if changes else []
