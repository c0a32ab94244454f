"""Sections H and J: what is saved and sent again; and how long anything is remembered."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

from .keys import fresh
from .seeing import (
    counted,
    good,
    is_problem,
    marked,
    must,
    past,
    place_of,
    refused,
    replayed,
    saved,
    underway,
)
from .service import SHORT_ANSWER_S, SHORT_KEY_S, Order, Orders
from .wire import Reply

DAY_MS: Final = 24 * 3600 * 1000
LONG_AGO_MS: Final = 4 * 365 * DAY_MS
TRIES_MAX: Final = 8
"""Of what shows nothing where the machine is held up in the middle of it."""
BOUNCED_S: Final = 40.0
DOWN_S: Final = 3.0
"""What is `down` is not well before: it says three times to come again in a second."""
QUIET_S: Final = 1.5
"""How long nothing may be sent before it counts as not sent."""


async def parked(order: Order, key: str) -> Reply:
    reply = await order.post(key)
    must(saved(reply), f"a failure under a key got {reply}, no 202 with a Location")
    return reply


async def h1(it: Orders) -> None:
    order = await it.make("down")
    reply = await parked(order, fresh())
    asked = await order.get(place_of(reply))
    must(asked.status == 200, f"the address of the 202 says {asked}")


async def h2(it: Orders) -> None:
    for _ in range(TRIES_MAX):
        order, key = await it.make("down"), fresh()
        first = await parked(order, key)
        runs = await order.count()
        many = [await order.post(key) for _ in range(5)]
        if many[-1].ended_at - first.began_at < DOWN_S:
            break  # else it may have been delivered, and nothing is shown
    must(all(saved(each) for each in many), f"repeats got {[each.status for each in many]}")
    places = {place_of(each) for each in (first, *many)}
    must(len(places) == 1, f"repeats got {len(places)} addresses")
    # What is sent again meanwhile is sent by the schedule, not once for each repeat.
    must(await order.count() < runs + len(many), "each repeat was sent on")


async def h3(it: Orders) -> None:
    order, key = await it.make("down-twice"), fresh()
    await parked(order, key)
    good(await past(order, key), "what was saved")
    await counted(order, 3)
    if it.service.ours:
        keys = re.findall(rb'"((?:[^"\\]|\\.)*)"', (await order.told()).body.partition(b"[")[2])
        must(len(keys) == 3 and len(set(keys)) == 1, f"three deliveries had the keys {keys}")
        must(key.encode() in keys[0], "the key of the deliveries is not the sender's")


async def h4(it: Orders) -> None:
    order, key = await it.make("down-twice"), fresh()
    first = await parked(order, key)
    final = await past(order, key)
    good(final, "a repeat after the delivery")
    must(marked(final), "a repeat after the delivery does not say that it is a replay")
    asked = await order.get(place_of(first))
    must(asked.status == 200 and b"201" in asked.body, f"the address says {asked}")
    await counted(order, 3)


async def h5(it: Orders) -> None:
    order = await it.make("down")
    reply = await order.post()
    refused(reply, 503, what="a failure without a key")
    await asyncio.sleep(QUIET_S)
    await counted(order, 1, what="a failure without a key")


async def h7(it: Orders) -> None:
    order, key = await it.make("dead"), fresh()
    first = await order.post(key, fields=[("Unspool-Lifetime", "2")])
    must(saved(first), f"a failure under a key got {first}")
    until = time.monotonic() + BOUNCED_S
    while (asked := await order.get(place_of(first))).status == 200 and b"waiting" in asked.body:
        must(time.monotonic() < until, f"after its time the address says {asked}")
        await asyncio.sleep(0.2)
    must(b"bounced" in asked.body, f"after its time the address says {asked}")
    runs = await order.count()
    again = await order.post(key)
    must(again.status in (409, 410, 502), f"a repeat of what was given up got {again}")
    await asyncio.sleep(QUIET_S)
    await counted(order, runs, what="what was given up")


async def h8(it: Orders) -> None:
    order, key = await it.make("advice"), fresh()
    first = await order.post(key)
    again = await order.post(key)
    replayed(first, again)
    must(again.get("Stripe-Should-Retry") == "false", "the service's advice is not replayed")


async def j1(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    again = await order.post(key)
    replayed(first, again)
    if it.service.retention:
        document = await order.get(it.service.retention)
        must(
            document.status == 200 and bool(re.search(rb"[0-9]", document.body)),
            f"{it.service.retention} tells nothing of how long: {document}",
        )
        return
    for reply, what in ((first, "the first answer"), (again, "the replay")):
        told = reply.get("Idempotency-Retention")
        must(
            bool(re.search(r"\bkey=[1-9][0-9]*", told) and re.search(r"\banswer=[0-9]+", told)),
            f"{what} says Idempotency-Retention: {told or 'nothing'}",
        )


async def j2(it: Orders) -> None:
    for _ in range(TRIES_MAX):
        order, key = await it.make(mount="short"), fresh()
        first = await order.post(key)
        good(first)
        await asyncio.sleep(SHORT_ANSWER_S + 0.3)
        late = await order.post(key)
        if late.ended_at - first.began_at < SHORT_KEY_S:
            break  # else the key may be forgotten, too, and nothing is shown
    refused(late, 409, 410, what="a repeat when the answer was forgotten")
    must(is_problem(late), "the refusal is no problem document")
    await counted(order, 1)


def uuid7(at_ms: int) -> str:
    """A key that tells when it was made (RFC 9562 §5.7)."""
    from uuid import UUID, uuid4

    random = uuid4().int
    value = (at_ms << 80) | (random & ((1 << 80) - 1))
    value = value & ~(0xF << 76) | (7 << 76)
    value = value & ~(0x3 << 62) | (2 << 62)
    return str(UUID(int=value))


async def j3(it: Orders) -> None:
    order, now = await it.make(), time.time_ns() // 1_000_000
    late = await order.post(uuid7(now - LONG_AGO_MS))
    refused(late, 409, 410, 412, what="a key that was made four years ago")
    await counted(order, 0)
    good(await order.post(uuid7(now)), "a key that was made just now")


async def j4(it: Orders) -> None:
    order, now = await it.make(), time.time_ns() // 1_000_000
    early = await order.post(uuid7(now + 30 * DAY_MS))
    refused(early, 400, what="a key that will be made in a month")
    await counted(order, 0)


async def j5(it: Orders) -> None:
    for _ in range(TRIES_MAX):
        order, key = await it.make("longer", mount="short", lasts=True), fresh()
        async with underway(order, key) as running:
            for pause_s in (0.1, SHORT_KEY_S + 0.2):
                await asyncio.sleep(pause_s)
                refused(await order.post(key), 409, what="a repeat while the first runs")
            may_end_at = time.time()
        first = await running
        good(first)
        again = await order.post(key)
        kept_since = may_end_at if it.service.ours else first.ended_at
        if again.ended_at - kept_since < SHORT_ANSWER_S:
            break  # else answer and key may be forgotten by then, and nothing is shown
    await counted(order, 1)
    replayed(first, again)


async def j6(it: Orders) -> None:
    order, key = await it.make(mount="short"), fresh()
    first = await order.post(key)
    good(first)
    await asyncio.sleep(SHORT_KEY_S + 0.4)
    again = await order.post(key)
    must(not marked(again), "a repeat after the key's time got a replay")
    good(again, "a repeat after the key's time")
    await counted(order, 2, what="a key whose time has passed")


ROWS: Final = {
    "H1": h1, "H2": h2, "H3": h3, "H4": h4, "H5": h5, "H7": h7, "H8": h8,
    "J1": j1, "J2": j2, "J3": j3, "J4": j4, "J5": j5, "J6": j6,
}  # fmt: skip
