"""Every queue of ours against the contract: a few lines for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from servers.gearmand import Gearmand, gearmand
from unspool.queues.memory import MemoryQueue, MemoryServer
from unspool.queues.open import open_queue
from unspool.queues.protocol import Queue
from unspool.testing.queues import QueueConformance

NUMBERS = count()
"""Each test has a queue of its own on a server that they share."""


class TestMemory(QueueConformance):
    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.server = MemoryServer()

    async def open(self, *, aside: bool = False) -> Queue:
        return MemoryQueue(self.server, name="orders.aside" if aside else "orders")


@pytest.fixture(scope="module")
def job_server() -> Iterator[Gearmand]:
    with gearmand() as server:
        yield server


class TestGearman(QueueConformance):
    @pytest.fixture(autouse=True)
    def _function(self, job_server: Gearmand) -> None:
        self.server = job_server
        self.function = f"orders-{next(NUMBERS)}"

    async def open(self, *, aside: bool = False) -> Queue:
        return await open_queue(self.server.url(self.function + ".aside" * aside))
