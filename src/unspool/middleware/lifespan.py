"""A middleware's part in the lifespan of the application that it wraps (ASGI lifespan 2.0).

    await lifespan(app, scope, receive, send, begin=…, ready=…, end=…)

`begin` is before the application's start, `ready` once it has started, `end` after its end, once.

What a person must mend (`Broken`) stops the start, and is told to the server as a start that
failed: raised, servers would take it for an application without a lifespan, and go on. A spool that
merely does not answer does not stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..errors import Broken, Refused
from ..transports.call import ASGIApp, Receive, Scope, Send

log: Final = logging.getLogger("unspool.middleware")

ENDS: Final = frozenset(
    {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}
)


async def nothing() -> None:
    """For who has nothing to do then."""


async def lifespan(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    begin: Callable[[], Awaitable[None]],
    ready: Callable[[], Awaitable[None]] = nothing,
    end: Callable[[], Awaitable[None]],
) -> None:
    first: Any = await receive()
    if first["type"] == "lifespan.startup":
        try:
            await begin()
        except Broken as error:
            log.error("the application was not started: %s", error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        except Refused as error:
            log.error("the spool does not answer yet; nothing runs under a key: %s", error)
    ended = False

    async def ended_once() -> None:
        nonlocal ended
        if not ended:
            ended = True
            try:
                await end()
            except Exception:
                log.exception("the spool was not closed well; what was stored is stored")

    async def received() -> Any:
        nonlocal first
        event, first = first, None
        return event if event is not None else await receive()

    async def sent(event: Any) -> None:
        if event["type"] == "lifespan.startup.complete":
            try:
                await ready()
            except Refused as error:
                log.error("the spool does not answer yet: %s", error)
        elif event["type"] in ENDS:
            await ended_once()  # now: once the server has heard it, it may stop the loop
        await send(event)

    try:
        await app(scope, received, sent)
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await ended_once()
