"""Taking everything that a queue has, on a machine of any speed.

found = await all_of(queue, least=payloads)      these come, however slowly, and then what else is
"""

from __future__ import annotations

from collections.abc import Collection

from unspool.queues.protocol import Queue

PATIENCE_MS = 20_000
QUIET_MS = 300


async def all_of(queue: Queue, *, least: Collection[bytes]) -> list[bytes]:
    """What was taken and completed: waits for each of `least`, and after them for nothing new."""
    found: list[bytes] = []
    while True:
        missing = set(least) - set(found)
        some = await queue.take(limit=9, wait_ms=PATIENCE_MS if missing else QUIET_MS)
        if not some:
            return found
        found += [one.payload for one in some]
        await queue.complete(some)
