"""A queue from its URL.

    queue = await open_queue("gearman://10.0.0.5:4730/orders")      the function `orders`
    queue = await open_queue("gearman://10.0.0.5,10.0.0.6")         two servers; `unspool`
    queue = await open_queue("amqp://user:password@host/?queue=orders")    RabbitMQ
    queue = await open_queue("s3://bucket/orders")                  files in a bucket
    queue = await open_queue("memory:")                             of this process alone

Opening does not connect: a queue that is down now may be up when it is needed. It fails where the
URL makes no sense, or a package that it needs is missing.

Other packages add schemes by an entry point in the group `unspool.queues`: its name is the scheme,
its object an async function from the URL to a Queue.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from typing import Final

from ..core.urls import concealed
from ..errors import Misconfigured
from ..spools.open import is_spool
from .protocol import Queue

GROUP: Final = "unspool.queues"

Opener = Callable[[str], Awaitable[Queue]]


async def _open_memory(url: str) -> Queue:
    from .memory import MemoryQueue

    if url not in ("memory:", "memory://"):
        raise Misconfigured(
            f"{url!r} names something in memory, which has no names. Nothing was opened. Write:"
            " memory:"
        )
    return MemoryQueue()


async def _open_gearman(url: str) -> Queue:
    from .gearman import open_gearman

    return open_gearman(url)


async def _open_rabbitmq(url: str) -> Queue:
    from .rabbitmq import open_rabbitmq

    return open_rabbitmq(url)


async def _open_s3(url: str) -> Queue:
    from .s3 import open_s3

    return open_s3(url)


OURS: Final[Mapping[str, Opener]] = {
    "amqp": _open_rabbitmq,
    "amqps": _open_rabbitmq,
    "gearman": _open_gearman,
    "memory": _open_memory,
    "s3": _open_s3,
}


def is_queue(url: str) -> bool:
    """Is this the URL of a queue, as far as its scheme tells?"""
    scheme, colon, _ = url.partition(":")
    return bool(colon) and (scheme in OURS or scheme in _plugged())


async def open_queue(url: str) -> Queue:
    """Raises `Misconfigured` for a URL that names no queue, and what the queue itself raises."""
    scheme, colon, _ = url.partition(":")
    if opener := OURS.get(scheme) if colon else None:
        return await opener(url)
    plugged = _plugged()
    if colon and scheme in plugged:
        return await plugged[scheme]()(url)
    if is_spool(url):
        raise _spool(url)
    raise _unknown(url, scheme=scheme if colon else "", schemes=sorted({*OURS, *plugged}))


def _plugged() -> dict[str, Callable[[], Opener]]:
    from importlib.metadata import entry_points  # 2 MB, and only for schemes that are not ours

    return {point.name: point.load for point in entry_points(group=GROUP)}


def _spool(url: str) -> Misconfigured:
    url = concealed(url)
    return Misconfigured(
        f"{url!r} is a spool, and no queue: a relay delivers from it, and nothing is collected."
        f" Nothing was opened. In the smart client write outbox={url!r}. Take what it has into"
        f" another spool: unspool move --from {shlex.quote(url)} --to sqlite:///unspool.db. Deliver"
        f" what it has: unspool serve --spool {shlex.quote(url)}"
    )


def _unknown(url: str, *, scheme: str, schemes: list[str]) -> Misconfigured:
    known = ", ".join(f"{name}:" for name in schemes)
    near = get_close_matches(scheme, schemes, n=1)
    advice = f"No installed queue answers to {scheme}:." if scheme else "It has no scheme."
    if near:
        advice = f"Did you mean {near[0]}:?"
    return Misconfigured(
        f"{concealed(url)!r} names no queue that is known here. Nothing was opened. {advice} Known:"
        f" {known}. Try: unspool collect gearman://127.0.0.1:4730/unspool"
    )
