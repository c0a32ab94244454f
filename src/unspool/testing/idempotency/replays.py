"""Section B: the first answer and its replay."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from .keys import fresh
from .seeing import counted, good, marked, must, replayed
from .service import NotOffered, Order, Orders, offers
from .table import BYTES, FALSY
from .wire import Reply

LOOKS: Final = 12


async def twice(order: Order) -> tuple[Reply, Reply]:
    """A request and its repeat: one execution."""
    key = fresh()
    first = await order.post(key)
    good(first)
    again = await order.post(key)
    replayed(first, again)
    await counted(order, 1)
    return first, again


async def b1(it: Orders) -> None:
    await twice(await it.make())


async def b2(it: Orders) -> None:
    first, again = await twice(await it.make())
    must(not marked(first), "the first answer says that it is a replay")
    must(marked(again), f"the replay says {again.get('Idempotent-Replayed') or 'nothing'}")


async def b3(it: Orders) -> None:
    first, again = await twice(await it.make("fields"))
    for name in ("Location", "ETag", "Content-Type"):
        must(bool(first.get(name)), f"the first answer has no {name}")
        must(
            again.get(name) == first.get(name),
            f"{name} was {first.get(name)!r} and is {again.get(name)!r}",
        )


async def b4(it: Orders) -> None:
    order, key = await it.make("cookie"), fresh()
    first = await order.post(key)
    good(first)
    must(bool(first.get("Set-Cookie")), "the first caller got no Set-Cookie")
    again = await order.post(key)
    good(again, "the repeat")
    for name in ("Set-Cookie", "WWW-Authenticate", "Proxy-Authenticate", "Keep-Alive", "Upgrade"):
        must(not again.get(name), f"the replay has {name}: {again.get(name)}")
    must(len(again.every("Date")) == 1, f"the replay has {len(again.every('Date'))} Date fields")
    must(len(again.every("Content-Length")) <= 1, "the replay has two Content-Length fields")


async def b5(it: Orders) -> None:
    await twice(await it.make("cookie"))


async def b6(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    await asyncio.sleep(1.2)
    for _ in range(LOOKS):  # a server that is busy may set its Date late
        again = await order.post(key)
        replayed(first, again)
        dates = [date_in(each.get("Date")) for each in (first, again)]
        must(None not in dates, "an answer has no Date")
        if dates[0] != dates[1]:
            break
        await asyncio.sleep(0.3)
    must(dates[0] != dates[1], "the replay has the Date of the first answer")
    must("no-store" in again.get("Cache-Control").lower(), "the replay may be cached")
    told = [
        name
        for name, value in again.fields
        if name.lower() != "date" and _between(value, first.began_at, first.ended_at)
    ]
    must(bool(told), "the replay does not tell when the answer was first given")


def date_in(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date or an RFC 3339 timestamp."""
    text = text.strip().strip('"')
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, IndexError):
        pass
    if not re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", text):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _between(value: str, began_at: float, ended_at: float) -> bool:
    at = date_in(value)
    return at is not None and began_at - 1.1 <= at <= ended_at + 0.5


async def each(it: Orders, needs: tuple[str, ...]) -> None:
    there = [need for need in needs if offers(it.service, need)]
    if not there:
        raise NotOffered(" or ".join(needs))
    for need in there:
        first, again = await twice(await it.make(need))
        for name in ("Content-Type", "Content-Encoding"):
            must(again.get(name) == first.get(name), f"{need}: {name} is {again.get(name)!r}")


async def b7(it: Orders) -> None:
    await each(it, FALSY)


async def b8(it: Orders) -> None:
    await each(it, BYTES)


async def b9(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    good(await order.post(fresh()), "a request under another key")
    replayed(first, await order.post(key), "a repeat after things had changed")
    await counted(order, 2)


async def b11(it: Orders) -> None:
    first, again = await twice(await it.make("fields"))
    name = "Access-Control-Expose-Headers"
    if not first.get(name):
        raise NotOffered(f"an answer with {name}")
    must(again.get(name) == first.get(name), f"{name} is {again.get(name)!r} in the replay")


ROWS: Final = {
    "B1": b1, "B2": b2, "B3": b3, "B4": b4, "B5": b5, "B6": b6, "B7": b7, "B8": b8, "B9": b9,
    "B11": b11,
}  # fmt: skip
