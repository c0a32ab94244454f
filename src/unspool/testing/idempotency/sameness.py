"""Section C: is it the same request?"""

from __future__ import annotations

import json
from typing import Final
from uuid import uuid4

from .keys import fresh
from .seeing import counted, good, is_live, marked, must, refused, replayed, underway
from .service import ITEM, NotOffered, Orders
from .wire import Reply

WORD_MIN_BYTES: Final = 8
MOMENT_S: Final = 0.05


async def c1(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    other = await order.post(key, body=it.service.other_body)
    refused(other, 422, what="another body under the key")
    await counted(order, 1)
    replayed(first, await order.post(key), "the first body again")
    await counted(order, 1)


async def c2(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key)
    good(first)
    patched = await order.post(key, method="PATCH")
    _not_the_first(first, patched, "PATCH under the key of a POST")
    if it.service.apart:
        elsewhere = await it.make()
        _not_the_first(first, await elsewhere.post(key), "another path under the key")
    replayed(first, await order.post(key))


def _not_the_first(first: Reply, other: Reply, what: str) -> None:
    must(not marked(other), f"{what} got a replay")
    must(other.status >= 400 or other.body != first.body, f"{what} got the first's answer")


async def c3(it: Orders) -> None:
    order, key = await it.make(), fresh()
    good(await order.post(key))
    more = ("&" if "?" in order.target else "?") + "unlike=1"
    refused(await order.post(key, more=more), 422, what="another query under the key")
    await counted(order, 1)


async def c4(it: Orders) -> None:
    try:
        document = json.loads(it.service.body)
    except ValueError:
        raise NotOffered("a JSON body") from None
    if not isinstance(document, dict) or "json" not in it.service.media:
        raise NotOffered("a JSON body")
    order, key = await it.make(), fresh()
    first = await order.post(key, body=json.dumps(document).encode())
    good(first)
    turned = dict(reversed(document.items()))
    for body in (json.dumps(turned, indent=2), " " + json.dumps(turned, separators=(",", ":"))):
        replayed(first, await order.post(key, body=body.encode()), "the same JSON, otherwise")
    await counted(order, 1)


async def c5(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key, fields=_passing())
    good(first)
    replayed(first, await order.post(key, fields=_passing()), "a repeat with other trace fields")
    await counted(order, 1)


def _passing() -> list[tuple[str, str]]:
    one = uuid4().hex
    return [
        ("X-Request-Id", one),
        ("User-Agent", f"client/{one[:3]}"),
        ("traceparent", f"00-{one}-{one[:16]}-01"),
    ]


async def c6(it: Orders) -> None:
    order = await it.make()
    one, two = await order.post(fresh()), await order.post(fresh())
    good(one)
    good(two, "the same body under another key")
    must(not marked(two), "the same body under another key is called a replay")
    await counted(order, 2, what="one body under two keys")


async def c7(it: Orders) -> None:
    order, key = await it.make(), fresh()
    body, words = it.service.body, [it.service.body.decode("latin-1")]
    if body == ITEM:
        secret = uuid4().hex
        body, words = json.dumps({f"n{secret}": f"v{secret}"}).encode(), [secret]
    first = await order.post(key, body=body)
    good(first)
    if len(first.body) >= WORD_MIN_BYTES:  # a shorter one stands in a Date, or a length, by chance
        words.append(first.body.decode("latin-1"))
    other = await order.post(key, body=it.service.other_body)
    refused(other, 422, what="another body under the key")
    shown = other.body.decode("latin-1") + repr(other.fields)
    must(not any(word in shown for word in words), f"the refusal tells of the first: {other}")


async def c8(it: Orders) -> None:
    order, key, wait = await it.make("slow", lasts=True), fresh(), [("Prefer", "wait=20")]
    async with underway(order, key) as first:
        other = await order.post(key, body=it.service.other_body, fields=wait)
        still = await is_live(order, first)
    good(await first)
    refused(other, 422, what="another body while the first runs")
    must(still, "another body was refused only when the first had ended")
    await counted(order, 1)


async def c9(it: Orders) -> None:
    stem, key = f"s{uuid4().hex[:16]}", fresh()
    short, long = await it.make("paths", subject=f"{stem}1"), None
    long = await it.make("paths", subject=f"{stem}12")
    short_first = await short.post(key, body=b"23", media="text/plain")
    good(short_first)
    other = await long.post(key, body=b"3", media="text/plain")
    _not_the_first(short_first, other, "a path and a body cut at another place")


async def c10(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(key, **_form("1st"))
    if first.status in (400, 415, 422):
        await counted(order, 0)
        return
    good(first, "a form")
    again = await order.post(key, **_form("2nd"))
    must(again.status in (first.status, 400, 415), f"the form with a new boundary got {again}")
    await counted(order, 1, what="a form with a new boundary")
    other = await order.post(key, **_form("3rd", tea="coffee"))
    must(other.status >= 400, f"a form with other parts got {other}")
    await counted(order, 1, what="a form with other parts under the key")


def _form(boundary: str, *, tea: str = "tea") -> dict[str, object]:
    mark = f"----{boundary}{uuid4().hex}"
    body = f'--{mark}\r\nContent-Disposition: form-data; name="item"\r\n\r\n{tea}\r\n--{mark}--\r\n'
    return {"body": body.encode(), "media": f"multipart/form-data; boundary={mark}"}


ROWS: Final = {
    "C1": c1, "C2": c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C7": c7, "C8": c8, "C9": c9,
    "C10": c10,
}  # fmt: skip
