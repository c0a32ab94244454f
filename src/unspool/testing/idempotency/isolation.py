"""Section D: isolation and security."""

from __future__ import annotations

from typing import Final
from uuid import uuid4

from .keys import fresh
from .seeing import counted, good, marked, must, refused, replayed
from .service import Orders


async def d1(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    other = await order.post(key, caller=it.service.other)
    must(not marked(other), "another caller with the key got a replay")
    good(other, "another caller with the key")
    await counted(order, 2, what="one key of two callers")
    must(not it.service.ours or other.body != first.body, "another caller got the first's bytes")
    replayed(first, await order.post(key), "the first caller's repeat")
    replayed(other, await order.post(key, caller=it.service.other), "the other caller's repeat")
    await counted(order, 2)


async def d2(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    again = await order.post(key, caller=it.service.renewed)
    replayed(first, again, "the same caller with a new token")
    await counted(order, 1)


async def d4(it: Orders) -> None:
    order = await it.make()
    for name, statuses in (("raise", (500,)), ("nobody", (400, 401, 403, 500))):
        caller = [("Authorization", f"Bearer {name}.1")]
        refused(await order.post(fresh(), caller=caller), *statuses, what=f"the caller {name!r}")
        await counted(order, 0, what=f"a request of the caller {name!r}")


async def d5(it: Orders) -> None:
    order, key, name = await it.make(), fresh(), f"carol{uuid4().hex[:8]}"
    caller = [("Authorization", f"Bearer {name}.1")]
    good(await order.post(key, caller=caller))
    await it.revoke(name)
    again = await order.post(key, caller=caller)
    refused(again, 401, 403, what="a caller without rights")
    must(not marked(again), "a caller without rights got a replay")
    await counted(order, 1)


ROWS: Final = {"D1": d1, "D2": d2, "D4": d4, "D5": d5}
