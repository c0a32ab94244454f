"""Handing over: to a relay that really runs, to a gearmand, and to queues that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crash.processes import Relay
from crash.service import Service
from servers.gearmand import gearmand
from unspool import Accepted, Client, Delivered, Queued, Undelivered, Unknown
from unspool.client.handover import Foreign, Handed, read
from unspool.client.request import Defaults, Request, compose
from unspool.core import handover
from unspool.core.message import Instant, Response, Sent
from unspool.errors import Full, Misconfigured, TooLarge, Unavailable
from unspool.problems import PROBLEMS, problem
from unspool.queues.memory import MemoryQueue, MemoryServer
from unspool.queues.open import open_queue
from unspool.queues.protocol import Queue

from .kit import DOWN, RESET, TAKEN, World, has, says

NOW = Instant(1_790_000_000_000)
PATIENT: Any = {"deadline": 60, "queue_ms": 30_000}
"""Whoever takes it over is a process, and may have something else to do."""


def order(**asked: Any) -> Request:
    return compose(
        "POST", "/orders", defaults=Defaults(), mint=lambda: "minted", json={"item": "tea"}, **asked
    )


@pytest.mark.slow
async def test_the_receipt_of_a_real_relay_is_followed(tmp_path: Path) -> None:
    """Accepted, with the service down for the client and for the relay; then it comes back, and
    the receipt tells the service's own answer. A repeat is told the same, and runs nothing."""
    with Service(up=False) as service:
        relay = Relay(tmp_path, to=service.url, arguments=["--backoff-most-ms", "1s"])
        try:
            await relay.start()
            where = f"http://127.0.0.1:{relay.port}"
            client = Client(service.url, queues=[where], **PATIENT)
            result = await asyncio.to_thread(client.post, "/orders", content=b"tea", key="order-7")
            assert isinstance(result, Accepted)
            receipt = result.receipt
            assert receipt.where == where
            assert receipt.survives in ("power", "process")
            status: Any = await asyncio.to_thread(receipt.status)
            assert status.state == "waiting"
            assert isinstance(await asyncio.to_thread(receipt.wait, 0.1), Accepted), "not yet"
            service.up()
            fate: Any = await asyncio.to_thread(receipt.wait, 60)
            assert isinstance(fate, Delivered)
            [handled] = service.of("order-7")
            assert fate.response.body == handled.answer
            assert (await asyncio.to_thread(receipt.status)).state == "delivered"
            assert not await asyncio.to_thread(receipt.cancel), "it is too late"
            relay.kill()
            with pytest.raises(Unavailable, match="It has the request all the same"):
                await asyncio.to_thread(receipt.status)
            assert isinstance(await asyncio.to_thread(receipt.wait, 0.1), Accepted)
            await asyncio.to_thread(client.close)
        finally:
            relay.end()


@pytest.mark.slow
async def test_a_receipt_can_be_cancelled(tmp_path: Path) -> None:
    with Service(up=False) as service:
        relay = Relay(tmp_path, to=service.url)
        try:
            await relay.start()
            where = f"http://127.0.0.1:{relay.port}"
            with Client(service.url, queues=[where], **PATIENT) as client:
                result = await asyncio.to_thread(client.post, "/orders", content=b"tea")
                assert isinstance(result, Accepted)
                for _ in range(1_000):  # not while it is being tried
                    if await asyncio.to_thread(result.receipt.cancel):
                        break
                    await asyncio.sleep(0.02)
                fate: Any = await asyncio.to_thread(result.receipt.wait, 60)
                assert fate.reason == "cancelled"
        finally:
            relay.end()


async def test_a_gearmand_takes_over_what_no_server_answers() -> None:
    """And what it carries is what a collector reads: the same request under the same key."""
    with gearmand() as server:
        url = server.url("orders")
        world = World(a=DOWN)
        async with world.client("a", queues=[url], **PATIENT) as client:
            result = await client.post("/orders?x=1", json={"item": "tea"}, key="order-7")
            assert isinstance(result, Accepted)
            assert result.receipt.where == url
            assert result.receipt.url == ""
            assert (await result.receipt.status()).state == "handed over"
            assert isinstance(await result.receipt.wait(10), Accepted), "nobody can be asked"
        queue = await open_queue(url)
        [taken] = await queue.take(limit=5, wait_ms=20_000)
        found = handover.unpack(taken.payload)
        await queue.complete([taken])
        await queue.aclose()
    assert (found.key, found.request.method, found.request.target) == (
        "order-7", b"POST", b"/orders?x=1",
    )  # fmt: skip
    assert found.request.body == b'{"item":"tea"}'


async def test_a_gearmand_that_is_down_costs_its_slice_and_the_outbox_has_it() -> None:
    world = World(a=DOWN)
    async with world.client("a", queues=["gearman://127.0.0.1:1"], outbox="memory:") as client:
        result = await client.post("/orders", json=1, deadline=1)
    assert isinstance(result, Queued)


class Strange(MemoryQueue):
    """A queue that goes wrong when something is put."""

    def __init__(self, trouble: BaseException | None = None) -> None:
        super().__init__(MemoryServer())
        self.trouble = trouble

    async def put(self, payloads: Sequence[bytes], /) -> None:
        if self.trouble is None:
            await asyncio.sleep(3600)
        else:
            raise self.trouble


TROUBLE: list[tuple[BaseException | None, Sent]] = [
    (Unavailable("it may have it"), Sent.MAYBE),
    (None, Sent.MAYBE),
    (ValueError("its own mistake"), Sent.MAYBE),
    (Full("no room"), Sent.NEVER),
    (TooLarge("too large"), Sent.NEVER),
]


