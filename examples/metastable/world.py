"""The experiment: one service, many callers, a minute with less capacity, and what comes after.

    series = experiment("naive", PLAN)         what happened in each second; the same for each seed
    series = experiment("unspool", PLAN)

The service is a line of waiting work and one worker, as most services are at their bottleneck. It
does not see that a caller has gone: the work of one who has stopped waiting is done all the same,
for nobody. That is what keeps an overload going after its cause has passed (Bronson and others,
Metastable Failures in Distributed Systems, HotOS 2021).

Callers come at random, whatever the state of the service. The naive ones wait three seconds and try
again three times, with exponential backoff and full jitter, as good advice has it. The others are
`unspool.AsyncClient`, the real one with its plan, budgets, health and outbox (in memory); only its
transport, its clock and its chance are the simulation's. The service heeds no deadline of theirs.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from unspool.client import AsyncClient, Delivered, Queued
from unspool.core.message import Answer, Request, Response
from unspool.errors import Undelivered
from unspool.testing.clock import VirtualClock, run


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parameters. Seconds, and requests a second."""

    seed: int = 1
    lasts: int = 300
    asked: float = 7.0
    """New requests, however it goes."""
    capacity: float = 10.0
    trouble_from: int = 60
    trouble_to: int = 120
    capacity_in_trouble: float = 2.0
    line_max: int = 300
    """Who comes when so many wait is refused at once: 503."""
    patience: float = 3.0
    """How long a naive attempt waits."""
    retries: int = 3
    backoff: float = 0.2
    """Before the first retry at most; then twice as much."""
    deadline: float = 3.0
    """Of a call of the client. With one server its first attempt may take all of it."""

    def capacity_at(self, now: float) -> float:
        trouble = self.trouble_from <= now < self.trouble_to
        return self.capacity_in_trouble if trouble else self.capacity


PLAN: Final = Plan()


@dataclass
class Series:
    """What happened in each second."""

    asked: list[int]
    attempts: list[int]
    """What reached the service."""
    good: list[int]
    """Answered while the caller waited."""
    later: list[int]
    """Answered out of the outbox."""
    wasted: list[int]
    """Done by the service for nobody."""
    lost: int = 0
    """Requests that ended in an error."""
    saved: int = 0
    waiting: int = 0
    """In the outbox, at the end."""


@dataclass
class Service:
    """One worker and a line."""

    plan: Plan
    attempts: Callable[[], None]
    wasted: Callable[[], None]
    line: deque[asyncio.Future[None]] = field(default_factory=deque)
    come: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self) -> bool:
        """False: refused."""
        self.attempts()
        if len(self.line) >= self.plan.line_max:
            return False
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(done)
        self.come.set()
        await done
        return True

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self.line:
                self.come.clear()
                await self.come.wait()
            done = self.line.popleft()
            await asyncio.sleep(1 / self.plan.capacity_at(loop.time()))
            if done.done():
                self.wasted()
            else:
                done.set_result(None)


class Transport:
    """The client's way to the service."""

    def __init__(self, service: Service, answered: Callable[[Request], None]) -> None:
        self._service = service
        self._answered = answered

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        if not await self._service.ask():
            return Response(503, b"", ())
        self._answered(request)
        return Response(201, b"", ())

    async def aclose(self) -> None:
        """Nothing to let go of."""


def experiment(kind: str, plan: Plan) -> Series:
    """Run it in virtual time."""
    return run(_Run(plan).over(kind))


class _Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.luck = random.Random(plan.seed)
        zeros = [0] * plan.lasts
        self.series = Series(zeros[:], zeros[:], zeros[:], zeros[:], zeros[:])
        self.service = Service(
            plan,
            attempts=lambda: self._count(self.series.attempts),
            wasted=lambda: self._count(self.series.wasted),
        )
        self.client: AsyncClient | None = None
        self.calling: set[str] = set()

    def _count(self, row: list[int]) -> None:
        second = int(asyncio.get_running_loop().time())
        if second < self.plan.lasts:
            row[second] += 1

    async def over(self, kind: str) -> Series:
        ask: Callable[[int], Awaitable[None]] = self._naive if kind == "naive" else self._smart
        if kind != "naive":
            self.client = self._client()
        worker = asyncio.create_task(self.service.work())
        loop = asyncio.get_running_loop()
        arrivals = random.Random(self.plan.seed)  # the same for both
        tasks: set[asyncio.Task[None]] = set()
        number = 0
        while True:
            await asyncio.sleep(arrivals.expovariate(self.plan.asked))
            if loop.time() >= self.plan.lasts:
                break
            self._count(self.series.asked)
            task = asyncio.ensure_future(ask(number))
            tasks.add(task)  # type: ignore[arg-type]
            task.add_done_callback(tasks.discard)  # type: ignore[arg-type]
            number += 1
        for left in tasks:
            left.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.client is not None:
            self.series.waiting = self.client.statistics()["waiting"]
            await self.client.aclose()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return self.series

    async def _naive(self, _number: int) -> None:
        plan = self.plan
        for attempt in range(1 + plan.retries):
            if attempt:
                await asyncio.sleep(self.luck.random() * plan.backoff * 2.0 ** (attempt - 1))
            try:
                async with asyncio.timeout(plan.patience):
                    if await self.service.ask():
                        self._count(self.series.good)
                        return
            except TimeoutError:
                continue
        self.series.lost += 1

    def _client(self) -> AsyncClient:
        return AsyncClient(
            "http://service.example",
            outbox="memory:",
            deadline=self.plan.deadline,
            transport=lambda _: Transport(self.service, self._answered),
            clock=VirtualClock(),
            luck=self.luck.random,
        )

    def _answered(self, request: Request) -> None:
        [key] = [value for name, value in request.fields if name == b"Idempotency-Key"]
        if key.decode().strip('"') not in self.calling:
            self._count(self.series.later)

    async def _smart(self, number: int) -> None:
        key = f"r{number}"
        self.calling.add(key)
        assert self.client is not None
        try:
            result = await self.client.post("/orders", content=b"x", key=key)
            if isinstance(result, Delivered):
                self._count(self.series.good)
            elif isinstance(result, Queued):
                self.series.saved += 1
            else:
                self.series.lost += 1
        except Undelivered:
            self.series.lost += 1
        finally:
            self.calling.discard(key)
