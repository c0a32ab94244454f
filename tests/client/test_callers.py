"""I10 in the client: a key is its caller's. Nobody is told what became of somebody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from unspool import Delivered, Queued
from unspool.core.message import Request
from unspool.errors import Reused

from .kit import DOWN, World, has, never, says, value

ALICE: Any = {"auth": "Bearer alice"}
BOB: Any = {"auth": "Bearer bob"}
KEY: Any = {"key": "order-7", "json": {"item": "tea"}}


def greets(request: Request) -> Any:
    """Whoever asks is told his own."""
    who = value(request, "authorization") if has(request, "authorization") else "nobody"
    return says(201, who.encode())


def body(result: object) -> bytes:
    assert isinstance(result, Delivered)
    return result.response.body


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ALICE, BOB), (ALICE, {}), ({"headers": {"Cookie": "a"}}, {"headers": {"Cookie": "b"}}),
        ({"headers": {"X-API-Key": "a"}}, {"headers": {"x-api-key": "b"}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("durability", ["before", "on-error"])
async def test_another_caller_under_the_key_is_answered_himself(
    one: Any, other: Any, durability: str
) -> None:
    world = World(a=greets)
    async with world.client("a", outbox="memory:", durability=durability) as client:
        first = await client.post("/orders", **KEY, **one)
        second = await client.post("/orders", **KEY, **other)
        assert isinstance(first, Delivered)
        assert isinstance(second, Delivered)
        assert world.asked("a") == 2
        await client.post("/orders", **KEY, **one)
        assert world.asked("a") == (2 if durability == "before" else 3), "his own is known"


async def test_what_waits_is_each_ones_own(tmp_path: Path) -> None:
    """Also in the next process; and each asks for his own."""
    path = str(tmp_path / "outbox.db")
    world = World(a=DOWN)
    async with world.client("a", outbox=path, auth="Bearer alice") as client:
        assert isinstance(await client.post("/o", **KEY, deadline=0.3), Queued)
    async with world.client("a", outbox=path, auth="Bearer alice") as client:
        assert isinstance(await client.post("/o", **KEY, **BOB, deadline=0.3), Queued)
        assert isinstance(await client.post("/o", **KEY, deadline=0.3), Queued)
        assert client.statistics()["waiting"] == 2
        world.servers["a"].then(greets)
        assert body(await client.wait("order-7", 60, **BOB)) == b"Bearer bob"
        assert body(await client.wait("order-7", 60)) == b"Bearer alice"
        with pytest.raises(KeyError, match="under these credentials"):
            await client.wait("order-7", 0, auth="Bearer carol")


async def test_a_key_is_reused_only_by_whose_it_is() -> None:
    world = World(a=greets)
    async with world.client("a") as client:
        await client.post("/orders", **KEY, **ALICE)
        other = {**KEY, "json": {"item": "coffee"}}
        assert body(await client.post("/orders", **other, **BOB)) == b"Bearer bob"
        with pytest.raises(Reused):
            await client.post("/orders", **other, **ALICE)


async def test_nobody_waits_behind_somebody_elses_key() -> None:
    world = World(
        a=lambda request: (
            never(request) if value(request, "authorization") == "Bearer alice" else greets(request)
        )
    )
    async with world.client("a") as client:
        slow = asyncio.create_task(client.post("/orders", **KEY, **ALICE, deadline=60))
        while not world.asked():
            await asyncio.sleep(0.001)
        assert body(await client.post("/orders", **KEY, **BOB, deadline=20)) == b"Bearer bob"
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
