"""What the groups of the suite share: holders that are closed at the end, and taking it all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from ...queues.protocol import Queue, Taken

COME_MS: Final = 30_000
"""How long what was put may take to be there."""


class Suite:
    quiet_ms = 50
    """A take that waits so long for more, and gets none, has seen everything."""

    async def open(self, *, aside: bool = False) -> Queue:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _opened(self) -> None:
        self._holders: list[Queue] = []

    async def holder(self, *, aside: bool = False) -> Queue:
        """One more who has it open; closed at the end."""
        queue = await self.open(aside=aside)
        self._holders.append(queue)
        return queue

    @pytest_asyncio.fixture
    async def queue(self) -> AsyncIterator[Queue]:
        yield await self.holder()
        for one in self._holders:
            await one.aclose()

    async def all_of(self, queue: Queue, *, at_least: int = 0) -> list[Taken]:
        """Everything that can be taken now, `at_least` so much of which is sure to come."""
        taken: list[Taken] = []
        loop = asyncio.get_running_loop()
        until = loop.time() + COME_MS / 1000
        while loop.time() < until:
            some = await queue.take(limit=50, wait_ms=self.quiet_ms)
            taken += some
            if not some and len(taken) >= at_least:
                break
        return taken

    async def is_empty(self, queue: Queue) -> bool:
        return not await self.all_of(queue)


def payloads(taken: list[Taken]) -> list[bytes]:
    return sorted(one.payload for one in taken)
