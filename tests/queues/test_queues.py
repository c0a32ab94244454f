"""Every queue of ours against the contract: a few lines for each."""

from __future__ import annotations

import pytest

from unspool.queues.memory import MemoryQueue, MemoryServer
from unspool.queues.protocol import Queue
from unspool.testing.queues import QueueConformance


class TestMemory(QueueConformance):
    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.server = MemoryServer()

    async def open(self, *, aside: bool = False) -> Queue:
        return MemoryQueue(self.server, name="orders.aside" if aside else "orders")
