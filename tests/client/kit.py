"""A client over servers that answer as they are told, in this loop.

world = World(answers)                     a transport for each origin, made as it is asked for
world.servers["a"].then(…)                 what one answers from now on, or who is asked
client = world.client(queues=…, outbox=…)  an AsyncClient over them
world.asked("a")                           what it was asked, in order
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from unspool.client import AsyncClient
from unspool.client.events import Event
from unspool.core.message import Answer, Cause, Failure, Request, Response, Sent

DOWN = Failure(Cause.CONNECTION_REFUSED, "it refused the connection", Sent.NEVER)
RESET = Failure(Cause.CONNECTION_TERMINATED, "the connection was reset", Sent.MAYBE)
TAKEN = Response(
    202,
    b"Accepted",
    (
        (b"Location", b"/_unspool/receipts/" + b"n" * 22 + b"k" * 22),
        (b"Proxy-Status", b'unspool; details="saved for delivery"'),
    ),
    b'{"receipt":"/_unspool/receipts/x","state":"waiting","survives":"power"}',
)

Answers = Answer | Callable[[Request], Any]


def says(status: int, body: bytes = b"", **fields: str) -> Response:
    pairs = tuple((n.replace("_", "-").encode(), v.encode()) for n, v in fields.items())
    return Response(status, b"", pairs, body)


OK = says(201, b'{"order": 1}', Content_Type="application/json")


class Server:
    def __init__(self, answer: Answers) -> None:
        self.answer = answer
        self.asked: list[Request] = []
        self.closed = False

    def then(self, answer: Answers) -> None:
        self.answer = answer

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        self.asked.append(request)
        if not callable(self.answer):
            return self.answer
        found = self.answer(request)
        told: Answer = await found if asyncio.iscoroutine(found) else found
        return told

    async def aclose(self) -> None:
        self.closed = True


class World:
    def __init__(self, **answers: Answers) -> None:
        self.servers = {name: Server(answer) for name, answer in answers.items()}
        self.events: list[Event] = []
        self.luck = random.Random(0)

    def transport(self, origin: str) -> Server:
        return self.servers[origin.removeprefix("https://")]

    def client(self, *names: str, **options: Any) -> AsyncClient:
        to = [f"https://{name}" for name in names or self.servers if not name.startswith("relay")]
        options.setdefault("on_event", self.events.append)
        options.setdefault("backoff_least_ms", 50)
        return AsyncClient(to, transport=self.transport, luck=self.luck.random, **options)

    def asked(self, *names: str) -> int:
        return sum(len(self.servers[name].asked) for name in names or self.servers)


def never(_request: Request) -> Any:
    """A server that accepts a request and does not answer."""

    async def hang() -> Answer:
        await asyncio.sleep(3600)
        return DOWN

    return hang()


def value(request: Request, name: str) -> str:
    [found] = [v.decode() for n, v in request.fields if n.decode().lower() == name.lower()]
    return found


def has(request: Request, name: str) -> bool:
    return any(n.decode().lower() == name.lower() for n, _ in request.fields)
