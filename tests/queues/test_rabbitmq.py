"""RabbitMQ: the contract, and its own kinds of trouble. One server for all, which starts slowly:
meanwhile is proved what needs none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from collecting import Collecting, check_page, written
from somebody import somebody
from taking import PATIENCE_MS, all_of, at_last

from ports import free_port
from servers.rabbitmq import RabbitMQ, rabbitmq
from unspool.errors import Full, Misconfigured, Missing, PromiseBroken, Unavailable
from unspool.queues.open import open_queue
from unspool.queues.protocol import PAYLOAD_MAX_BYTES, Queue, Survives
from unspool.queues.rabbitmq import (
    AT_ONCE_MAX,
    FIRST,
    TAKE_BYTES,
    RabbitQueue,
    next_at_once,
    open_rabbitmq,
)
from unspool.queues.rabbitmq_place import Limits, Place, place_of
from unspool.testing.queues import QueueConformance

pytest.importorskip("aio_pika")

QUICK = Limits(connect_ms=600, answer_ms=400)
"""Where nobody answers."""
SOON = Limits(connect_ms=3_000, answer_ms=1_000)
"""Where somebody does, until he is paused."""
PATIENT = Limits(connect_ms=60_000, answer_ms=60_000)
NUMBERS = count()
OPENED: list[RabbitQueue] = []


@pytest.fixture(scope="module", autouse=True)
def starting() -> Iterator[RabbitMQ]:
    with rabbitmq() as server:
        yield server


@pytest.fixture(scope="module")
def server(starting: RabbitMQ) -> RabbitMQ:
    starting.wait()
    return starting


@pytest.fixture
def name() -> str:
    return f"orders-{next(NUMBERS)}"


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while OPENED:
        await OPENED.pop().aclose()


def queue_at(
    port: int,
    name: str = "orders",
    *,
    user: str = "guest",
    vhost: str = "/",
    limits: Limits = PATIENT,
) -> Queue:
    place = Place("127.0.0.1", port, user, "guest", vhost, tls=False)
    OPENED.append(RabbitQueue(place, queue=name, limits=limits))
    return OPENED[-1]


# --- without a server ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "say",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\0\x09\x01", b"\x01\0\0\0\0\0\x04\xff" * 9],
    ids=["silence", "HTTP", "another version", "garbage"],
)
async def test_no_rabbitmq(say: bytes) -> None:
    """10. Each verb ends within its deadline."""
    async with somebody(say) as port:
        queue = queue_at(port, limits=QUICK)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await queue.put([b"one"])
        with pytest.raises(Unavailable):
            await queue.take(limit=1, wait_ms=60_000)
        assert asyncio.get_running_loop().time() - began < 20
        await queue.aclose()


async def test_many_callers_wait_for_one_deadline_together() -> None:
    """10. Who comes behind a failure is told of it, and does not wait as long again."""
    async with somebody(b"") as port:
        queue = queue_at(port, limits=QUICK)
        began = asyncio.get_running_loop().time()
        calls = (queue.put([b"%d" % number]) for number in range(120))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in ended)
        assert asyncio.get_running_loop().time() - began < 120 * 0.4 / 3
        await queue.aclose()


async def test_nobody() -> None:
    """10. A refused connection says so."""
    port = free_port()
    with pytest.raises(Unavailable, match=rf"cannot be reached.*Try: nc -vz 127.0.0.1 {port}$"):
        await queue_at(port).put([b"one"])


@pytest.mark.parametrize(
    ("url", "look", "permissions"),
    [
        ("amqp://me:hunter2@h", "nc -vz h 5672", "rabbitmqctl list_permissions -p /"),
        ("amqp://[::1]:7/shop", "nc -vz ::1 7", "rabbitmqctl list_permissions -p shop"),
        ("amqps://[::1]/a%20b", "openssl s_client -connect '[::1]:5671'",
         "rabbitmqctl list_permissions -p 'a b'"),
    ],
)  # fmt: skip
def test_how_an_operator_asks(url: str, look: str, permissions: str) -> None:
    """The commands that are told are about the very server and vhost, ready for a shell."""
    place, _ = place_of(url)
    assert place.look == look
    assert place.ctl("list_permissions") == permissions
    assert place.ctl("authenticate_user", "o'me") == """rabbitmqctl authenticate_user 'o'"'"'me'"""


@pytest.mark.parametrize(
    "url",
    [
        "amqp:", "amqp://", "amqp:///?queue=orders", "amqp://here:99999", "amqp://here?queue=",
        "amqp://u:secret@here?queue=a%20b", "amqp://u:secret@here?heartbeat=1", "amqp://here#orders",
    ],
)  # fmt: skip
def test_urls_that_make_no_sense(url: str) -> None:
    """The message says how to write one, and no password."""
    with pytest.raises(Misconfigured, match=r"amqp://user:password@127\.0\.0\.1") as caught:
        open_rabbitmq(url)
    assert "secret" not in str(caught.value)


async def test_urls() -> None:
    """As AMQP's URIs are: the path is the vhost, percent-encoded; the queue is asked for."""
    queue = open_rabbitmq("amqps://us%40er:p%2Fw@here/%2Fshop?queue=orders")
    assert queue._place == Place("here", 5671, "us@er", "p/w", "/shop", tls=True)
    assert queue.promises.aside == "orders.aside"
    assert queue.promises.survives is Survives.POWER
    plain = open_rabbitmq("amqp://here")
    assert plain._place == Place("here", 5672, "guest", "guest", "/", tls=False)
    assert plain.promises.aside == "unspool.aside"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, and exits 69."""
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    with pytest.raises(Missing, match=r"pip install 'unspool\[rabbitmq\]'") as caught:
        open_rabbitmq("amqp://here")
    assert caught.value.exit_code == 69


# --- with one -----------------------------------------------------------------------------------


class TestRabbitMQ(QueueConformance):
    @pytest.fixture(autouse=True)
    def _queue(self, server: RabbitMQ, name: str) -> None:
        self.server = server
        self.name = name

    async def open(self, *, aside: bool = False) -> Queue:
        return await open_queue(self.server.url(self.name + ".aside" * aside))


async def declared(server: RabbitMQ, name: str, **how: Any) -> None:
    """Somebody else makes the queue first, in his own way."""
    import aio_pika

    async with await aio_pika.connect(server.url(name)) as connection:
        channel = await connection.channel()
        await channel.declare_queue(name, **how)


async def test_a_server_that_is_paused(server: RabbitMQ, name: str) -> None:
    """10. No confirm, no custody, and no waiting beyond the deadline; when it goes on, so do we."""
    queue, other = (queue_at(server.port, name, limits=SOON) for _ in "12")
    await at_last(lambda: queue.put([b"one"]))
    assert list(await at_last(lambda: other.take(limit=1, wait_ms=0))) is not None
    server.pause()
    try:
        for call in (queue.put([b"two"]), other.take(limit=1, wait_ms=60_000), queue.put([b"3"])):
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable, match="within"):
                await call
            assert asyncio.get_running_loop().time() - began < 20
    finally:
        server.go_on()
    await other.aclose()
    await at_last(lambda: queue.put([b"four"]))
    found = await all_of(queue, least={b"one", b"four"}, hasty=True)
    assert {b"one", b"four"} <= set(found) <= {b"one", b"two", b"3", b"four"}


async def test_large_messages_are_not_taken_all_at_once(server: RabbitMQ, name: str) -> None:
    """4. RabbitMQ sends as many as it may, however large they are: what a take holds in memory has
    a limit all the same, and everything comes."""
    queue = queue_at(server.port, name)
    for number in range(12):
        await queue.put([bytes([number]) * 4 * 1024 * 1024])
    found: set[int] = set()
    while some := await queue.take(limit=128, wait_ms=300 if len(found) == 12 else PATIENCE_MS):
        assert sum(len(one.payload) for one in some) <= TAKE_BYTES
        found |= {one.payload[0] for one in some}
        await queue.complete(some)
    assert found == {*range(12)}


def test_how_many_at_once() -> None:
    """4. Small ones soon come by the hundred, large ones few at a time, and one is always taken."""
    at_once, takes = FIRST, []
    for size in [100] * 12 + [1024 * 1024] * 3 + [PAYLOAD_MAX_BYTES] * 3 + [PAYLOAD_MAX_BYTES * 8]:
        at_once = next_at_once(at_once, [size] * at_once)
        takes.append(at_once)
    assert takes[:12] == [min(FIRST * 2**n, AT_ONCE_MAX) for n in range(1, 13)]
    assert takes[12:] == [32, 32, 32, 2, 2, 2, 1]
    assert next_at_once(64, [100] * 9) == 64


async def test_a_restart(server: RabbitMQ, name: str) -> None:
    """1, 7. kill -9 of RabbitMQ loses nothing that it has confirmed, held or not."""
    queue = queue_at(server.port, name)
    payloads = {b"%d" % number for number in range(6)}
    await queue.put([*payloads])
    held = await queue.take(limit=2, wait_ms=PATIENCE_MS)
    await queue.complete(held[:1])
    server.kill()
    with pytest.raises(Unavailable):
        await queue.put([b"lost?"])
    with pytest.raises(Unavailable):
        await queue.take(limit=1, wait_ms=1_000)
    await queue.complete(held[1:])  # nobody hears it, and it is given again
    server.start()  # by this thread: it ends with the one that started it
    server.wait()
    # What was completed just before may be given again: RabbitMQ does not sync that.
    least = payloads - {held[0].payload}
    assert least <= set(await all_of(queue, least=least)) <= payloads


async def test_a_queue_that_is_full(server: RabbitMQ, name: str) -> None:
    """10. A negative confirm is Full: it did not happen. The queue of others is used as it is."""
    await declared(
        server, name, durable=True,
        arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
    )  # fmt: skip
    queue = queue_at(server.port, name)
    await queue.put([b"one"])
    with pytest.raises(Full, match="takes no more"):  # the limit is looked at a little late
        await queue.put([b"more %d" % number for number in range(9)])
    assert b"one" in await all_of(queue, least=[b"one"])


async def test_a_quorum_queue(server: RabbitMQ, name: str) -> None:
    """A queue of another type is RabbitMQ's business."""
    await declared(server, name, durable=True, arguments={"x-queue-type": "quorum"})
    queue = queue_at(server.port, name)
    await queue.put([b"one"])
    assert await all_of(queue, least=[b"one"]) == [b"one"]


