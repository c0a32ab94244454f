"""What is cut off while it connects was never sent, and goes elsewhere, whatever it is.

Over real sockets: a listener whose backlog is full answers nothing, not even the first packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from msgspec.structs import replace

from ports import free_port
from unspool import AsyncClient, Delivered, Queued, Unknown
from unspool.clock import SystemClock
from unspool.core.lane import Conduct
from unspool.core.lifecycle import State
from unspool.core.message import Failure, Request, Response, Sent
from unspool.ingress.protocol import Caller
from unspool.node import Node, plan_for
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Query, Survives
from unspool.transports.http import HttpTransport
from unspool.transports.servers import Servers
from unspool.transports.timed import timed

ANSWER = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def deaf() -> Iterator[int]:
    """A port at which connections are neither made nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        # One that is nobody else's also when we let go of it, for who listens there afterwards.
        port = free_port()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        late = 0
        while late < 2:  # one may be late for another reason
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.05)
            try:
                filler.connect(("127.0.0.1", port))
            except TimeoutError:
                late += 1
        yield port


def connecting(port: int) -> int:
    """How many sockets of this machine wait for this port to take their connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "02" and row[2].endswith(f":{port:04X}") for row in rows)


async def connects(port: int, *, beside: int) -> None:
    """Return when one more than these waits."""
    async with asyncio.timeout(60):
        while connecting(port) <= beside:
            await asyncio.sleep(0.005)


class Shop:
    """A server that keeps what came, and answers; or takes it and says nothing."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.port = 0
        self.came: list[bytes] = []

    @asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[Shop]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.came.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(1)
                if not self.silent:
                    writer.write(ANSWER)
        writer.close()


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def test_a_server_that_is_never_reached_has_nothing() -> None:
    """So a request without a key is kept for later; and where it was taken, it is not."""
    with deaf() as port:
        async with AsyncClient(at(port), outbox="memory:") as client:
            result = await client.post("/orders", content=b"1", key=False, deadline=0.5)
            assert isinstance(result, Queued)
            assert [one.sent for one in result.tries] == [Sent.NEVER]
    async with (
        Shop(silent=True).open() as shop,
        AsyncClient(at(shop.port), outbox="memory:") as client,
    ):
        result = await client.post("/orders", content=b"1", key=False, deadline=1.5)
        assert isinstance(result, Unknown)


async def test_another_server_is_asked_while_there_is_time() -> None:
    """Who may not be asked after somebody else, is when nobody else was reached."""
    with deaf() as port:
        async with (
            Shop().open() as shop,
            AsyncClient([at(port), at(shop.port)], luck=lambda: 0.99) as client,
        ):
            result = await client.post("/orders", content=b"1", key=False, deadline=2)
        assert isinstance(result, Delivered)
        assert [one.sent for one in result.tries] == [Sent.NEVER, Sent.YES]
        assert len(shop.came) == 1


async def test_a_slow_answer_is_waited_for_to_the_end() -> None:
    """What has been sent has all of the time: only to be reached has a server less."""
    async with Shop(silent=True).open() as slow, Shop().open() as shop:
        servers = [at(slow.port), at(shop.port)]
        async with AsyncClient(servers, luck=lambda: 0.99) as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            result = await client.post("/orders", content=b"1", key=False, deadline=1.5)
            assert isinstance(result, Unknown)
            assert loop.time() - began > 1.4
    assert shop.came == []


async def test_a_relay_that_is_never_reached_has_nothing() -> None:
    with deaf() as port:
        queues = [at(port)]
        async with AsyncClient(at(1), queues=queues, outbox="memory:", queue_ms=100) as client:
            result = await client.post("/orders", content=b"1", key=False, deadline=2)
    assert isinstance(result, Queued)
    assert {one.sent for one in result.tries} == {Sent.NEVER}


