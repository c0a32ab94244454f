"""Section G: what is remembered, and what is not."""

from __future__ import annotations

from typing import Final

from .keys import fresh
from .seeing import counted, good, marked, must, past, refused, replayed, saved, underway
from .service import NotOffered, Order, Orders, offers
from .table import LASTING, PASSING


def there(it: Orders, needs: tuple[str, ...]) -> list[str]:
    found = [need for need in needs if offers(it.service, need)]
    if not found:
        raise NotOffered(" or ".join(needs))
    return found


async def g1(it: Orders) -> None:
    for need in there(it, LASTING):
        order, key = await it.make(need), fresh()
        first = await order.post(key)
        refused(first, int(need), what="the first request")
        replayed(first, await order.post(key))
        await counted(order, 1, what=f"a request that gets {need}")


async def g2(it: Orders) -> None:
    for need in there(it, PASSING):
        order, key = await it.make(need), fresh()
        first = await order.post(key)
        if not saved(first):
            refused(first, int(need[5:]), what="the first request")
        again = await past(order, key)
        good(again, f"a retry after {first.status}")
        await counted(order, 2, what=f"a request that first gets {need[5:]}")
        replayed(again, await order.post(key))


async def g3(it: Orders) -> None:
    order, key = await it.make("valid"), fresh()
    refused(await order.post(key, body=b'{"item":"tea"}'), 400, 422, what="an invalid body")
    await counted(order, 0)
    good(await order.post(key), "the corrected body under the same key")
    await counted(order, 1)


async def g4(it: Orders) -> None:
    order, key = await it.make("slow", lasts=True), fresh()
    other = it.service.other_body
    async with underway(order, key) as running:
        refused(await order.post(key), 409, what="a repeat while the first runs")
        refused(await order.post(key, body=other), 409, 422, what="another body meanwhile")
    first = await running
    good(first)
    replayed(first, await order.post(key), "a repeat after a 409")
    refused(await order.post(key, body=other), 422, what="another body")
    replayed(first, await order.post(key), "a repeat after a 422")
    await counted(order, 1)


async def g5(it: Orders) -> None:
    order, key = await it.make("once-500"), fresh()
    first = await order.post(key)
    must(first.status == 500 or saved(first), f"a handler that answers 500 got {first}")
    again = await past(order, key)
    count = await order.count()
    if again.status == 500:
        must(marked(again) and count == 1, f"a retry got {again}, and it ran {count} times")
        return
    good(again, "a retry after a 500")
    must(count == 2, f"it ran {count} times")
    replayed(again, await order.post(key))
    await counted(order, 2)


async def g6(it: Orders) -> None:
    for need in there(it, ("large", "stream")):
        order, key = await it.make(need), fresh()
        first = await order.post(key)
        good(first)
        must(len(first.body) > 16 * 1024, f"the first caller got {len(first.body)} bytes")
        await _fact_kept(order, key, first.status, first.body, need)


async def _fact_kept(order: Order, key: str, status: int, body: bytes, need: str) -> None:
    again = await order.post(key)
    await counted(order, 1, what=f"a request whose answer is {need}")
    if again.status == status:
        must(again.body in (b"", body), f"the repeat got {len(again.body)} of {len(body)} bytes")
    else:
        refused(again, 409, 410, what="the repeat")


async def g7(it: Orders) -> None:
    order, key = await it.make(), fresh()
    large = b'{"item":"' + b"x" * (it.service.limit + 1024) + b'"}'
    refused(await order.post(key, body=large), 413, what=f"a body of {len(large)} bytes")
    await counted(order, 0)
    good(await order.post(key), "a smaller body under the same key")
    await counted(order, 1)


ROWS: Final = {"G1": g1, "G2": g2, "G3": g3, "G4": g4, "G5": g5, "G6": g6, "G7": g7}