async def test_a_queue_that_is_not_durable(server: RabbitMQ, name: str) -> None:
    """The promise would be a lie: refused, with the command that mends it."""
    await declared(server, name, durable=False)
    queue = queue_at(server.port, name)
    for _ in "12":
        with pytest.raises(PromiseBroken, match=f"rabbitmqctl delete_queue -p / {name}"):
            await queue.put([b"one"])
    with pytest.raises(PromiseBroken):
        await queue.take(limit=1, wait_ms=0)


async def test_a_queue_that_was_deleted(server: RabbitMQ, name: str) -> None:
    """Mandatory: what nobody keeps is returned, and not taken for handed over."""
    import aio_pika

    queue = queue_at(server.port, name)
    await queue.put([b"one"])
    async with await aio_pika.connect(server.url(name)) as connection:
        await (await connection.channel()).queue_delete(name)
    with pytest.raises(Unavailable, match="has no queue"):
        await queue.put([b"two"])
    await queue.put([b"three"])
    assert await all_of(queue, least=[b"three"]) == [b"three"]


async def test_who_is_not_let_in(server: RabbitMQ) -> None:
    """A wrong password is the operator's to mend, and is not shown; so is a wrong vhost."""
    with pytest.raises(Misconfigured, match="does not know the user nobody") as caught:
        await queue_at(server.port, user="nobody").put([b"one"])
    assert "guest" not in str(caught.value)
    with pytest.raises(Misconfigured, match="has no vhost /nowhere"):
        await queue_at(server.port, vhost="/nowhere").put([b"one"])


