"""The contract suite for queues. Shipped, so that other people's queues can be asked too.

    from unspool.testing.queues import QueueConformance

    class TestMyQueue(QueueConformance):
        async def open(self, *, aside: bool = False) -> Queue:
            return await open_my_queue(...)

`open` opens one queue again and again during a test, each time as another holder, and a fresh one
for the next test; with `aside` the queue under which `set_aside` keeps (clause 8). Each test's
docstring is the clause of `unspool.queues.protocol` that it proves. The suite asks `promises`.

Needs pytest and pytest-asyncio. Does not prove: surviving anything (a test in one process cannot),
nor trouble (clause 10), which each server makes in its own way.
"""

from __future__ import annotations

from .holding import Aside, Holding
from .putting import Putting

__all__ = ["QueueConformance"]


class QueueConformance(Putting, Holding, Aside):
    """Every group of the suite. Inherit from this and write `open`."""
