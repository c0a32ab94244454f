"""A relay over a custody chain: what senders are told while the first spool is away, and after."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from kit import NOW, REFUSED, It, Service, node, says, told, value
from msgspec.structs import replace

from unspool.core.message import Instant, Request, Response
from unspool.errors import Unavailable
from unspool.ingress.protocol import Caller
from unspool.spools.chain.custodian import Custodian
from unspool.spools.chain.spool import ChainSpool
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Promises, Survives

ASYNC = (b"Prefer", b"respond-async")


class Place(MemorySpool):
    """Memory that says it keeps more, and can be away."""

    def __init__(self, survives: Survives) -> None:
        super().__init__()
        self.away = False
        self.lost = False
        self.verbs: list[str] = []
        self._keeps = survives

    @property
    def promises(self) -> Promises:
        return replace(super().promises, survives=self._keeps)

    async def accept(self, entries: Any, /) -> Any:
        self.verbs.append("accept")
        if self.away and not self.lost:
            raise Unavailable("switched off")
        answers = await super().accept(entries)
        if self.away:
            raise Unavailable("the answer was lost")
        return answers

    async def find(self, keys: Any, /) -> Any:
        self.verbs.append("find")
        if self.away:
            raise Unavailable("switched off")
        return await super().find(keys)


@contextlib.asynccontextmanager
async def relay_over_two(
    service: Service | None = None,
) -> AsyncIterator[tuple[It, Place, Place]]:
    first, second = Place(Survives.MACHINE), Place(Survives.POWER)

    def opens(place: Place) -> Any:
        async def open_() -> Place:
            return place

        return open_

    chain = ChainSpool(
        [
            Custodian(name=name, open=opens(place), deadline_ms=5_000)
            for name, place in (("first", first), ("second", second))
        ],
        now=lambda: Instant(NOW),
    )
    await chain.begin()
    chain.keep()
    while not chain.ranks.clear:
        await asyncio.sleep(0.01)
    try:
        async with node(REFUSED, spool=chain, service=service) as it:
            yield it, first, second
    finally:
        await chain.aclose()


class Prompt(Service):
    """A service with a connection at hand: what is usual takes the express road."""

    def begin(self, request: Request, done: Any, /, *, repeat: bool) -> Prompt:
        raise AssertionError("it is known to be down")


async def test_a_key_is_looked_up_in_a_chain_before_it_is_saved() -> None:
    """Who would take it may not be who knows it, and one who cannot be asked may know it."""
    async with relay_over_two(Prompt(REFUSED)) as (it, first, _):
        for number in range(9):
            assert (await it.ask(key=f"{number}")).status == 202
        assert not it.node.scheduler.lane(it.node.options.destination).is_open(it.clock.now())
        first.verbs.clear()
        heard: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        fields = [(b"Host", b"relay.example"), (b"Idempotency-Key", b"k")]
        request = Request(b"POST", b"/orders", fields, b"tea")
        assert it.node.relay.begin(request, Caller("192.0.2.7", "http"), heard.set_result)
        assert (await heard).status == 202
        assert first.verbs[0] == "find"


async def back(it: It, first: Place) -> None:
    first.away = False
    chain = it.spool
    assert isinstance(chain, ChainSpool)
    async with asyncio.timeout(60):
        while not (chain.ranks.home.up and chain.homing.compared and chain.ranks.clear):
            await asyncio.sleep(0.01)


async def test_the_receipt_names_the_grade_of_the_one_that_took_it() -> None:
    async with relay_over_two() as (it, first, _second):
        assert told(await it.ask(key="a"))["survives"] == "machine"
        first.away = True
        response = await it.ask(key="b")
        assert (response.status, told(response)["survives"]) == (202, "power")
        assert told(await it.receipt(response))["survives"] == "power"
        await back(it, first)
        assert told(await it.receipt(response))["survives"] == "machine", "it was brought home"


async def test_a_receipt_that_cannot_be_looked_up_is_not_unknown() -> None:
    """404 would say that it never was. It is safe where it is, and that is what is said."""
    async with relay_over_two() as (it, first, _second):
        response = await it.ask(key="a")
        first.away = True
        asked = await it.receipt(response)
        assert asked.status == 503
        assert b"What it keeps is safe" in asked.body
        cancelled = await it.receipt(response, method=b"DELETE")
        assert cancelled.status == 503
        await back(it, first)
        assert (await it.receipt(response)).status == 200


async def test_both_receipts_of_a_key_lead_to_one_end() -> None:
    """The key was known to the first alone, and taken again by the second while it was away."""
    async with relay_over_two() as (it, first, _second):
        one = await it.ask(key="a")
        first.away = True
        two = await it.ask(key="a")
        assert (one.status, two.status) == (202, 202)
        assert value(one, b"location") != value(two, b"location")
        await back(it, first)
        it.service.then(says(200, b"done"))
        it.clock.at += 10_000
        await it.deliver()
        for response in (one, two):
            assert told(await it.receipt(response))["state"] == "delivered"
            assert (await it.receipt(response, b"/response")).body == b"done"
        assert [dict(r.fields)[b"Unspool-Attempt"] for r in it.service.attempts].count(b"1") <= 2
        assert (await it.ask(key="a")).body == b"done"


async def test_one_that_is_to_keep_its_order_is_refused_and_others_are_not() -> None:
    async with relay_over_two() as (it, first, _second):
        first.away = True
        assert (await it.ask(key="z")).status == 202
        refused = await it.ask(b"POST", b"/orders", (b"Unspool-Order", b"x"), key="a")
        assert refused.status == 503
        assert b"keep its order" in refused.body
        assert (await it.ask(key="b")).status == 202, "nobody else is refused for it"


async def test_without_a_key_and_in_doubt_it_is_unknown_and_not_refused() -> None:
    """`refused` says that the sender still has it, and should send it again: it could go out
    twice."""
    async with relay_over_two() as (it, first, second):
        first.away = first.lost = True
        response = await it.ask(b"POST", b"/orders", ASYNC)
        assert response.status == 502
        assert b"problems/unknown" in response.body
        assert [e for e in second.entries.values() if e.message.destination] == []
        assert (await it.ask(b"POST", b"/orders", ASYNC)).status == 202, (
            "now it is known to be down"
        )


async def test_health_tells_of_each() -> None:
    async with relay_over_two() as (it, first, _second):
        first.away = True
        await it.ask(key="a")
        health = told(await it.ask(b"GET", b"/_unspool/health", body=b""))
        assert [view["state"] for view in health["spools"]] == ["down", "up"]
        assert "switched off" in health["spools"][0]["cause"]
        assert health["takes_custody"] is True


async def test_a_receipt_cancels_its_own_message_and_no_other() -> None:
    """The key came again with another request while the first was away: two messages wait under it,
    and each receipt is of one."""
    async with relay_over_two() as (it, first, _second):
        one = await it.ask(key="a", body=b"tea")
        first.away = True
        two = await it.ask(key="a", body=b"coffee")
        assert (one.status, two.status) == (202, 202)
        first.away = False
        chain = it.spool
        assert isinstance(chain, ChainSpool)
        async with asyncio.timeout(60):
            while not (chain.ranks.home.up and chain.homing.compared):
                await asyncio.sleep(0.01)
        cancelled = await it.receipt(two, method=b"DELETE")
        assert (cancelled.status, told(cancelled)["reason"]) == (200, "cancelled")
        assert told(cancelled)["receipt"] == value(two, b"location").decode()
        assert told(await it.receipt(one))["state"] == "waiting"
        assert told(await it.receipt(two))["state"] == "bounced"
        assert (await it.receipt(one, method=b"DELETE")).status == 200