@pytest.mark.parametrize(("trouble", "sent"), TROUBLE, ids=[str(one[0]) for one in TROUBLE])
async def test_a_queue_that_goes_wrong_is_trouble_and_no_exception(
    trouble: BaseException | None, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    """And whether it may have the request all the same is known."""

    async def opener(_url: str) -> Queue:
        return Strange(trouble)

    taker = Foreign("memory:", opener=opener)
    await taker.open()  # it is open when it is asked
    timeout_ms = 50 if trouble is None else 60_000
    told = await taker.take(order(), now=NOW, timeout_ms=timeout_ms)
    assert (told.receipt_of, told.answer, told.sent) == (None, None, sent)
    assert told.why
    await taker.aclose()


async def test_a_queue_that_could_not_be_opened_is_opened_anew() -> None:
    tries: list[str] = []

    async def opener(url: str) -> Queue:
        tries.append(url)
        if len(tries) == 1:
            raise Misconfigured("its package is missing")
        return MemoryQueue()

    taker = Foreign("memory:", opener=opener)
    first = await taker.take(order(), now=NOW, timeout_ms=60_000)
    second = await taker.take(order(), now=NOW, timeout_ms=60_000)
    await taker.aclose()
    assert first.sent is Sent.NEVER
    assert second.receipt_of is not None
    assert len(tries) == 2


async def test_what_may_be_with_a_queue_already_goes_nowhere_else_unless_repeatable() -> None:
    """An offer whose answer was lost is an attempt like others."""
    world = World(a=DOWN, relay1=RESET, relay2=TAKEN)
    queues = ["https://relay1", "https://relay2"]
    async with world.client("a", queues=queues, outbox="memory:") as client:
        assert isinstance(await client.post("/o", json=1, key=False), Unknown)
        assert world.asked("relay2") == 0
        assert isinstance(await client.post("/o", json=1), Accepted)
        assert world.asked("relay2") == 1


async def test_a_queue_gets_nothing_that_has_no_key() -> None:
    taker = Foreign("memory:")
    told = await taker.take(order(key=False), now=NOW, timeout_ms=60_000)
    assert told.sent is Sent.NEVER
    await taker.aclose()


async def test_where_servers_do_not_know_keys_nobody_may_repeat_it_under_one() -> None:
    """A relay and a collector repeat what has a key. So a relay gets it without, and never sends it
    twice; a queue does not get it."""
    world = World(a=DOWN, relay=TAKEN)
    queues = ["memory:", "https://relay"]
    async with world.client("a", queues=queues, servers_know_keys=False) as client:
        result = await client.post("/orders", json=1, key="order-7")
        assert isinstance(result, Accepted)
        assert (result.receipt.where, result.key) == ("https://relay", "order-7")
        [offered] = world.servers["relay"].asked
        assert not has(offered, "Idempotency-Key")
        assert isinstance(await client.put("/orders/7", json=1, key="order-8"), Accepted)
        assert len(world.servers["relay"].asked) == 1, "a PUT may be repeated: the queue has it"


async def test_a_receipt_that_nobody_knows_any_more_is_not_taken_back() -> None:
    """It has ended, and may have been delivered. A 404 of somebody else on the way says nothing."""
    world = World(a=DOWN, relay=TAKEN)
    async with world.client("a", queues=["https://relay"]) as client:
        result = await client.post("/orders", json=1)
        assert isinstance(result, Accepted)
        world.servers["relay"].then(says(404, b"nginx"))
        assert isinstance(await result.receipt.wait(0.1), Accepted), "it has it all the same"
        world.servers["relay"].then(problem("not-found"))
        assert isinstance(await result.receipt.wait(0.1), Unknown)
        assert (await result.receipt.status()).state == "forgotten"


def test_a_relay_that_knows_the_answer_gives_it() -> None:
    """An old repeat, or a stand-in server: the answer is the answer."""
    for answer in (says(201, b"done", Idempotent_Replayed="true"), says(404), says(303)):
        assert read(answer) == Handed(Sent.YES, answer=answer)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_of_a_relay_means_something(name: str) -> None:
    """What it refused it does not have; what it knows is the answer; what it tried is uncertain."""
    told = read(problem(name))
    where = PROBLEMS[name].where
    if name in ("key-reused", "expired", "bounced", "settled", "outcome-unknown"):
        assert told.answer is not None
    elif name == "running":
        assert told.sent is Sent.MAYBE or told.sent is Sent.REFUSED
    elif "still have it" in where or "not taken" in where:
        assert told.answer is None
        assert told.sent is Sent.REFUSED, "it may go elsewhere, with or without a key"
    elif name == "in-doubt":
        assert (told.answer, told.sent) == (None, Sent.MAYBE)
    assert told.receipt_of is None


async def test_a_relay_that_rejects_is_a_rejection() -> None:
    world = World(a=DOWN, relay=problem("key-reused"))
    async with world.client("a", queues=["https://relay"]) as client:
        result = await client.post("/orders", json=1, key="k", deadline=30)
    assert result.response.status == 422  # type: ignore[union-attr]


async def test_a_202_without_a_receipt_is_not_custody() -> None:
    """From a relay that is not ours it is an answer, and believed no further."""
    told = read(Response(202, b"", ((b"Location", b"/_unspool/receipts/" + b"x" * 44),)))
    assert told.receipt_of is None
    assert told.answer is not None


async def test_nobody_at_all_is_undelivered_with_every_offer_told() -> None:
    world = World(a=DOWN, relay=says(503))
    async with world.client("a", queues=["https://relay"]) as client:
        with pytest.raises(Undelivered) as caught:
            await client.post("/orders", json=1, deadline=30)
    assert [one.where for one in caught.value.tries][-1] == "https://relay"  # type: ignore[attr-defined]
