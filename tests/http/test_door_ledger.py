"""The ledger: bodies of all connections are bounded together, wherever they are.

Half here, waiting for their turn behind an earlier request, or being handled: what is in the
process's memory is in the ledger, until it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from callers import Calling, call, eventually, on_both_loops, opened

from unspool.core.message import Request, Response
from unspool.ingress.body import StreamedBody
from unspool.ingress.protocol import Caller

OK = Response(200, b"", [], b"ok")
BIG = 100_000


def post(body: bytes) -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class Patient:
    """A handler that answers nobody before it is let go."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    handled: int = 0

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        self.handled += 1
        await self.go.wait()
        return OK


@dataclass
class Prompt(Patient):
    """The same by the express road."""

    waiting: list[Callable[[Response], None]] = field(default_factory=list)

    def begin(self, request: Request, caller: Caller, done: Callable[[Response], None], /) -> bool:
        self.handled += 1
        self.waiting.append(done)
        return True

    def answer(self) -> None:
        for done in self.waiting:
            done(OK)


@on_both_loops
async def test_bodies_that_wait_for_their_turn_are_limited_together() -> None:
    """Three hundred connections with three large requests each are not a gigabyte."""
    handler = Patient()
    limits = {"body_max_bytes": 2 * BIG, "bodies_max_bytes": 10 * BIG}
    async with opened(handler, **limits) as door, contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(call(door)) for _ in range(20)]
        most = 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, door.ledger.held_bytes)
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        sending = [asyncio.create_task(send(caller, 3 * post(b"x" * BIG))) for caller in callers]
        await eventually(lambda: most > 9 * BIG)
        await asyncio.sleep(0.2)  # for what is too much, if there were any
        looking.cancel()
        # Over the limit by what one read brings at most, and never by a request for each caller.
        assert 9 * BIG < most <= 10 * BIG + 256 * 1024
        assert handler.handled <= 10
        handler.go.set()
        answered = [await caller.answer() for caller in callers]
        assert {answer.status for answer in answered} == {200, 503}
        for one in sending:
            one.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    await eventually(lambda: door.ledger.held_bytes == 0)


async def send(caller: Calling, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        await caller.send(data)


@on_both_loops
async def test_a_body_under_hand_is_held_until_the_handler_has_done_with_it() -> None:
    """Also where its caller has gone: the handler runs on, and so does its memory."""
    handler = Patient()
    async with opened(handler) as door:
        async with call(door) as caller:
            await caller.send(post(b"x" * BIG))
            await eventually(lambda: handler.handled == 1)
            assert door.ledger.held_bytes == BIG
            caller.vanish()
        await eventually(lambda: not door.statistics().connections)
        assert door.ledger.held_bytes == BIG
        handler.go.set()
        await eventually(lambda: door.ledger.held_bytes == 0)


@pytest.mark.parametrize("vanish", [False, True])
@on_both_loops
async def test_the_express_road_is_no_way_around(vanish: bool) -> None:
    """The same for a request that is begun in the middle of a read."""
    handler = Prompt()
    async with opened(handler) as door, call(door) as caller:
        await caller.send(post(b"small"))  # the connection's task is at its place by now
        await eventually(lambda: handler.handled == 1)
        handler.answer()
        handler.waiting.clear()
        await caller.answer()
        await caller.send(post(b"x" * BIG))
        await eventually(lambda: handler.handled == 2)
        assert len(handler.waiting) == 1
        assert door.ledger.held_bytes == BIG
        if vanish:
            caller.vanish()
            await eventually(lambda: not door.statistics().connections)
            assert door.ledger.held_bytes == BIG
        handler.answer()
        await eventually(lambda: door.ledger.held_bytes == 0)


@on_both_loops
async def test_an_idle_connection_holds_no_body() -> None:
    """Ten thousand that wait for their next request are not ten thousand of their last answers,
    nor of their last reads."""
    answer = bytes(BIG)
    before = sys.getrefcount(answer)
    held: list[int] = []

    async def handler(request: Request, caller: Caller, /) -> Response:
        held.append(len(request.body))
        return Response(200, b"", [], answer)

    async with opened(handler) as door, call(door) as caller:
        tracemalloc.start()
        try:
            await caller.send(post(b"x" * 2 * BIG))
            assert len((await caller.answer()).body) == BIG
            await eventually(lambda: sys.getrefcount(answer) == before)
            await asyncio.sleep(0.02)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held == [2 * BIG]
        assert sys.getrefcount(answer) == before
        assert kept < BIG


@on_both_loops
async def test_a_body_is_let_go_of_before_a_long_answer() -> None:
    """And not only in the ledger."""
    bodies: list[bytes] = []
    ended = asyncio.Event()

    class Rest:
        async def read(self) -> bytes:
            await ended.wait()
            return b""

        def close(self) -> None: ...

    async def handler(request: Request, caller: Caller, /) -> Response:
        bodies.append(request.body)
        return Response(200, b"", [], b"first", Rest())

    async with opened(handler) as door, call(door) as caller:
        await caller.send(post(b"x" * BIG))
        await caller.head()
        assert door.ledger.held_bytes == 0
        body = bodies.pop()
        assert sys.getrefcount(body) == 2  # here, and for the count itself
        ended.set()


@pytest.mark.parametrize("size", [1, 2, 7, 5_000])
def test_a_streamed_body_counts_for_what_it_occupies(size: int) -> None:
    """In chunks of two bytes it would be twenty times as large as it says."""
    body = StreamedBody(Still(), 256 * 1024)
    tracemalloc.start()
    try:
        while not body.full:
            body.feed(bytes([len(body._chunks) % 256]) * size)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 256 * 1024


class Still:
    def wanted(self) -> None: ...

    def regulate(self) -> None: ...


@on_both_loops
async def test_small_ones_behind_one_that_waits_are_left_in_the_socket() -> None:
    """They are not refused, for nothing is wrong with them; they are read when there is room."""
    handler = Patient()
    async with opened(handler, bodies_max_bytes=5_000) as door, call(door) as caller:
        await caller.send(post(b"x" * 1_000) * 12)
        await eventually(lambda: handler.handled == 1)
        await asyncio.sleep(0.05)
        assert door.ledger.held_bytes <= 5_000 + 1_000 + 16 * 1024
        handler.go.set()
        for _ in range(12):
            assert (await caller.answer()).status == 200
        assert door.ledger.held_bytes == 0


@on_both_loops
async def test_what_was_read_and_not_parsed_is_held_too() -> None:
    """A read may bring far more than the queue takes."""
    handler = Patient()
    async with opened(handler) as door, call(door) as caller:
        await eventually(lambda: door._connections)
        (connection,) = door._connections
        connection.data_received(post(b"x" * 4_000) * 40)  # as one read may, and another may not
        await eventually(lambda: handler.handled == 1)
        assert door.ledger.held_bytes > 16 * 4_000 + 10_000
        handler.go.set()
        for _ in range(40):
            assert (await caller.answer()).status == 200
        assert door.ledger.held_bytes == 0