async def test_what_a_user_may_do(server: RabbitMQ, name: str) -> None:
    """Who may not make queues may use one that is there; who may not write is told so."""
    await declared(server, name, durable=True)
    writer, reader = (queue_at(server.port, name, user=user) for user in ("writer", "reader"))
    await writer.put([b"one"])
    with pytest.raises(Misconfigured, match="does not let the user reader"):
        await reader.put([b"two"])
    with pytest.raises(Misconfigured, match="list_permissions"):
        await queue_at(server.port, "nowhere", user="writer").put([b"three"])
    assert await all_of(reader, least=[b"one"]) == [b"one"]


def test_a_collector_that_is_not_let_in(server: RabbitMQ, name: str, tmp_path: Path) -> None:
    """`unspool collect` ends with 78 at once, and shows no password."""
    url = server.url(name, user="nobody:s3cret")
    collector = Collecting(tmp_path, url, to="http://127.0.0.1:9")
    assert collector.once() == 78
    assert "does not know the user nobody" in collector.text()
    assert "s3cret" not in collector.text()


def test_collected(server: RabbitMQ, name: str, tmp_path: Path) -> None:
    """`unspool collect amqp://…`: the same collector, and what nobody can read is set aside."""

    async def put(*payloads: bytes) -> None:
        queue = await open_queue(server.url(name))
        await queue.put(payloads)
        await queue.aclose()

    asyncio.run(put(written("a"), written("b"), b"no JSON"))
    collector = Collecting(tmp_path, server.url(name), to="http://127.0.0.1:9")
    assert collector.once() == 0
    text = collector.text()
    assert "collected: 2, set aside: 1" in text
    assert "guest:guest" not in text

    async def aside() -> list[bytes]:
        queue = await open_queue(server.url(f"{name}.aside"))
        try:
            return await all_of(queue, least=[b"no JSON"])
        finally:
            await queue.aclose()

    assert asyncio.run(aside()) == [b"no JSON"]


def test_the_page(server: RabbitMQ, tmp_path: Path) -> None:
    """docs/howto/rabbitmq.md: its commands do what it says."""
    check_page("rabbitmq.md", tmp_path, {"5672": str(server.port)})
