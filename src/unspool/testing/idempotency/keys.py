"""Section A: the key."""

from __future__ import annotations

import re
from typing import Final
from uuid import uuid4

from .seeing import counted, good, is_problem, marked, must, refused, replayed
from .service import Order, Orders

HOSTILE: Final = (
    b"'; DROP TABLE keys; --",
    b"a:b:{c}:*:d",
    b"../../etc/passwd",
    b"<script>alert(1)</script>",
    b"%0d%0aX-Evil: 1",
    b"\x01\x02\x1b[31m",
    b"x\x7fy",
)
MALFORMED: Final = (b'"unbalanced', b'"bad\\xescape"', b'"two" "strings"', b"caf\xc3\xa9",
                    b'"caf\xe9"')  # fmt: skip


def fresh() -> str:
    return f"k{uuid4().hex}"


def quoted(key: str) -> str:
    return f'"{key}"'


async def none_ran(order: Order, *keys: str | bytes, what: str) -> None:
    """These Idempotency-Key fields are a 400, and nothing ran."""
    refused(await order.post(*keys), 400, what=what)
    await counted(order, 0, what=what)


async def a1(it: Orders) -> None:
    order, key = await it.make(), quoted(fresh())
    good(await order.post(key), "a quoted key")
    good(await order.post(key), "its repeat")
    await counted(order, 1)


async def a2(it: Orders) -> None:
    order, key = await it.make(), fresh()
    first = await order.post(quoted(key))
    good(first)
    replayed(first, await order.post(key), "the bare key")
    await counted(order, 1)


async def a3(it: Orders) -> None:
    order, key = await it.make(), fresh()
    escaped = await order.post(f'"{key}\\"b"')
    good(escaped, "an escaped quote in the key")
    replayed(escaped, await order.post(f'"{key}\\"b"'))
    await counted(order, 1)
    good(await order.post(f'"{key}b"'), "the same without the quote")
    await counted(order, 2, what="with and without an escaped quote")
    another = await it.make()
    for value in MALFORMED:
        await none_ran(another, value, what=f"the key {value!r}")


async def a4(it: Orders) -> None:
    order, key = await it.make(), quoted(fresh())
    first = await order.post(f"{key};v=1;w")
    good(first, "a key with parameters")
    replayed(first, await order.post(key), "the key without parameters")
    await counted(order, 1)


async def a5(it: Orders) -> None:
    order = await it.make()
    await none_ran(order, fresh(), fresh(), what="two keys")
    key = fresh()
    await none_ran(order, key, key, what="one key twice")
    await none_ran(order, f"{fresh()}, {fresh()}", what="a key with a comma")
    await none_ran(order, f"{quoted(fresh())}, {quoted(fresh())}", what="a list of two")


async def a6(it: Orders) -> None:
    order = await it.make()
    for value in ("", "   ", '""'):
        await none_ran(order, value, what=f"the key {value!r}")


async def a7(it: Orders) -> None:
    order, limit = await it.make(), it.service.key_max
    await none_ran(order, quoted("x" * (limit + 1)), what=f"a key of {limit + 1} characters")
    good(await order.post(quoted(fresh().ljust(limit, "x"))), f"a key of {limit} characters")


async def a9(it: Orders) -> None:
    order = await it.make(mount="required")
    reply = await order.post()
    refused(reply, 400, what="a request without the key that is required")
    must(is_problem(reply), f"the 400 is {reply.get('Content-Type') or 'untyped'}, no problem")
    leads = reply.get("Link") or re.search(rb'"type"\s*:\s*"(?!about:blank)', reply.body)
    must(bool(leads), "the 400 leads to no documentation")
    await counted(order, 0)
    good(await order.post(fresh()), "a request with the key")


async def a10(it: Orders) -> None:
    order = await it.make()
    one, two = await order.post(), await order.post()
    good(one)
    good(two, "the second request without a key")
    must(not marked(one) and not marked(two), "an answer without a key says that it is a replay")
    await counted(order, 2, what="two requests without a key")


async def a11(it: Orders) -> None:
    order, key = await it.make(), fresh()
    before = await order.look(key=key)
    good(await order.post(fresh()))
    after = await order.look(key=key)
    must(before.status == after.status == 200, f"a GET with a key got {before}, then {after}")
    must(before.body != after.body and not marked(after), "a GET with a key was replayed")
    for method in ("HEAD", "OPTIONS"):
        for _ in range(2):
            reply = await order.look(method=method, key=key)
            plain = await order.look(method=method)
            must(reply.status == plain.status, f"{method} with a key got {reply}, else {plain}")
            must(not marked(reply), f"{method} with a key was replayed")
    good(await order.post(key), "a POST under the key of a GET")
    await counted(order, 2)


async def a12(it: Orders) -> None:
    for method in ("PUT", "DELETE"):
        order, key = await it.make(), fresh()
        one, two = await order.post(key, method=method), await order.post(key, method=method)
        count = await order.count()
        must(one.status == two.status, f"{method} twice under a key got {one}, then {two}")
        must(one.status == 405 or one.status < 300, f"{method} with a key got {one}")
        must(
            one.status == 405 or count == (1 if marked(two) else 2),
            f"{method} ran {count} times, and its repeat says replayed: {marked(two)}",
        )


async def a13(it: Orders) -> None:
    for value in HOSTILE:
        order = await it.make()
        # A key of its own each time: a server that is asked twice has heard of the first.
        name = value + fresh().encode()
        for key in (name, b'"' + name + b'"'):
            reply = await order.post(key)
            must(reply.status < 300 or reply.status == 400, f"the key {value!r} got {reply}")
            if reply.status == 400:
                shown = reply.body + repr(reply.fields).encode()
                must(value not in shown, f"the refusal repeats the key {value!r}")
        if reply.status < 300:
            again = await order.post(key)
            replayed(reply, again, f"the repeat of {value!r}")
        count = await order.count()
        must(count <= 1, f"quoted, bare and again, {value!r} ran {count} times")


ROWS: Final = {
    "A1": a1, "A2": a2, "A3": a3, "A4": a4, "A5": a5, "A6": a6, "A7": a7, "A9": a9, "A10": a10,
    "A11": a11, "A12": a12, "A13": a13,
}  # fmt: skip
