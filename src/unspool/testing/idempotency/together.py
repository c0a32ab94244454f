"""Sections E and F: at the same time; and what is left of those who break off."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from .keys import fresh
from .seeing import (
    PATIENCE_S,
    begun,
    counted,
    good,
    is_problem,
    must,
    past,
    refused,
    replayed,
    saved,
    underway,
)
from .service import Orders, offers
from .wire import Reply

PARALLEL: Final = 50
ROUNDS: Final = 12
SPREADS: Final = 6
WAITERS: Final = 4
WAIT_S: Final = 20


def one_of(replies: list[Reply]) -> None:
    """One got the answer; everybody else the same one, or 409."""
    answers = {(reply.status, reply.body) for reply in replies if reply.status < 300}
    must(len(answers) == 1, f"{len(answers)} different answers under one key")
    odd = [reply for reply in replies if reply.status >= 300 and reply.status != 409]
    must(not odd, f"{len(odd)} of {len(replies)} got neither the answer nor 409: {odd[:1]}")


async def e1(it: Orders) -> None:
    needs = [need for need in ("count", "slow") if offers(it.service, need)]
    for need in needs:
        order, key = await it.make(need), fresh()
        replies = await asyncio.gather(*(order.post(key) for _ in range(PARALLEL)))
        await counted(order, 1, what=f"{PARALLEL} parallel requests ({need})")
        one_of(replies)
        good(await past(order, key, while_=(409,)), "a repeat afterwards")
        await counted(order, 1)


async def e3(it: Orders) -> None:
    order, key = await it.make("slow", lasts=True), fresh()
    async with underway(order, key) as first:
        second = await order.post(key)
    good(await first)
    refused(second, 409, what="a repeat while the first runs")
    must(is_problem(second), f"the 409 is {second.get('Content-Type') or 'untyped'}")
    must(second.get("Retry-After").isdigit(), f"the 409 says {second.get('Retry-After')!r}")
    await counted(order, 1)


async def e4(it: Orders) -> None:
    order, key = await it.make("slow"), fresh()
    running = asyncio.ensure_future(order.post(key))
    await begun(order)
    second = await order.post(key, fields=[("Prefer", f"wait={WAIT_S}")])
    first = await running
    good(first)
    replayed(first, second, "one that waits")
    longer_s = second.ended_at - first.ended_at
    must(longer_s < WAIT_S / 2, f"it waited for {longer_s:.1f} s after the first had its answer")
    await counted(order, 1)


async def e5(it: Orders) -> None:
    """Requests spread over the time that one takes, so that some look while it is being written.
    How long that is was measured once and changes: each round of SPREADS is closer together."""
    probe = await it.make()
    began = time.monotonic()
    good(await probe.post(fresh()))
    span_s = min(0.1, max(0.004, time.monotonic() - began))
    for round_ in range(ROUNDS):
        order, key = await it.make(), fresh()
        gap_s = span_s / 4 / 2 ** (round_ % SPREADS)

        async def late(  # type: ignore[no-untyped-def]
            number: int, order=order, key=key, gap_s=gap_s
        ) -> Reply:
            await asyncio.sleep(gap_s * number)
            reply: Reply = await order.post(key)
            return reply

        replies = await asyncio.gather(*(late(number) for number in range(8)))
        await counted(order, 1, what=f"round {round_ + 1} of {ROUNDS}: 8 requests close together")
        one_of(replies)


async def e7(it: Orders) -> None:
    order, key = await it.make("slow-raise"), fresh()
    wait = [("Prefer", "wait=10")]
    running = asyncio.ensure_future(order.post(key))
    await begun(order)
    replies = await asyncio.gather(*(order.post(key, fields=wait) for _ in range(WAITERS)))
    await running
    must((await order.count()) <= 2, f"{await order.count()} runs: waiters ran side by side")
    if it.service.ours:
        found = (await order.told()).body
        must(b'"most_at_once":1' in found, f"two ran at the same time: {found.decode()}")
    bad = [each for each in replies if each.status >= 300 and each.status not in (409, 500, 502)]
    must(not bad, f"one that waited got {bad[:1]}")
    final = await past(order, key, while_=(409,), fields=wait)
    good(final, "a retry afterwards")
    await counted(order, 2)


async def e8(it: Orders) -> None:
    order, key = await it.make(), fresh()
    await order.break_off(key)
    reply = await order.post(key)
    good(reply, "a retry after a request that broke off")
    await counted(order, 1)


async def f7(it: Orders) -> None:
    order, key = await it.make("raise-once"), fresh()
    first = await order.post(key)
    must(first.status >= 500 or first.status == 202, f"a handler that raises got {first}")
    began = time.monotonic()
    again = await past(order, key)
    good(again, "a retry after the handler raised")
    must(time.monotonic() - began < PATIENCE_S - 5, "the key was stuck for long")
    await counted(order, 2)
    replayed(again, await order.post(key))


async def f8(it: Orders) -> None:
    order, key = await it.make("effect-raise"), fresh()
    first = await order.post(key)
    must(first.status >= 500 or saved(first), f"a handler that raises got {first}")
    for _ in range(2):
        again = await past(order, key)
        refused(again, 409, 503, what="a retry of what may have had an effect")
    must(is_problem(again), "the refusal is no problem document")
    await counted(order, 1, what="a handler that raised after its effect")


async def f9(it: Orders) -> None:
    order, key = await it.make("slow"), fresh()
    await order.walk_away(key, until=begun(order))
    again = await past(order, key, while_=(409,))
    good(again, "a retry after the caller had gone away")
    await counted(order, 1)
    replayed(again, await order.post(key))


ROWS: Final = {
    "E1": e1, "E3": e3, "E4": e4, "E5": e5, "E7": e7, "E8": e8, "F7": f7, "F8": f8, "F9": f9,
}  # fmt: skip
