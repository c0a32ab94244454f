"""What the rows say of what they see.

must(reply.status == 422, "…")          Failed, unless
replayed(first, again)                  the same answer, byte for byte
refused(reply, 400)                     with this status, and nothing of the key in it
reply = await past(order, key, …)       the answer behind a 202, when it has come
async with underway(order, key) as first:    the first request runs, and is ended afterwards
    await is_live(order, first)              it still did, after what was seen until now
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from .service import Order
from .wire import Reply

PATIENCE_S = 30.0
HEAD_START_S = 0.25
MOMENT_S = 0.1


class Failed(Exception):
    """A row does not hold, and what was seen instead."""


def must(holds: bool, seen: str) -> None:
    if not holds:
        raise Failed(seen)


def good(reply: Reply, what: str = "the first request") -> None:
    must(200 <= reply.status < 300, f"{what} got {reply}")


def marked(reply: Reply) -> bool:
    return reply.get("Idempotent-Replayed").strip().lower() in ("true", "?1")


def replayed(first: Reply, again: Reply, what: str = "the repeat") -> None:
    must(again.status == first.status, f"{what} got {again} instead of {first}")
    must(again.body == first.body, f"{what} got other bytes: {again} instead of {first}")


def refused(reply: Reply, *statuses: int, what: str = "it") -> None:
    names = " or ".join(map(str, statuses))
    must(reply.status in statuses, f"{what} got {reply}, not {names}")


async def counted(order: Order, *numbers: int, what: str = "") -> None:
    count = await order.count()
    names = " or ".join(map(str, numbers))
    must(count in numbers, f"{what or 'it'} ran {count} times, not {names}")


def is_problem(reply: Reply) -> bool:
    return reply.get("Content-Type").split(";")[0].strip().lower() == "application/problem+json"


def saved(reply: Reply) -> bool:
    """202 with an address: responsibility was taken."""
    return reply.status == 202 and bool(reply.get("Location"))


async def begun(order: Order) -> None:
    """Return when the first request runs. Ours counts before it does anything else; of others it
    is not known when they count."""
    loop = asyncio.get_running_loop()
    if not order.service.ours:
        await asyncio.sleep(HEAD_START_S)
        return
    until = loop.time() + PATIENCE_S
    while not await order.count() and loop.time() < until:
        await asyncio.sleep(0.01)


@asynccontextmanager
async def underway(order: Order, key: str) -> AsyncIterator[asyncio.Task[Reply]]:
    """The first request under a key, while it runs: of an order made with `lasts`, so that what
    is asked meanwhile is asked meanwhile, however slow the machine."""
    running = asyncio.ensure_future(order.post(key))
    try:
        await begun(order)
        yield running
    finally:
        await order.end()
        await asyncio.wait([running])


async def is_live(order: Order, running: asyncio.Task[Reply]) -> bool:
    """Does the first request still run? Ours says so itself, after what was read before. Of others
    it is known by the answer; two at one moment come in any order, so before is well before."""
    if order.service.ours:
        return msgspec.json.decode((await order.told()).body, type=_Live).live > 0
    await asyncio.sleep(MOMENT_S)
    return not running.done()


class _Live(msgspec.Struct):
    live: int


async def past(order: Order, key: str, *, while_: tuple[int, ...] = (), **how: Any) -> Reply:
    """The answer to a repeat, once it is neither 202 nor one of `while_`; bounded."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while True:
        reply = await order.post(key, **how)
        if (not saved(reply) and reply.status not in while_) or loop.time() > until:
            return reply
        await asyncio.sleep(0.15)


def place_of(reply: Reply) -> str:
    """The target in a Location on this server."""
    return re.sub(r"^https?://[^/]+", "", reply.get("Location"))
