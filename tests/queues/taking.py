"""Taking everything that a queue has, on a machine of any speed.

found = await all_of(queue, least=payloads)      these come, however slowly, and then what else is
await at_last(lambda: queue.put([…]))            as soon as its server answers in time
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TypeVar

from unspool.errors import Unavailable
from unspool.queues.protocol import Queue

T = TypeVar("T")

PATIENCE_MS = 60_000
QUIET_MS = 300


async def at_last(call: Callable[[], Awaitable[T]]) -> T:
    """Again, while it is Unavailable, and no longer than for PATIENCE_MS: with limits of a second
    also a server that is well is that now and then."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_MS / 1000
    while True:
        try:
            return await call()
        except Unavailable:
            if loop.time() >= until:
                raise
            await asyncio.sleep(0.05)


async def all_of(queue: Queue, *, least: Collection[bytes], hasty: bool = False) -> list[bytes]:
    """What was taken and completed: waits for each of `least`, and after them for nothing new.
    `hasty`: its limits are short, and what is late is done again."""
    found: list[bytes] = []
    while True:
        missing = set(least) - set(found)
        wait_ms = PATIENCE_MS if missing else QUIET_MS
        if not hasty:
            some = await queue.take(limit=9, wait_ms=wait_ms)
            await queue.complete(some)
        else:
            some = await at_last(lambda ms=wait_ms: queue.take(limit=9, wait_ms=ms))  # type: ignore[misc]
            with suppress(Unavailable):  # they come again
                await queue.complete(some)
        if not some:
            return found
        found += [one.payload for one in some]
