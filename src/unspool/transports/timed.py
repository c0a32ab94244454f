"""Timed: one attempt that ends after so long, and says whether the request can have gone out.

    answer = await timed(transport, request, repeat=…, timeout_ms=…, sending=…)
    answer = await asked(transport, request, repeat=…, sending=…)       without a limit

What is cut off while it still waits for a connection was never sent: it may go elsewhere, whatever
it is. `sending` is called when a first byte may go, for whoever is cancelled in the midst of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from ..core.message import Answer, Cause, Failure, Request, Sent
from .protocol import Telling, Transport


def _nobody() -> None:
    return None


async def timed(
    transport: Transport,
    request: Request,
    *,
    repeat: bool,
    timeout_ms: int,
    reach_ms: int = 0,
    sending: Callable[[], None] = _nobody,
) -> Answer:
    """`reach_ms`: within which there has to be a connection; 0: within all of `timeout_ms`."""
    if timeout_ms <= 0:  # a connection that is at hand would take it at once
        return Failure(Cause.CONNECTION_TIMEOUT, "there was no time left to send it", Sent.NEVER)
    until = asyncio.get_running_loop().time() + timeout_ms / 1000
    reach_ms = min(reach_ms, timeout_ms) or timeout_ms
    limit = asyncio.timeout(reach_ms / 1000)
    sent = False

    def goes() -> None:
        nonlocal sent
        sent = True
        if not limit.expired():
            limit.reschedule(until)
        sending()

    try:
        async with limit:
            return await asked(transport, request, repeat=repeat, sending=goes)
    except TimeoutError:
        if sent:
            why = f"no answer within {timeout_ms} ms"
            return Failure(Cause.HTTP_RESPONSE_TIMEOUT, why, Sent.MAYBE)
        why = f"no connection within {reach_ms} ms"
        return Failure(Cause.CONNECTION_TIMEOUT, why, Sent.NEVER)


async def asked(
    transport: Transport, request: Request, *, repeat: bool, sending: Callable[[], None]
) -> Answer:
    """One attempt. Where a transport does not tell when the request goes out, it goes at once."""
    if getattr(transport, "tells", False):
        return await cast(Telling, transport).attempt(request, repeat=repeat, sending=sending)
    sending()
    return await transport.attempt(request, repeat=repeat)
