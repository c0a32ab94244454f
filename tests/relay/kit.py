"""A node over a memory spool, a scripted service, and a clock that stands still unless moved.

async with node(answer, …) as it:
    response = await it.ask(b"POST", key="k1")
    it.service.attempts          what the service was asked, in order
    it.service.then(…)           what it answers from now on
    await it.deliver()           let the dispatcher do what can be done now
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from unspool.core.message import (
    Answer,
    Cause,
    Destination,
    Failure,
    Instant,
    Request,
    Response,
    Sent,
)
from unspool.ingress.protocol import Caller
from unspool.node import Node, plan_for
from unspool.passage import Options
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Spool, Survives

NOW = 1_790_000_000_000
ORIGIN = "http://service.example"
ALICE = (b"Authorization", b"alice")
BOB = (b"Authorization", b"bob")
REFUSED = Failure(Cause.CONNECTION_REFUSED, "service.example refused the connection", Sent.NEVER)
RESET = Failure(Cause.CONNECTION_TERMINATED, "the connection was reset", Sent.MAYBE)
SLOW = Failure(Cause.HTTP_RESPONSE_TIMEOUT, "no answer in time", Sent.MAYBE)


def says(status: int, body: bytes = b"", *fields: tuple[bytes, bytes]) -> Response:
    return Response(status, b"", list(fields), body)


OK = says(201, b'{"order": 1}', (b"Content-Type", b"application/json"), (b"Location", b"/orders/1"))


class Still:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> Instant:
        return Instant(self.at)


class Service:
    """A destination that answers as it is told; a callable is asked for each answer."""

    def __init__(self, answer: Answer | Callable[[Request], Any]) -> None:
        self.answer = answer
        self.attempts: list[Request] = []
        self.repeats: list[bool] = []

    def then(self, answer: Answer | Callable[[Request], Any]) -> None:
        self.answer = answer

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        self.attempts.append(request)
        self.repeats.append(repeat)
        if not callable(self.answer):
            return self.answer
        found = self.answer(request)
        return await found if asyncio.iscoroutine(found) else found

    async def aclose(self) -> None:
        pass


class It:
    def __init__(self, node: Node, service: Service, clock: Still, spool: Spool) -> None:
        self.node = node
        self.service = service
        self.clock = clock
        self.spool = spool

    async def ask(
        self,
        method: bytes = b"POST",
        target: bytes = b"/orders",
        *fields: tuple[bytes, bytes],
        key: str = "",
        body: bytes = b'{"item": "tea"}',
        rest: Any = None,
    ) -> Response:
        out = [(b"Host", b"relay.example"), (b"Content-Type", b"application/json"), *fields]
        if key:
            out.append((b"Idempotency-Key", b'"%b"' % key.encode()))
        request = Request(method, target, out, body, rest)
        return await self.node.relay(request, Caller(peer="192.0.2.7", scheme="http"))

    async def receipt(self, of: Response, tail: bytes = b"", method: bytes = b"GET") -> Response:
        return await self.ask(method, value(of, b"location") + tail, body=b"")

    async def deliver(self) -> None:
        """Let what can be delivered at this instant be delivered."""
        if self.node._running is None:
            self.node.start()
        self.node.dispatcher.wake()
        for _ in range(40):
            await asyncio.sleep(0.001)

    @property
    def kept(self) -> list[Any]:
        return [e for e in self.spool.entries.values() if e.message.destination]


@contextlib.asynccontextmanager
async def node(
    answer: Answer | Callable[[Request], Any] = OK,
    *,
    spool: Any = None,
    clock: Still | None = None,
    service: Service | None = None,
    required: Survives = Survives.NOTHING,
    backlog_max: int = 0,
    formerly: tuple[Destination, ...] = (),
    **options: Any,
) -> AsyncIterator[It]:
    spool = spool or MemorySpool()
    clock = clock or Still()
    service = service or Service(answer)
    plan = plan_for(ORIGIN)
    changed: Options = msgspec.structs.replace(plan.options, **options)
    plan = msgspec.structs.replace(
        plan, options=changed, required=required, backlog_max=backlog_max,
        formerly=formerly, alone=not changed.claims,
    )  # fmt: skip
    opened = await Node.open(plan=plan, spool=spool, transport=service, clock=clock)
    try:
        yield It(opened, service, clock, spool)
    finally:
        await opened.stop(drain_ms=0)


def value(response: Response, name: bytes) -> bytes:
    """The one value of a field. Fails where there are none or several."""
    [found] = [v for n, v in response.fields if n.lower() == name]
    return found


def has(response: Response, name: bytes) -> bool:
    return any(n.lower() == name for n, _ in response.fields)


def told(response: Response) -> Any:
    return json.loads(response.body)