async def test_who_is_cancelled_while_it_connects_has_sent_nothing(tmp_path: Path) -> None:
    """It was on disk first: it goes out from there, once, though it may not be repeated."""
    shop = Shop()
    with deaf() as port:
        client = AsyncClient(
            at(port), outbox=str(tmp_path / "outbox.db"), durability="before",
            backoff_least_ms=50,
        )  # fmt: skip
        await client.ready()
        request = client.build("POST", "/orders", content=b"1", key=False)
        others = connecting(port)
        sending = asyncio.create_task(client.send(request))
        await connects(port, beside=others)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    async with shop.open(port), client:
        result = await client.wait(request.key, timeout=60)
    assert isinstance(result, Delivered)
    assert len(shop.came) == 1


async def test_what_waits_is_not_sent_by_a_process_that_ends_while_it_connects(
    tmp_path: Path,
) -> None:
    """It is given back, and goes out from the next one, though it may not be repeated."""
    shop, path = Shop(), str(tmp_path / "outbox.db")
    with deaf() as port:
        others = connecting(port)
        for _ in range(2):
            client = AsyncClient(at(port), outbox=path, backoff_least_ms=50, drain_ms=100)
            async with client:
                if not (waits := client.statistics()["waiting"]):
                    result = await client.post("/o", content=b"1", key=False, deadline=0.2)
                    assert isinstance(result, Queued)
                await connects(port, beside=others)  # it is due, and being tried again
        assert waits == 1
    async with (
        shop.open(port),
        AsyncClient(at(port), outbox=path, backoff_least_ms=50) as client,
    ):
        fate = await client.wait(result.key, timeout=60)
    assert isinstance(fate, Delivered)
    assert len(shop.came) == 1


async def test_the_relay_gives_back_what_it_was_cut_off_from_sending() -> None:
    """And what had gone out it does not: that ends as unknown, where it may not be repeated."""
    for silent in (False, True):
        with deaf() as port:
            async with Shop(silent=True).open() as shop:
                transport = HttpTransport(at(shop.port if silent else port))
                plan = replace(plan_for(at(port)), required=Survives.NOTHING)
                spool = MemorySpool()
                node = await Node.open(plan=plan, spool=spool, transport=transport)
                request = Request(b"POST", b"/", ((b"Host", b"a"), (b"Prefer", b"respond-async")))
                told = await node.relay(request, Caller(peer="192.0.2.7", scheme="http"))
                assert told.status == 202
                others = connecting(port)
                node.start()
                async with asyncio.timeout(60):
                    while not shop.came and connecting(port) <= others:
                        await asyncio.sleep(0.005)
                await node.stop(drain_ms=0)
                await transport.aclose()
                [entry] = await spool.browse(Query(state=State.WAITING), after=None, limit=9)
                assert (entry.leased_until > 0) == silent == (len(shop.came) == 1)


async def test_with_no_time_left_nothing_is_sent() -> None:
    """Not even where a connection is at hand."""
    async with Shop().open() as shop:
        transport = HttpTransport(at(shop.port))
        request = Request(b"POST", b"/", ((b"Host", b"a"),), b"1")
        first = await timed(transport, request, repeat=False, timeout_ms=60_000)
        assert isinstance(first, Response)
        last = await timed(transport, request, repeat=False, timeout_ms=0)
        await transport.aclose()
    assert isinstance(last, Failure)
    assert (last.sent, len(shop.came)) == (Sent.NEVER, 1)


async def test_the_relay_saves_what_its_service_never_had() -> None:
    """The sender's deadline cut it off; a request without a key is not lost by that."""
    with deaf() as port:
        one, other = HttpTransport(at(port)), HttpTransport(at(port))
        for transport in (one, Servers([one, other], clock=SystemClock(), conduct=Conduct())):
            plan = replace(plan_for(at(port)), required=Survives.NOTHING)
            node = await Node.open(plan=plan, spool=MemorySpool(), transport=transport)
            fields = ((b"Host", b"shop"), (b"Unspool-Deadline", b"0.100"))
            request = Request(b"POST", b"/orders", fields, b"1")
            told = await node.relay(request, Caller(peer="192.0.2.7", scheme="http"))
            await node.stop(drain_ms=0)
            assert told.status == 202
        await asyncio.gather(one.aclose(), other.aclose())
