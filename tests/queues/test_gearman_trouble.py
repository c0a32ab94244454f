"""A gearmand that is down, stuck, full, or none at all: known within a deadline, nothing lost."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from somebody import somebody
from taking import PATIENCE_MS, all_of, at_last

from ports import free_port
from servers.gearmand import Gearmand, gearmand
from unspool.errors import Full, Misconfigured, Unavailable
from unspool.queues.gearman import GearmanQueue, open_gearman
from unspool.queues.gearman_line import Limits, Server, look
from unspool.queues.gearman_packets import Kind, pack
from unspool.queues.protocol import PAYLOAD_MAX_BYTES, Survives

QUICK = Limits(connect_ms=60_000, answer_ms=300, packet_ms=2_000, again_ms=200)
"""Where nobody answers."""
SOON = Limits(connect_ms=3_000, answer_ms=1_000, packet_ms=5_000, again_ms=200)
"""Where somebody does, until he is paused."""
PATIENT = Limits(connect_ms=60_000, answer_ms=60_000, again_ms=200)
NUMBERS = count()


OPENED: list[GearmanQueue] = []


def queue_at(*ports: int, function: str = "orders", limits: Limits = PATIENT) -> GearmanQueue:
    servers = [Server("127.0.0.1", port) for port in ports]
    OPENED.append(GearmanQueue(servers, function=function, limits=limits))
    return OPENED[-1]


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while OPENED:
        await OPENED.pop().aclose()


@pytest.fixture(scope="module")
def server() -> Iterator[Gearmand]:
    with gearmand() as server:
        yield server


@pytest.fixture
def function() -> str:
    return f"orders-{next(NUMBERS)}"


@pytest.mark.parametrize(
    ("say", "says"),
    [
        (b"", "did not answer within 300 ms"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak Gearman's protocol"),
        (b"\0RES" + b"\xff" * 64, "does not speak Gearman's protocol"),
        (b"\0RES\0\0\0\x08\0\0\0\x10H:", "did not answer within 300 ms"),
        (b"\0RES\0\0\0\x13\0\0\0\x08NOPE\0no!", "says NOPE: no!"),
        (b"\0RES\0\0\0\x0a\0\0\0\0" * 3, "packet of kind 10"),
    ],
    ids=["silence", "HTTP", "garbage", "half a packet", "an error", "answers to nothing"],
)
async def test_no_gearmand(say: bytes, says: str) -> None:
    """10. Each verb ends within its deadline, and says what is there instead."""
    async with somebody(say) as port:
        queue = queue_at(port, limits=QUICK if "300 ms" in says else PATIENT)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match=says):
            await queue.put([b"one"])
        with pytest.raises(Unavailable, match=says):
            await queue.take(limit=1, wait_ms=60_000)
        assert asyncio.get_running_loop().time() - began < 20
        # What else it may say was an answer to what we asked before: nobody reads it.
        assert all(line.broken for post in queue._posts for line in post.lines())


async def test_who_hangs_up() -> None:
    """10. A connection that ends is Unavailable at once, not at a deadline."""
    async with somebody(b"", hang_up=True) as port:
        queue = queue_at(port)
        with pytest.raises(Unavailable, match=r"hung up|broke the connection off"):
            await queue.put([b"one"])


async def test_nobody() -> None:
    """10. A refused connection, and a name that nobody knows."""
    queue = queue_at(free_port())
    with pytest.raises(Unavailable, match="cannot be reached"):
        await queue.put([b"one"])
    with pytest.raises(Unavailable, match=r"gearadmin --status -h 127.0.0.1 -p \d+$"):
        await queue.take(limit=1, wait_ms=60_000)
    assert look(Server("::1")) == "gearadmin --status -h ::1 -p 4730"
    assert look(Server("a;b")) == "gearadmin --status -h 'a;b' -p 4730"
    nowhere = GearmanQueue([Server("nowhere.invalid")], limits=Limits(connect_ms=500))
    with pytest.raises(Unavailable):
        await nowhere.put([b"one"])


async def test_many_callers_wait_for_one_deadline_together() -> None:
    """5 of a hundred callers do not wait five deadlines: who comes behind a failure is told."""
    async with somebody(b"") as port:
        queue = queue_at(port, limits=QUICK)
        began = asyncio.get_running_loop().time()
        ended = await asyncio.gather(
            *(queue.put([b"%d" % number]) for number in range(100)), return_exceptions=True
        )
        assert all(isinstance(one, Unavailable) for one in ended)
        assert asyncio.get_running_loop().time() - began < 100 * 0.3 / 2


async def test_a_server_that_is_paused(server: Gearmand, function: str) -> None:
    """10. Accepting connections is no sign of life; when it goes on, so do we."""
    queue = queue_at(server.port, function=function, limits=SOON)
    await at_last(lambda: queue.put([b"one"]))
    server.pause()
    try:
        for _ in "12":
            with pytest.raises(Unavailable, match="did not answer"):
                await queue.put([b"two"])
        with pytest.raises(Unavailable, match=r"took nothing more|did not answer"):
            await queue.put([bytes(12 * 1024 * 1024)])
        with pytest.raises(Unavailable, match="did not answer"):
            await queue.take(limit=1, wait_ms=0)
    finally:
        server.go_on()
    await at_last(lambda: queue.put([b"three"]))
    found = set(await all_of(queue, least={b"one", b"three"}, hasty=True))
    assert {b"one", b"three"} <= found <= {b"one", b"two", b"three", bytes(12 * 1024 * 1024)}


async def test_a_server_that_is_full(server: Gearmand, function: str) -> None:
    """10. It says that it takes no more: Full, and with another server that one has it."""
    queue = queue_at(server.port, function=function)
    await queue.put([b"one"])
    server.say(f"maxqueue {function} 1")
    with pytest.raises(Full, match="takes no more"):
        await queue.put([b"two"])
    with gearmand() as other:
        both = queue_at(server.port, other.port, function=function)
        await both.put([b"three"])
        assert other.status()[function][0] == 1


async def test_another_server(function: str) -> None:
    """With several, the first that answers has it; the one that was down is asked again later, and
    what both have is taken."""
    with gearmand() as first, gearmand() as second:
        await queue_at(first.port, second.port, function=function).put([b"one"])
        assert first.status()[function][0] == 1
        assert function not in second.status()
        first.pause()
        try:
            # One that knows of no trouble, each time: this very call goes on to the next.
            for _ in range(9):  # or the next had no time for us
                queue = queue_at(first.port, second.port, function=function, limits=SOON)
                with suppress(Unavailable):
                    await queue.put([b"two"])
                    break
            assert second.status()[function][0] >= 1
            there = await all_of(queue, least=[b"two"], hasty=True)
            assert set(there) == {b"two"}
        finally:
            first.go_on()
        found = set(await all_of(queue, least=[b"one"], hasty=True))
        assert {b"one"} <= found <= {b"one", b"two"}


async def test_a_restart_with_a_database(tmp_path: Path, function: str) -> None:
    """With a queue module that keeps jobs, kill -9 loses none: not what waits, not what is held."""
    with gearmand(database=tmp_path / "jobs.db") as server:
        queue = queue_at(server.port, function=function)
        payloads = {bytes(range(256)) + b"%d" % number for number in range(5)}
        await queue.put([*payloads])
        held = await queue.take(limit=2, wait_ms=PATIENCE_MS)
        await queue.complete(held[:1])
        server.kill()
        with pytest.raises(Unavailable):
            await queue.complete(held[1:])
        with pytest.raises(Unavailable):
            await queue.take(limit=1, wait_ms=1_000)
        server.start()
        found = await all_of(queue, least=payloads - {held[0].payload})
        assert sorted([*found, held[0].payload]) == sorted(payloads)
        assert function not in server.status() or server.status()[function][0] == 0


async def test_a_giant_is_left_where_it_is(
    server: Gearmand, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    """3. What is too large to be taken in holds nothing up, is not lost, and is told."""
    with socket.create_connection(("127.0.0.1", server.port)) as sender:
        giant = bytes(PAYLOAD_MAX_BYTES + 1)
        sender.sendall(pack(Kind.SUBMIT_BG, function.encode(), b"giant", giant))
        assert sender.recv(4) == b"\0RES"
    queue = queue_at(server.port, function=function)
    await queue.put([b"small"])
    with caplog.at_level(logging.ERROR):
        [taken] = await queue.take(limit=9, wait_ms=PATIENCE_MS)
        assert list(await queue.take(limit=9, wait_ms=100)) == []
    assert taken.payload == b"small"
    await queue.complete([taken])
    [record] = caplog.records
    assert "is not taken in" in record.getMessage()
    await queue.aclose()
    while server.status()[function][:2] != (1, 0):
        await asyncio.sleep(0.01)


async def test_a_wake_up_while_awake(server: Gearmand, function: str) -> None:
    """A NOOP may come at any time: it is no answer to anything."""
    takers = [queue_at(server.port, function=function) for _ in range(4)]
    sender = queue_at(server.port, function=function)
    waits = [asyncio.create_task(one.take(limit=1, wait_ms=800)) for one in takers]
    for number in range(30):
        await sender.put([b"%d" % number])
        await asyncio.sleep(0)
    found = [one for some in await asyncio.gather(*waits) for one in some]
    until = asyncio.get_running_loop().time() + PATIENCE_MS / 1000
    while len(found) < 30 and asyncio.get_running_loop().time() < until:
        for taker in takers:
            found += await taker.take(limit=5, wait_ms=50)
    for taker in takers:
        found += await taker.take(limit=5, wait_ms=50)
    assert sorted(int(one.payload) for one in found) == list(range(30))


@pytest.mark.parametrize(
    "url",
    [
        "gearman:", "gearman://", "gearman:///orders", "gearman://here:99999", "gearman://here:0",
        "gearman://user:secret@here/orders", "gearman://here/a/b", "gearman://here/or ders",
        "gearman://here,,there", "gearman://here?survives=much", "gearman://here?timeout=1",
        "gearman://" + ",".join("h" * 17),
    ],
)  # fmt: skip
def test_urls_that_make_no_sense(url: str) -> None:
    """The message says how to write one, and no password."""
    with pytest.raises(Misconfigured, match=r"gearman://127\.0.0.1:4730/unspool") as caught:
        open_gearman(url)
    assert "secret" not in str(caught.value)


def test_urls() -> None:
    """Servers, function and grade as they are written; `unspool` at 4730 where nothing is."""
    queue = open_gearman("gearman://10.0.0.5,[::1]:4731/orders?survives=power")
    assert [str(post.server) for post in queue._posts] == ["10.0.0.5:4730", "[::1]:4731"]
    assert queue.promises.survives is Survives.POWER
    assert queue.promises.aside == "orders.aside"
    assert open_gearman("gearman://here").promises.aside == "unspool.aside"
    assert open_gearman("gearman://here").promises.survives is Survives.NOTHING


def test_a_free_port_is_free() -> None:
    """What `test_nobody` stands on: nobody listens there."""
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", free_port()), timeout=60):
        pass
